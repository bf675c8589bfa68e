package runtimeapi

import (
	"encoding/base64"
	"encoding/json"
	"net"
	"slices"
	"strconv"
	"time"

	"starling"
)

// call is one invocation while the server knows it. Everything but inv and sink is guarded by Server.mu.
type call struct {
	inv      *starling.Invocation
	sink     starling.Sink
	deadline time.Time

	users  int   // connections that touch payload or sink now
	reader *conn // the connection that brings the answer
	over   bool  // outcome is final; done is sent when users is 0
	fault  bool  // the outcome was ours, not the code's
	out    starling.Outcome

	done  chan struct{} // capacity 1
	timer *time.Timer   // runs watch
	armed time.Time     // when timer runs; the zero time when it does not
}

// takeLocked returns a call to fill in. Calls are kept by their server: at most as many as are at work at once.
func (s *Server) takeLocked() *call {
	if n := len(s.free); n > 0 {
		k := s.free[n-1]
		s.free = s.free[:n-1]
		return k
	}
	k := &call{done: make(chan struct{}, 1), over: true}
	k.timer = time.AfterFunc(time.Hour, func() { s.watch(k) })
	k.timer.Stop()
	return k
}

// armLocked sees to it that watch looks at k at its deadline. A timer that runs already and ends earlier is left alone, and set anew
// when it fires too early: that is once in a function's timeout instead of once a call.
func (k *call) armLocked(now time.Time) {
	if until := k.deadline.Add(Grace); k.armed.IsZero() || k.armed.After(until) {
		k.armed = until
		k.timer.Reset(until.Sub(now))
	}
}

// watch ends k if its time is up. It runs on the goroutine of its timer.
func (s *Server) watch(k *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k.armed = time.Time{}
	if k.over || s.closed {
		return
	}
	if now := time.Now(); now.Before(k.deadline.Add(Grace)) {
		k.armLocked(now)
		return
	}
	s.expireLocked(k)
}

// Invoke hands one call to the code and waits for its answer.
func (s *Server) Invoke(inv *starling.Invocation, sink starling.Sink) starling.Outcome {
	now := time.Now()
	s.mu.Lock()
	if s.closed || s.live[inv.ID] != nil {
		s.mu.Unlock()
		return starling.Outcome{Status: starling.Unhandled, ErrorType: NotStarted}
	}
	k := s.takeLocked()
	k.inv, k.sink, k.deadline = inv, sink, inv.Deadline
	if k.deadline.IsZero() {
		k.deadline = now.Add(starling.CallTimeMax)
	}
	k.users, k.reader, k.over, k.fault, k.out = 0, nil, false, false, starling.Outcome{}
	s.live[inv.ID] = k
	k.armLocked(now)
	if n := len(s.idle); n > 0 {
		c := s.idle[n-1]
		s.idle = s.idle[:n-1]
		k.users++
		s.mu.Unlock()
		err := s.deliver(c, k)
		s.mu.Lock()
		s.releaseLocked(k, err)
	} else {
		s.waiting = append(s.waiting, k)
	}
	s.mu.Unlock()

	<-k.done
	s.mu.Lock()
	defer s.mu.Unlock()
	out := k.out
	k.inv, k.sink = nil, nil
	if s.closed {
		k.timer.Stop()
	}
	s.free = append(s.free, k)
	return out
}

// expireLocked ends a call whose time is up.
func (s *Server) expireLocked(k *call) {
	delete(s.live, k.inv.ID)
	if i := slices.Index(s.waiting, k); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.expired[s.nextOld] = k.inv.ID
	s.nextOld = (s.nextOld + 1) % len(s.expired)
	s.endLocked(k, starling.ErrTimedOut)
}

// endLocked gives k an outcome of ours. A connection that is in the middle of its answer is unblocked and closed.
func (s *Server) endLocked(k *call, errorType string) {
	if k.over {
		return
	}
	k.over, k.fault = true, true
	k.out = starling.Outcome{Status: starling.Unhandled, ErrorType: errorType}
	if k.reader != nil {
		k.reader.sock.nc.SetReadDeadline(time.Unix(1, 0))
	}
	if k.users == 0 {
		k.done <- struct{}{}
	}
}

// finish gives k the outcome that the code sent and lets go of it. False: it had ended before.
func (s *Server) finish(k *call, out starling.Outcome) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine := !k.fault
	if mine {
		k.over, k.out = true, out
		delete(s.live, k.inv.ID)
	}
	s.releaseLocked(k, nil)
	return mine
}

// releaseLocked ends the use of k by one goroutine; err is why it could not do its part.
func (s *Server) releaseLocked(k *call, err error) {
	k.users--
	if err != nil && !k.over {
		delete(s.live, k.inv.ID)
		k.over, k.fault = true, true
		k.out = starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrExit}
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			k.out.ErrorType = starling.ErrTimedOut
		}
	}
	if k.over && k.users == 0 {
		k.done <- struct{}{}
	}
}

// deliver writes k to the parked connection c and frees c for its next request.
func (s *Server) deliver(c *conn, k *call) error {
	buf := largeBuffers.Get().(*[bufferLarge]byte)
	head := s.appendNext(buf[:0], k)
	until := k.deadline.Add(Grace)
	var err error
	if len(head)+len(k.inv.Payload) <= bufferLarge {
		err = c.sock.write(append(head, k.inv.Payload...), until)
	} else if err = c.sock.write(head, until); err == nil {
		err = c.sock.write(k.inv.Payload, until)
	}
	largeBuffers.Put(buf)
	if err != nil {
		c.sock.nc.SetReadDeadline(time.Unix(1, 0)) // its goroutine ends it: we may be inside that one's wait
	}
	c.mu.Lock()
	c.parked = false
	c.mu.Unlock()
	c.freed.Signal()
	return err
}

// appendNext writes the answer to /next up to its body. Values of the caller that could break a header are left out.
func (s *Server) appendNext(b []byte, k *call) []byte {
	inv := k.inv
	b = append(b, "HTTP/1.1 200 OK\r\nContent-Type: "...)
	if inv.ContentType != "" && len(inv.ContentType) <= 256 && safe(inv.ContentType) {
		b = append(b, inv.ContentType...)
	} else {
		b = append(b, "application/json"...)
	}
	b = append(b, "\r\nLambda-Runtime-Aws-Request-Id: "...)
	b = inv.ID.Append(b)
	b = append(b, "\r\nLambda-Runtime-Deadline-Ms: "...)
	b = strconv.AppendInt(b, k.deadline.UnixMilli(), 10)
	b = append(b, "\r\nLambda-Runtime-Invoked-Function-Arn: "...)
	b = append(b, s.cfg.ARN...)
	if inv.Trace != "" && len(inv.Trace) <= 512 && safe(inv.Trace) {
		b = append(b, "\r\nLambda-Runtime-Trace-Id: "...)
		b = append(b, inv.Trace...)
	}
	if inv.ClientContext != "" {
		b = appendClientContext(b, inv.ClientContext)
	}
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(inv.Payload)), 10)
	return append(b, "\r\n\r\n"...)
}

// appendClientContext adds the caller's context, which is base64 outside and JSON here.
func appendClientContext(b []byte, text string) []byte {
	doc, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(doc) > 3583 || !safe(doc) || !json.Valid(doc) {
		return b
	}
	b = append(b, "\r\nLambda-Runtime-Client-Context: "...)
	return append(b, doc...)
}
