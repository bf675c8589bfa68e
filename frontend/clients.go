package frontend

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"starling"
	"starling/frontend/api"
	"starling/frontend/auth"
	"starling/frontend/protocol"
	"starling/transport"
)

const (
	helloTime  = 10 * time.Second // for a client to say who it is
	sessionMax = 64 << 20         // bytes of payloads in flight on one stream
)

// clients are the open streams of clients.
type clients struct {
	mu   sync.Mutex                  // guards open and shut; a leaf
	open map[transport.Stream]func() // says goodbye
	shut bool
	wait sync.WaitGroup
}

// add takes a stream in; false means that the server is closing.
func (c *clients) add(st transport.Stream, goodbye func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shut {
		return false
	}
	c.open[st] = goodbye
	c.wait.Add(1)
	return true
}

func (c *clients) remove(st transport.Stream) {
	c.mu.Lock()
	delete(c.open, st)
	c.mu.Unlock()
	c.wait.Done()
}

// goodbye refuses new streams and tells every client to finish and leave.
func (c *clients) goodbye() {
	c.mu.Lock()
	c.shut = true
	open := maps.Clone(c.open)
	c.mu.Unlock()
	for _, goodbye := range open {
		goodbye()
	}
}

// drain waits for clients to leave until ctx ends, then cuts their streams, and returns when no call runs.
func (c *clients) drain(ctx context.Context) {
	unhook := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for st := range c.open {
			st.Cancel()
		}
	})
	defer unhook()
	c.wait.Wait()
}

// A session is one client's stream. Its reader is the goroutine of ServeClient; each call has one of its own.
type session struct {
	s    *Server
	st   transport.Stream
	who  auth.Principal
	link *transport.Link
	ctx  context.Context // ends with the stream; calls that wait for a slot end with it

	mu       sync.Mutex // a leaf; guards the rest
	calls    map[uint64]*clientCall
	reserved int64 // bytes of payloads
	draining bool
	wait     sync.WaitGroup // calls
}

// ServeClient serves the protocol of frontend/protocol on one stream until it ends. Register it for
// transport.ChannelClient.
func (s *Server) ServeClient(st transport.Stream) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &session{s: s, st: st, ctx: ctx, link: transport.OpenLink(st, transport.LinkConfig{Inline: true}), calls: map[uint64]*clientCall{}}
	defer c.link.Close()
	if !s.clients.add(st, c.drain) {
		return
	}
	defer s.clients.remove(st)
	st.SetReadDeadline(time.Now().Add(helloTime))
	greeted, over := false, false
	err := c.link.Serve(func(batch []transport.Frame) {
		for _, f := range batch {
			if over {
				return
			}
			take := c.hello
			if greeted {
				take = c.frame
			}
			if err := take(f); err != nil {
				over = true
				c.goodbye(err)
				st.SetReadDeadline(time.Now().Add(helloTime)) // for the client to read why and to leave
			} else if !greeted {
				greeted = true
				st.SetReadDeadline(time.Time{})
			}
		}
	})
	cancel()
	c.abandon()
	c.wait.Wait()
	if err != nil && starling.KindOf(err) != starling.Unavailable {
		s.log.Debug("client stream ended", "peer", st.Peer().Addr, "error", err)
	}
}

// goodbye tells the client that this stream takes no more calls. It closes the stream when its last answer has
// come: an end from our side could overtake answers that are still on their way.
func (c *session) goodbye(err error) {
	c.mu.Lock()
	c.draining = true
	c.mu.Unlock()
	c.refuse(0, starling.RequestID{}, err)
}

// drain is goodbye at the close of the server.
func (c *session) drain() { c.goodbye(closing()) }

func closing() *starling.Error {
	return starling.Errorf(starling.Unavailable, "invoke function", "this frontend is closing: call another one").With("Closing")
}

// abandon forgets calls whose payload will not come any more.
func (c *session) abandon() {
	c.mu.Lock()
	calls := slices.Collect(maps.Values(c.calls))
	c.mu.Unlock()
	for _, k := range calls {
		if k.timer != nil && k.timer.Stop() {
			c.done(k)
		}
	}
}

// hello checks the first frame.
func (c *session) hello(f transport.Frame) error {
	if f.Kind != protocol.KindHello {
		return starling.Errorf(starling.Invalid, "open client stream", "the first frame must be a hello")
	}
	h, err := protocol.DecodeHello(f.Body)
	if err != nil {
		return err
	}
	if h.Version < 1 {
		return starling.Errorf(starling.Invalid, "open client stream", "version %d of the protocol is not spoken here", h.Version)
	}
	ctx, cancel := context.WithTimeout(c.ctx, helloTime)
	defer cancel()
	p, err := c.s.auth.AuthenticateKey(ctx, h.Key)
	if err != nil {
		return err
	}
	if c.who, err = p.For(string(h.Account)); err != nil {
		return err
	}
	return c.link.Send(protocol.KindWelcome, 0, protocol.AppendWelcome(nil))
}

// frame takes one frame after the hello. An error ends the stream: the client broke the protocol.
func (c *session) frame(f transport.Frame) error {
	switch f.Kind {
	case protocol.KindCall:
		return c.call(f)
	case protocol.KindPayload:
		return c.payload(f)
	case protocol.KindCancel:
		if k := c.find(f.ID); k != nil {
			k.cancel()
		}
	case protocol.KindCredit:
		n, err := protocol.DecodeCredit(f.Body)
		if err != nil {
			return err
		}
		if k := c.find(f.ID); k != nil {
			k.credit(int64(n))
		}
	}
	return nil // an unknown kind comes from a newer client and is not needed
}

func (c *session) find(id uint64) *clientCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[id]
}

// call begins a call; it runs as soon as its payload is whole.
func (c *session) call(f transport.Frame) error {
	var head protocol.CallHead
	if err := head.Decode(f.Body); err != nil {
		return err
	}
	if f.ID == 0 || c.find(f.ID) != nil {
		return starling.Errorf(starling.Invalid, "read client frame", "call %d is under way already", f.ID)
	}
	if head.Request == (starling.RequestID{}) {
		head.Request = drawID()
	}
	if head.Total > starling.PayloadMax {
		c.refuse(f.ID, head.Request, tooLarge())
		return nil
	}
	if err := c.s.reserve(int64(head.Total)); err != nil {
		c.refuse(f.ID, head.Request, err)
		return nil
	}
	k := newClientCall(c, f.ID, &head)
	c.mu.Lock()
	full, draining := len(c.calls) >= protocol.CallsMax || c.reserved+int64(k.total) > sessionMax, c.draining
	if !full && !draining {
		c.calls[f.ID] = k
		c.reserved += int64(k.total)
		c.wait.Add(1)
	}
	c.mu.Unlock()
	if full || draining {
		k.release()
		err := starling.Errorf(starling.Overloaded, "invoke function", "this stream has %d calls or %d MiB of payloads in flight, its limit", protocol.CallsMax, sessionMax>>20).With("StreamFull")
		if draining {
			err = closing()
		}
		c.refuse(f.ID, head.Request, err)
		return nil
	}
	c.begin(k)
	return nil
}

// payload adds a piece. Pieces of a call that was refused already are dropped.
func (c *session) payload(f transport.Frame) error {
	k := c.find(f.ID)
	if k == nil || k.whole() {
		return nil
	}
	if len(k.payload)+len(f.Body) > k.total {
		return starling.Errorf(starling.Invalid, "read client frame", "the payload of call %d is longer than it was said to be", f.ID)
	}
	k.payload = append(k.payload, f.Body...)
	c.begin(k)
	return nil
}

// begin runs k when its payload is whole; otherwise a timer bounds the wait for the rest.
func (c *session) begin(k *clientCall) {
	if !k.whole() {
		if k.timer == nil {
			k.timer = time.AfterFunc(bodyTime, func() { c.expire(k) })
		}
		return
	}
	if k.timer != nil && !k.timer.Stop() {
		return // expired at this moment
	}
	go k.run() // counted in c.wait; ends with the call
}

// expire gives up a call whose payload did not come.
func (c *session) expire(k *clientCall) {
	c.refuse(k.id, k.inv.ID, starling.Errorf(starling.Timeout, "invoke function", "the payload did not come within %v", bodyTime))
	c.done(k)
}

// done forgets a call.
func (c *session) done(k *clientCall) {
	k.release()
	c.mu.Lock()
	delete(c.calls, k.id)
	c.reserved -= int64(k.total)
	c.mu.Unlock()
	c.wait.Done()
}

// refuse tells the client an error of one call, or of the stream when id is 0.
func (c *session) refuse(id uint64, request starling.RequestID, err error) {
	if starling.KindOf(err) == starling.Internal {
		c.s.log.Error("request failed", "request", request.String(), "error", err)
	}
	var e *starling.Error
	var after time.Duration
	if errors.As(err, &e) {
		after = e.After
	}
	body := protocol.AppendRefusal(nil, starling.KindOf(err), api.Body(err, request.String()), after)
	c.send(protocol.KindRefusal, id, body)
}

// send queues a frame and waits while the client does not take what is queued, for streamTime at most.
func (c *session) send(kind uint8, id uint64, parts ...[]byte) error {
	var waited time.Duration
	for {
		err := c.link.Send(kind, id, parts...)
		if starling.KindOf(err) != starling.Overloaded || err == nil || waited > streamTime {
			return err
		}
		const pause = 5 * time.Millisecond
		t := time.NewTimer(pause)
		select {
		case <-t.C:
			waited += pause
		case <-c.link.Done():
			t.Stop()
			return c.link.Err()
		}
	}
}
