package host

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/transport"
)

// ReasonNotStarted is the reason of an Unavailable error of Client.Invoke when the call surely did not start; any other
// Unavailable error means that it may have run.
const ReasonNotStarted = "NotStarted"

// dialPatience is how long a call waits for the connection to its host. A host that lives answers in a few round trips; a
// dead one would hold the call for the whole time of a handshake, though another host could serve it.
const dialPatience = 300 * time.Millisecond

// lostAfter is how long after its deadline a call without an end is given up; the host ends it earlier.
const lostAfter = 2 * time.Second

// A Client invokes functions on other hosts. Calls share one stream to each host; those that are ready together leave in one
// write. A payload over one frame takes a stream of its own. It has the goroutines of its links; Close waits for them.
type Client struct {
	ep     transport.Endpoint
	addrOf func(starling.NodeID) string
	links  *transport.Links
	next   atomic.Uint64
	free   sync.Pool      // of *sent
	wg     sync.WaitGroup // own streams

	mu      sync.Mutex // guards pending; a leaf
	pending map[uint64]*sent
}

// NewClient returns a client that dials when it is first used. addrOf returns a node's endpoint, "" when it is unknown.
func NewClient(ep transport.Endpoint, addrOf func(starling.NodeID) string) *Client {
	c := &Client{ep: ep, addrOf: addrOf, pending: map[uint64]*sent{}}
	c.free.New = func() any { return &sent{wake: make(chan struct{}, 1)} }
	c.links = transport.NewLinks(transport.LinksConfig{Endpoint: ep, Channel: transport.ChannelInvoke, Link: linkConfig,
		Receive: func(_ string, _ *transport.Link, batch []transport.Frame) { c.take(batch) },
		Down:    func(addr string, err error) { c.fail(addr, nil, err) }})
	return c
}

// Close ends every call with an error and waits for the links.
func (c *Client) Close() {
	c.links.Close()
	c.fail("", nil, starling.Errorf(starling.Unavailable, "invoke", "this node is closing"))
	c.wg.Wait()
}

// sent is one call on its way. The reader of its link appends what came; the caller's goroutine takes it.
type sent struct {
	addr string
	link *transport.Link
	id   uint64

	wake chan struct{} // capacity 1

	mu     sync.Mutex // guards what follows; a leaf
	head   bool       // a head came and was not told yet
	stream bool
	ctype  string
	bytes  []byte // of the answer, at most window by credit
	doc    []byte
	end    bool
	out    starling.Outcome
	err    error
}

// Invoke runs a call on the host of the lease. Errors are those of Host.Invoke, and Unavailable: with
// ReasonNotStarted when the call did not reach the host, and without when the host was lost during the call. When ctx
// ends Invoke returns, and the call runs on.
func (c *Client) Invoke(ctx context.Context, lease *starling.Lease, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error) {
	addr := c.addrOf(lease.Host)
	if addr == "" {
		return starling.Outcome{}, notStarted("the host left the cluster")
	}
	now := time.Now()
	if inv.Deadline.IsZero() {
		inv.Deadline = now.Add(starling.CallTimeMax)
	}
	k := c.free.Get().(*sent)
	k.reset(addr, c.next.Add(1))
	var head [512]byte
	b := appendCall(head[:0], lease, inv, inv.Deadline.Sub(now))
	own := len(inv.Payload) > partMax || len(b)+len(inv.Payload) > transport.FrameBodyMax
	if err := c.open(ctx, k, own); err != nil {
		c.free.Put(k)
		return starling.Outcome{}, err
	}
	if own {
		defer k.link.Close()
	}
	if err := k.post(b, inv.Payload); err != nil {
		c.drop(k)
		if !own {
			return starling.Outcome{}, notStarted(err.Error())
		}
		return starling.Outcome{}, lost(err)
	}
	return c.wait(ctx, k, inv.Deadline.Sub(now), sink)
}

func notStarted(why string) error {
	return starling.Errorf(starling.Unavailable, "invoke", "the host cannot be reached: %s", why).With(ReasonNotStarted)
}

func lost(err error) error {
	return starling.Errorf(starling.Unavailable, "invoke", "the host was lost during the call; the function may have run: %w", err).With("HostLost")
}

func (k *sent) reset(addr string, id uint64) {
	select {
	case <-k.wake:
	default:
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.addr, k.id, k.link = addr, id, nil
	k.head, k.stream, k.ctype, k.end, k.err = false, false, "", false, nil
	k.bytes, k.doc, k.out = k.bytes[:0], nil, starling.Outcome{}
}

// open finds the shared stream or opens one for this call alone.
func (c *Client) open(ctx context.Context, k *sent, own bool) error {
	if !own {
		l, err := c.links.Get(k.addr)
		if err != nil {
			return notStarted(err.Error())
		}
		k.link = l
		c.add(k)
		return nil
	}
	s, err := c.ep.Open(ctx, k.addr, transport.ChannelInvoke)
	if err != nil {
		return notStarted(err.Error())
	}
	k.link = transport.OpenLink(s, transport.LinkConfig{PendingMax: 2 * starling.PayloadMax})
	c.add(k)
	l := k.link
	c.wg.Go(func() {
		err := l.Serve(c.take)
		if err == nil {
			err = starling.Errorf(starling.Unavailable, "invoke", "the host ended the stream")
		}
		c.fail("", l, err)
	})
	return nil
}

func (c *Client) add(k *sent) {
	c.mu.Lock()
	c.pending[k.id] = k
	c.mu.Unlock()
}

// drop forgets a call. One that did not end is not reused: the reader may hold it.
func (c *Client) drop(k *sent) {
	c.mu.Lock()
	delete(c.pending, k.id)
	c.mu.Unlock()
}

// post sends the call, in as many frames as its payload needs.
func (k *sent) post(head, payload []byte) error {
	first := min(len(payload), partMax)
	if len(head)+first > transport.FrameBodyMax {
		first = 0
	}
	if err := k.link.Send(frameCall, k.id, head, payload[:first]); err != nil {
		return err
	}
	for payload = payload[first:]; len(payload) > 0; {
		n := min(len(payload), partMax)
		if err := k.link.Send(frameMore, k.id, payload[:n]); err != nil {
			return err
		}
		payload = payload[n:]
	}
	return nil
}

// wait passes the answer to the sink until the call ended.
func (c *Client) wait(ctx context.Context, k *sent, left time.Duration, sink starling.Sink) (starling.Outcome, error) {
	t := time.NewTimer(left + lostAfter)
	defer t.Stop()
	var patience <-chan time.Time
	if k.link.Peer() == (transport.Peer{}) {
		p := time.NewTimer(dialPatience)
		defer p.Stop()
		patience = p.C
	}
	a := taking{sink: sink}
	for {
		select {
		case <-k.wake:
		case <-ctx.Done():
			c.drop(k)
			return starling.Outcome{}, lost(context.Cause(ctx))
		case <-patience:
			patience = nil
			if k.link.Peer() == (transport.Peer{}) {
				c.giveUp(k)
			}
			continue
		case <-t.C:
			c.drop(k)
			return starling.Outcome{}, starling.Errorf(starling.Timeout, "invoke", "the host did not answer in time; the function may have run")
		}
		if k.pass(&a) {
			break
		}
		if a.owed >= creditAfter && k.link.Send(frameCredit, k.id, le.AppendUint32(nil, uint32(a.owed))) == nil {
			a.owed = 0
		}
	}
	out, err := k.out, k.err
	c.drop(k)
	c.free.Put(k)
	return out, err
}

// giveUp ends a link that did not come up in time, with every call on it. What was sent on it is dropped, unless it came
// up at this very moment: then the calls may have run, and fail tells which.
func (c *Client) giveUp(k *sent) {
	c.links.Drop(k.addr)
	if k.link.Err() != nil {
		c.fail(k.addr, nil, starling.Errorf(starling.Unavailable, "invoke", "no connection within %v", dialPatience))
	}
}

// taking is the caller's side of an answer.
type taking struct {
	sink  starling.Sink
	spare []byte
	gone  bool
	owed  int // bytes taken and not credited
}

// pass hands what has come to the sink and reports whether the call ended.
func (k *sent) pass(a *taking) bool {
	k.mu.Lock()
	head, stream, ctype, end := k.head, k.stream, k.ctype, k.end
	got := k.bytes
	k.head, k.bytes = false, a.spare[:0]
	k.mu.Unlock()
	if head {
		a.sink.Start(ctype, stream)
	}
	if len(got) > 0 && !a.gone {
		_, err := a.sink.Write(got)
		a.gone = err != nil
	}
	a.owed += len(got)
	a.spare = got
	return end
}

// take sorts what one read brought to the calls that wait for it.
func (c *Client) take(batch []transport.Frame) {
	for _, f := range batch {
		c.mu.Lock()
		k := c.pending[f.ID]
		c.mu.Unlock()
		if k == nil {
			continue
		}
		if err := k.frame(f); err != nil {
			k.fail(f.ID, lost(err))
			continue
		}
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// frame takes one frame of the host.
func (k *sent) frame(f transport.Frame) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end {
		return nil
	}
	switch f.Kind {
	case frameHead:
		if len(f.Body) < 1 {
			return errFrame
		}
		k.head, k.stream, k.ctype = true, f.Body[0] == 1, string(f.Body[1:])
	case frameChunk:
		if len(k.bytes)+len(f.Body) > 2*window {
			return errFrame // the host sends without credit
		}
		k.bytes = append(k.bytes, f.Body...)
	case frameError:
		if len(k.doc)+len(f.Body) > starling.PayloadMax {
			return errFrame
		}
		k.doc = append(k.doc, f.Body...)
	case frameEnd, frameAnswer:
		rest, err := readOutcome(f.Body, &k.out)
		if err != nil {
			return err
		}
		if f.Kind == frameAnswer {
			word, body, err := readWord(rest)
			if err != nil {
				return err
			}
			k.head, k.ctype = true, content(word)
			k.bytes = append(k.bytes, body...)
		}
		k.out.Error, k.end = k.doc, true
	case frameRefuse:
		k.err, k.end = readRefusal(f.Body), true
	default:
		return errFrame
	}
	return nil
}

// content spares an allocation for the usual types.
func content(b []byte) string {
	switch string(b) {
	case "application/json":
		return "application/json"
	case "application/octet-stream":
		return "application/octet-stream"
	}
	return string(b)
}

// fail ends the call id with an error, unless it has ended; k may serve another call by now.
func (k *sent) fail(id uint64, err error) {
	k.mu.Lock()
	if k.id == id && !k.end {
		k.end, k.err = true, err
	}
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// fail ends the calls of one address, of one stream, or of all. A call whose link never came up did not start.
func (c *Client) fail(addr string, l *transport.Link, err error) {
	type victim struct {
		k    *sent
		id   uint64
		link *transport.Link
	}
	c.mu.Lock()
	var hit []victim
	for id, k := range c.pending {
		if l != nil && k.link == l || l == nil && (addr == "" || k.addr == addr && k.link.Err() != nil) {
			hit = append(hit, victim{k, id, k.link})
		}
	}
	c.mu.Unlock()
	for _, v := range hit {
		if v.link.Peer() == (transport.Peer{}) {
			v.k.fail(v.id, notStarted(err.Error()))
		} else {
			v.k.fail(v.id, lost(err))
		}
	}
}
