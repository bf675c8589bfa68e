// Package inmem is the transport without a network: endpoints in one process that keep the promises of
// transport.Endpoint, with seeded delays, lost connections and partitions of one direction or both. It holds
// under testing/synctest, where its delays cost nothing.
package inmem

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"starling"
	"starling/internal/run"
	"starling/transport"
)

// Config says how the network behaves. The zero value delivers at once.
type Config struct {
	Seed               uint64
	DelayMin, DelayMax time.Duration // of each write, drawn evenly; what one stream carries stays in order
	Idle               time.Duration // a blocked connection is given up after so long; 800 ms when 0
}

// A Network joins endpoints. It is safe for concurrent use.
type Network struct {
	cfg Config

	mu      sync.Mutex // guards the rest; a leaf but for the pipes', which are locked inside it
	rng     *rand.Rand
	nodes   map[string]*Endpoint
	blocked map[way]int // a blocked way and the number of its block
	blocks  int         // blocks so far
	conns   map[*conn]struct{}
	last    int // number of the last address drawn
}

// A way is one direction between two addresses.
type way struct{ from, to string }

// A conn is one stream with its two ends.
type conn struct {
	opener, acceptor string
	there, back      *pipe // opener to acceptor; acceptor to opener
}

func (c *conn) touches(a, b string) bool {
	return c.opener == a && c.acceptor == b || c.opener == b && c.acceptor == a
}

func (c *conn) fail(err error) {
	c.there.fail(err)
	c.back.fail(err)
}

// New returns a network without endpoints.
func New(cfg Config) *Network {
	if cfg.Idle == 0 {
		cfg.Idle = 800 * time.Millisecond
	}
	return &Network{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x5741)), nodes: map[string]*Endpoint{}, blocked: map[way]int{}, conns: map[*conn]struct{}{}}
}

// Endpoint returns a new endpoint for a node; an empty peer.Addr draws one. Nobody reaches it before Listen.
func (n *Network) Endpoint(peer transport.Peer) *Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	if peer.Addr == "" {
		n.last++
		peer.Addr = fmt.Sprintf("10.0.%d.%d:7400", n.last>>8, n.last&255)
	}
	return &Endpoint{net: n, self: peer, group: run.New(context.Background()), handlers: map[transport.Channel]func(transport.Stream){}}
}

// Block stops, or lets through again, everything that travels from one address to another. Connections that
// stay blocked for the idle time are lost, as both ends would notice; new ones fail at once.
func (n *Network) Block(from, to string, stop bool) {
	w := way{from, to}
	n.mu.Lock()
	defer n.mu.Unlock()
	if (n.blocked[w] > 0) == stop {
		return
	}
	n.blocks++
	block := n.blocks
	if stop {
		n.blocked[w] = block
	} else {
		delete(n.blocked, w)
	}
	for c := range n.conns {
		for _, p := range []*pipe{c.there, c.back} {
			if p.way == w {
				p.block(stop)
			}
		}
	}
	if stop {
		time.AfterFunc(n.cfg.Idle, func() { n.expire(w, block) })
	}
}

// expire loses the connections of a way that the same block still holds.
func (n *Network) expire(w way, block int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.blocked[w] == block {
		n.lose(w.from, w.to)
	}
}

// Partition blocks both directions between every address of one side and every one of the other.
func (n *Network) Partition(one, other []string, stop bool) {
	for _, a := range one {
		for _, b := range other {
			n.Block(a, b, stop)
			n.Block(b, a, stop)
		}
	}
}

// Cut loses every connection between two addresses; new ones may be made at once.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lose(a, b)
}

var errLost = starling.Errorf(starling.Unavailable, "use stream", "the connection is lost")

// lose fails the connections between two addresses; the caller holds mu.
func (n *Network) lose(a, b string) {
	for c := range n.conns {
		if c.touches(a, b) {
			c.fail(errLost)
			delete(n.conns, c)
		}
	}
}

// delay draws the travelling time of one write.
func (n *Network) delay() time.Duration {
	if n.cfg.DelayMax == 0 {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cfg.DelayMin + time.Duration(n.rng.Int64N(int64(n.cfg.DelayMax-n.cfg.DelayMin)+1))
}

// An Endpoint is one node's port. It has one goroutine for each accepted stream; Close waits for them.
type Endpoint struct {
	// Allow says whether a peer may open a channel here; nil allows all. Set it before Listen.
	Allow func(transport.Peer, transport.Channel) bool

	net   *Network
	self  transport.Peer
	group *run.Group

	mu       sync.Mutex // guards handlers; a leaf
	handlers map[transport.Channel]func(transport.Stream)
}

var _ transport.Endpoint = (*Endpoint)(nil)

// Listen makes the endpoint reachable.
func (e *Endpoint) Listen() error {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	if e.net.nodes[e.self.Addr] != nil {
		return starling.Errorf(starling.Internal, "open port", "%s is in use", e.self.Addr)
	}
	e.net.nodes[e.self.Addr] = e
	return nil
}

// Addr is the endpoint's address.
func (e *Endpoint) Addr() string { return e.self.Addr }

// Handle registers who serves a channel; nil takes it back.
func (e *Endpoint) Handle(ch transport.Channel, f func(transport.Stream)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handlers[ch] = f
}

// Open opens a stream to another endpoint of the network.
func (e *Endpoint) Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, starling.Errorf(starling.Timeout, "reach "+addr, "no stream in time: %w", err)
	}
	n := e.net
	n.mu.Lock()
	to := n.nodes[addr]
	there, back := way{e.self.Addr, addr}, way{addr, e.self.Addr}
	if n.nodes[e.self.Addr] != e || to == nil || n.blocked[there] > 0 || n.blocked[back] > 0 {
		n.mu.Unlock()
		return nil, starling.Errorf(starling.Unavailable, "reach "+addr, "no answer").RetryAfter(50 * time.Millisecond)
	}
	c := &conn{opener: e.self.Addr, acceptor: addr, there: newPipe(n, there), back: newPipe(n, back)}
	n.conns[c] = struct{}{}
	n.mu.Unlock()
	peer := to.self
	peer.Addr = addr
	if !to.group.Go(func(context.Context) { to.serve(e.self, c, ch) }) {
		n.drop(c, errLost)
		return nil, starling.Errorf(starling.Unavailable, "reach "+addr, "it is closing")
	}
	return &stream{read: c.back, write: c.there, peer: peer}, nil
}

// serve runs the handler of one accepted stream.
func (e *Endpoint) serve(from transport.Peer, c *conn, ch transport.Channel) {
	if e.Allow != nil && !e.Allow(from, ch) {
		e.net.drop(c, starling.Errorf(starling.Denied, "reach "+e.self.Addr, "it does not let this node use this channel"))
		return
	}
	e.mu.Lock()
	f := e.handlers[ch]
	e.mu.Unlock()
	if f == nil {
		e.net.drop(c, starling.Errorf(starling.Unavailable, "reach "+e.self.Addr, "nothing serves this channel there yet"))
		return
	}
	s := &stream{read: c.there, write: c.back, peer: from}
	f(s)
	c.there.fail(errGivenUp)
	if !c.back.ended() {
		c.back.fail(errGivenUp)
	}
	e.net.drop(c, nil)
}

// drop forgets a connection, failing it when err is not nil.
func (n *Network) drop(c *conn, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
	if err != nil {
		c.fail(err)
	}
}

// Close loses every connection of the endpoint and waits for its handlers. It may be called twice.
func (e *Endpoint) Close() error {
	e.net.mu.Lock()
	if e.net.nodes[e.self.Addr] == e {
		delete(e.net.nodes, e.self.Addr)
		for c := range e.net.conns {
			if c.opener == e.self.Addr || c.acceptor == e.self.Addr {
				c.fail(errLost)
				delete(e.net.conns, c)
			}
		}
	}
	e.net.mu.Unlock()
	e.group.Stop()
	return nil
}
