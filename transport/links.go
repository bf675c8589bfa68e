package transport

import (
	"context"
	"sync"
	"time"

	"starling"
)

const (
	dialTimeout = 3 * time.Second
	linksMax    = 4096 // addresses known at once; those that are down and idle make room
)

// LinksConfig says what to do with the links of one channel.
type LinksConfig struct {
	Endpoint Endpoint
	Channel  Channel
	Link     LinkConfig
	// Receive gets every frame that answers no Call; nil drops them. It runs on the link's reader and the
	// batch is valid until it returns.
	Receive func(addr string, l *Link, batch []Frame)
	// Down is told when the link to addr has ended or could not be made; may be nil. It must not call Close.
	Down func(addr string, err error)
}

// Links keeps one live link to each address on one channel. A link is dialled when it is first wanted, and
// again after a failure when somebody wants it and the back-off of 50 ms to 1 s has passed; until then every
// use fails at once.
//
// Each link has two goroutines, its writer and its reader. Close ends and waits for all.
type Links struct {
	cfg    LinksConfig
	ctx    context.Context // ends dials; no value travels in it
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu     sync.Mutex // guards closed and peers; a leaf
	closed bool
	peers  map[string]*peerLink
}

// A peerLink is what Links knows of one address.
type peerLink struct {
	link    *Link // nil while down
	caller  *Caller
	backoff Backoff
	err     error // why it is down
}

// NewLinks returns an empty pool.
func NewLinks(cfg LinksConfig) *Links {
	ctx, cancel := context.WithCancel(context.Background())
	return &Links{cfg: cfg, ctx: ctx, cancel: cancel, peers: map[string]*peerLink{}}
}

// Get returns the live link to addr or one that is being dialled, on which sends wait in its buffer. It never
// blocks. The error is Unavailable while the address is down.
func (p *Links) Get(addr string) (*Link, error) {
	l, _, err := p.get(addr)
	return l, err
}

// Send sends one frame to addr; it blocks only as Link.Send does.
func (p *Links) Send(addr string, kind uint8, id uint64, parts ...[]byte) error {
	l, _, err := p.get(addr)
	if err != nil {
		return err
	}
	return l.Send(kind, id, parts...)
}

// Call sends a request to addr and waits for its answer, as Caller.Call does.
func (p *Links) Call(ctx context.Context, addr string, kind uint8, dst []byte, parts ...[]byte) (Frame, error) {
	_, c, err := p.get(addr)
	if err != nil {
		return Frame{}, err
	}
	return c.Call(ctx, kind, dst, parts...)
}

func (p *Links) get(addr string) (*Link, *Caller, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, errClosed
	}
	pl := p.peers[addr]
	if pl != nil && pl.link != nil {
		return pl.link, pl.caller, nil
	}
	now := time.Now()
	if pl == nil {
		if len(p.peers) >= linksMax && !p.makeRoom(now) {
			return nil, nil, starling.Errorf(starling.Overloaded, "dial peer", "links to %d addresses are open, which is the limit", linksMax)
		}
		pl = &peerLink{}
		p.peers[addr] = pl
	}
	if !pl.backoff.Ready(now) {
		return nil, nil, starling.Errorf(starling.Unavailable, "dial peer", "%s is down: %w", addr, pl.err).RetryAfter(pl.backoff.Wait(now))
	}
	pl.link = newLink(p.cfg.Link)
	pl.caller = NewCaller(pl.link)
	l, c := pl.link, pl.caller
	p.group.Go(func() { p.run(addr, pl, l, c) })
	return l, c, nil
}

// makeRoom forgets an address that is down and whose back-off has passed.
func (p *Links) makeRoom(now time.Time) bool {
	for addr, pl := range p.peers {
		if pl.link == nil && pl.backoff.Ready(now) {
			delete(p.peers, addr)
			return true
		}
	}
	return false
}

// run dials and then reads one link until it ends.
func (p *Links) run(addr string, pl *peerLink, l *Link, c *Caller) {
	up, err := p.serve(addr, l, c)
	if err == nil {
		err = errClosedByPeer
	}
	now := time.Now()
	p.mu.Lock()
	if !up.IsZero() && now.Sub(up) > backoffMax {
		pl.backoff.Succeed() // it worked for a while: the first try again is soon
	}
	pl.backoff.Fail(now)
	pl.link, pl.caller, pl.err = nil, nil, err
	p.mu.Unlock()
	l.fail(err)
	c.Fail(err)
	l.Close()
	if p.cfg.Down != nil {
		p.cfg.Down(addr, err)
	}
}

// serve returns when the link was established, if it was, and why it ended.
func (p *Links) serve(addr string, l *Link, c *Caller) (up time.Time, err error) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	s, err := p.cfg.Endpoint.Open(ctx, addr, p.cfg.Channel)
	cancel()
	if err != nil {
		return up, err
	}
	l.attach(s)
	up = time.Now()
	err = l.Serve(func(batch []Frame) {
		if rest := c.Take(batch); len(rest) > 0 && p.cfg.Receive != nil {
			p.cfg.Receive(addr, l, rest)
		}
	})
	return up, err
}

// Drop ends the link to addr and forgets its back-off, for an address that left the cluster or is known to
// be back.
func (p *Links) Drop(addr string) {
	p.mu.Lock()
	var l *Link
	if pl := p.peers[addr]; pl != nil {
		l = pl.link
		delete(p.peers, addr)
	}
	p.mu.Unlock()
	if l != nil {
		l.fail(errClosed)
	}
}

// Close ends every link and waits for their goroutines. It may be called twice.
func (p *Links) Close() {
	p.mu.Lock()
	p.closed = true
	var open []*Link
	for _, pl := range p.peers {
		if pl.link != nil {
			open = append(open, pl.link)
		}
	}
	p.mu.Unlock()
	p.cancel()
	for _, l := range open {
		l.fail(errClosed)
	}
	p.group.Wait()
}
