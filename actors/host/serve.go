package host

import (
	"context"
	"sync"
	"time"

	"starling"
	"starling/transport"
)

// callsMax bounds the calls at work for one stream; a frontend that sends more is told Overloaded.
const callsMax = 8192

// Serve takes calls from frontends on other nodes. Register it before the endpoint is opened.
func (h *Host) Serve(ep transport.Endpoint) {
	ep.Handle(transport.ChannelInvoke, func(s transport.Stream) {
		if p := s.Peer(); !p.Roles.Has(starling.RoleFrontend) {
			h.cfg.Log.Warn("refuse calls", "peer", p.Node, "addr", p.Addr, "error", "the node is no frontend")
			s.Cancel()
			return
		}
		srv := &server{h: h, link: transport.OpenLink(s, linkConfig), calls: map[uint64]*served{}}
		err := srv.link.Serve(srv.take)
		srv.end()
		srv.link.Close()
		srv.wg.Wait() // calls run on to their end: their effects may matter
		if err != nil {
			h.cfg.Log.Debug("calls from a frontend ended", "peer", s.Peer().Node, "error", err)
		}
	})
}

// server is one stream of calls. Each call has a goroutine; its bookkeeping is done by the reader's.
type server struct {
	h    *Host
	link *transport.Link
	wg   sync.WaitGroup

	mu    sync.Mutex // guards calls; a leaf
	calls map[uint64]*served
}

// served is one call on its way through this host; it is the sink of its own answer.
type served struct {
	s     *server
	id    uint64
	lease starling.Lease
	inv   starling.Invocation
	total int // bytes of the whole payload

	out     []byte // content type and bytes of the answer that wait to travel in one frame
	content string
	started bool // a head was sent
	stream  bool
	frame   []byte

	mu     sync.Mutex // guards what follows
	more   sync.Cond
	credit int // bytes that may be sent
	gone   bool
}

func newServed() any {
	k := &served{}
	k.more.L = &k.mu
	return k
}

// take handles what one read of the stream brought.
func (s *server) take(batch []transport.Frame) {
	now := time.Now()
	for _, f := range batch {
		switch f.Kind {
		case frameCall:
			s.begin(f, now)
		case frameMore:
			s.continues(f)
		case frameCredit:
			if k := s.find(f.ID); k != nil && len(f.Body) == 4 {
				k.grant(int(min(le.Uint32(f.Body), window)))
			}
		}
	}
}

func (s *server) find(id uint64) *served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[id]
}

func (s *server) begin(f transport.Frame, now time.Time) {
	k := s.h.served.Get().(*served)
	k.s, k.id, k.started, k.stream = s, f.ID, false, false
	k.content, k.out = "", k.out[:0]
	k.mu.Lock()
	k.gone, k.credit = false, window
	k.mu.Unlock()
	var err error
	if k.total, err = readCall(f.Body, &k.lease, &k.inv, now); err != nil {
		s.refuse(k, starling.Errorf(starling.Invalid, "read call", "%w", err))
		return
	}
	s.mu.Lock()
	full, twice := len(s.calls) >= callsMax, s.calls[f.ID] != nil
	if !full && !twice {
		s.calls[f.ID] = k
	}
	s.mu.Unlock()
	switch {
	case twice:
		s.refuse(k, starling.Errorf(starling.Invalid, "read call", "two calls with one number"))
	case full:
		s.refuse(k, starling.Errorf(starling.Overloaded, "take call", "%d calls are at work for this frontend", callsMax))
	case len(k.inv.Payload) == k.total:
		s.run(k)
	}
}

func (s *server) refuse(k *served, err error) {
	s.link.Send(frameRefuse, k.id, appendRefusal(nil, err))
	k.free()
}

// continues adds a part to a payload that did not fit one frame.
func (s *server) continues(f transport.Frame) {
	k := s.find(f.ID)
	if k == nil || len(k.inv.Payload) >= k.total {
		return
	}
	if len(k.inv.Payload)+len(f.Body) > k.total {
		s.remove(k)
		s.refuse(k, starling.Errorf(starling.Invalid, "read call", "%w", errFrame))
		return
	}
	k.inv.Payload = append(k.inv.Payload, f.Body...)
	if len(k.inv.Payload) == k.total {
		s.run(k)
	}
}

func (s *server) remove(k *served) {
	s.mu.Lock()
	delete(s.calls, k.id)
	s.mu.Unlock()
}

// run carries the call out on a goroutine of its own, because the reader must go on.
func (s *server) run(k *served) {
	if e := s.h.find(k.lease.Instance); e != nil {
		e.visits.Add(1)
	}
	s.wg.Go(func() {
		out, err := s.h.Invoke(context.Background(), &k.lease, &k.inv, k)
		s.remove(k)
		if err != nil {
			s.refuse(k, err)
			return
		}
		k.finish(&out)
		k.free()
	})
}

func (k *served) free() {
	if cap(k.inv.Payload) > partMax {
		k.inv.Payload = nil
	}
	if cap(k.out) > partMax {
		k.out = nil
	}
	h := k.s.h
	k.s = nil
	h.served.Put(k)
}

// end lets the answers of calls at work go nowhere: the frontend is gone.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, k := range s.calls {
		if len(k.inv.Payload) < k.total { // it never started
			delete(s.calls, id)
			continue
		}
		k.mu.Lock()
		k.gone = true
		k.mu.Unlock()
		k.more.Signal()
	}
}

// Start keeps the head back: a small answer travels with it in one frame.
func (k *served) Start(contentType string, streaming bool) {
	k.content, k.stream = contentType, streaming
	if streaming {
		k.head()
	}
}

func (k *served) head() {
	k.started = true
	k.frame = append(k.frame[:0], 0)
	if k.stream {
		k.frame[0] = 1
	}
	k.frame = append(k.frame, k.content...)
	k.s.link.Send(frameHead, k.id, k.frame)
}

// Write gathers a small answer and passes a large or streaming one on as the frontend takes it.
func (k *served) Write(p []byte) (int, error) {
	if !k.stream && !k.started {
		if len(k.out)+len(p) <= partMax {
			k.out = append(k.out, p...)
			return len(p), nil
		}
		k.head()
		if err := k.send(k.out); err != nil {
			return 0, err
		}
		k.out = k.out[:0]
	}
	if err := k.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

var errGone = starling.Errorf(starling.Unavailable, "answer call", "the frontend is gone")

// send passes bytes on in frames, waiting for credit; the call's deadline bounds the wait through the function itself.
func (k *served) send(p []byte) error {
	for len(p) > 0 {
		n := k.spend(min(len(p), partMax))
		if n == 0 {
			return errGone
		}
		if err := k.s.link.Send(frameChunk, k.id, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// spend takes up to n bytes of credit, waiting for some; 0 when the frontend is gone.
func (k *served) spend(n int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.credit <= 0 && !k.gone {
		k.more.Wait()
	}
	if k.gone {
		return 0
	}
	n = min(n, k.credit)
	k.credit -= n
	return n
}

func (k *served) grant(n int) {
	k.mu.Lock()
	k.credit = min(k.credit+n, window)
	k.mu.Unlock()
	k.more.Signal()
}

// finish sends the end of the call.
func (k *served) finish(out *starling.Outcome) {
	for doc := out.Error; len(doc) > 0; {
		n := min(len(doc), partMax)
		k.s.link.Send(frameError, k.id, doc[:n])
		doc = doc[n:]
	}
	k.frame = appendOutcome(k.frame[:0], out)
	if k.started || out.Status != starling.Succeeded || len(k.frame)+len(k.content)+1+len(k.out) > transport.FrameBodyMax {
		if !k.started && len(k.out) > 0 {
			k.head()
			k.send(k.out)
			k.frame = appendOutcome(k.frame[:0], out)
		}
		k.s.link.Send(frameEnd, k.id, k.frame)
		return
	}
	k.frame = appendWord(k.frame, k.content)
	k.s.link.Send(frameAnswer, k.id, k.frame, k.out)
}
