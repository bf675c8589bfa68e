package transport

import (
	"context"
	"sync"

	"starling"
)

// A Caller matches answers to requests on one link, by frame id. Ids count from 1; id 0 is left for frames
// that answer nothing. It has no goroutine of its own.
type Caller struct {
	link *Link

	mu      sync.Mutex // guards the rest; a leaf
	next    uint64
	pending map[uint64]*call
	err     error // set when the link has ended
}

type call struct {
	dst  []byte
	kind uint8
	err  error
	done chan struct{} // one token when the answer or the end of the link has come
}

var calls = sync.Pool{New: func() any { return &call{done: make(chan struct{}, 1)} }}

// NewCaller returns a caller on l. Whoever serves the link gives it every batch by Take and tells it the end
// of the link by Fail.
func NewCaller(l *Link) *Caller { return &Caller{link: l, pending: map[uint64]*call{}} }

// Call sends a request and waits for the answer with the same id. The body of the answer is appended to dst,
// which may be nil and must not be touched meanwhile. When ctx ends first the error is Timeout; when the link
// ends first it is the link's, and the peer may or may not have got the request.
func (c *Caller) Call(ctx context.Context, kind uint8, dst []byte, parts ...[]byte) (Frame, error) {
	p := calls.Get().(*call)
	p.dst, p.err = dst, nil
	c.mu.Lock()
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		calls.Put(p)
		return Frame{}, err
	}
	c.next++
	id := c.next
	c.pending[id] = p
	c.mu.Unlock()

	if err := c.link.Send(kind, id, parts...); err != nil {
		if c.forget(id) {
			return Frame{}, release(p, err)
		}
		<-p.done
		return Frame{}, release(p, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		if c.forget(id) {
			return Frame{}, release(p, starling.Errorf(starling.Timeout, "call peer", "no answer in time: %w", ctx.Err()))
		}
		<-p.done // it is arriving this moment
	}
	f := Frame{Kind: p.kind, ID: id, Body: p.dst}
	return f, release(p, p.err)
}

// release gives p back to the pool; the caller is the last to hold it.
func release(p *call, err error) error {
	p.dst, p.err = nil, nil
	calls.Put(p)
	return err
}

// forget takes a request back; false when its answer has already claimed it.
func (c *Caller) forget(id uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.pending[id]
	delete(c.pending, id)
	return ok
}

// Take completes the requests that frames of the batch answer and returns the other frames, in place: what
// the peer sent on its own, and answers that nobody waits for any more.
func (c *Caller) Take(batch []Frame) []Frame {
	c.mu.Lock()
	idle := len(c.pending) == 0
	c.mu.Unlock()
	if idle {
		return batch
	}
	rest := batch[:0]
	for _, f := range batch {
		c.mu.Lock()
		p, ok := c.pending[f.ID]
		if ok {
			delete(c.pending, f.ID)
		}
		c.mu.Unlock()
		if !ok {
			rest = append(rest, f)
			continue
		}
		p.dst, p.kind = append(p.dst, f.Body...), f.Kind
		p.done <- struct{}{}
	}
	return rest
}

// Fail ends every request under way and every later one with err.
func (c *Caller) Fail(err error) {
	c.mu.Lock()
	c.err = err
	pending := c.pending
	c.pending = map[uint64]*call{}
	c.mu.Unlock()
	for _, p := range pending {
		p.err = err
		p.done <- struct{}{}
	}
}

// Respond serves requests that arrive on s: up to limit handlers run at once, each with its own copy of the
// request, and the next request is read only when one of them is done. An answer carries the id of its
// request. The context of the handlers ends with the stream; Respond waits for them and returns why the
// stream ended, nil for good order.
func Respond(ctx context.Context, s Stream, cfg LinkConfig, limit int, handle func(ctx context.Context, req Frame) (kind uint8, body []byte)) error {
	l := OpenLink(s, cfg)
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.fail(errClosed) })
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	slots := make(chan struct{}, limit)
	return l.Serve(func(batch []Frame) {
		for _, f := range batch {
			req := Frame{Kind: f.Kind, ID: f.ID, Body: append([]byte(nil), f.Body...)}
			select {
			case slots <- struct{}{}:
			case <-l.ended:
				return
			}
			running.Go(func() {
				defer func() { <-slots }()
				kind, body := handle(ctx, req)
				if err := l.Send(kind, req.ID, body); starling.KindOf(err) == starling.TooLarge {
					l.fail(err) // the requester must not wait for an answer that cannot come
				}
			})
		}
	})
}
