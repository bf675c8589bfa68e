package manager

import (
	"sync"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
)

const (
	greetTimeMax   = 2 * time.Second // for the first message of a stream
	heartbeatPause = 2 * time.Second // a session without a heartbeat for so long is ended
	pushTimeMax    = 5 * time.Second // for one push to be taken
)

// A session is the stream of one node in one reign.
type session struct {
	reign  *reign
	node   starling.NodeID
	stream transport.Stream
	done   chan struct{} // closed when the reader has ended
	beat   chan struct{} // a heartbeat waits for its renewal
	orders chan struct{} // an order waits to be sent
	mu     sync.Mutex    // a leaf: guards seq
	seq    uint64        // of the last heartbeat
	// What follows belongs to the writer.
	deltas   bool              // the node reads deltas
	answered uint64            // the last heartbeat that was answered
	base     *cluster.Topology // that the node has, as far as it is known here; nil for none
	index    uint64            // of the topology that was pushed last; 0 for none
	turn     uint64            // of the list of the living that was pushed last
	feed     uint64            // the feed was pushed up to this index
}

// attend serves one session until the stream fails, the node leaves or the reign ends.
func (g *reign) attend(s transport.Stream, peer transport.Peer, h cluster.Hello, local bool) {
	m := g.manager
	if _, ok := m.cfg.Machine.Topology().Node(peer.Node); !ok {
		_ = cluster.WriteMessage(s, cluster.MessageRedirect, cluster.Redirect{}) // the node asks again, here or elsewhere
		return
	}
	if err := cluster.WriteMessage(s, cluster.MessageWelcome, cluster.Welcome{Claim: g.claim}); err != nil {
		return
	}
	n := &session{reign: g, node: peer.Node, stream: s, done: make(chan struct{}), beat: make(chan struct{}, 1), orders: make(chan struct{}, 1), feed: h.Feed, deltas: h.Deltas}
	if h.Deltas && h.Topology != 0 {
		n.base = m.cfg.Machine.Past(h.Topology)
	}
	g.mu.Lock()
	if old := g.nodes[n.node]; old != nil {
		old.stream.Cancel()
	}
	g.nodes[n.node] = n
	g.ledger.Hello(n.node, h, local, m.cfg.Now())
	g.mu.Unlock()
	g.stir()
	select {
	case g.joined <- struct{}{}:
	default:
	}

	var writer sync.WaitGroup
	writer.Go(n.write)
	n.read()
	close(n.done)
	s.Cancel()
	writer.Wait()

	g.mu.Lock()
	if g.nodes[n.node] == n {
		delete(g.nodes, n.node)
	}
	g.mu.Unlock()
}

// read takes heartbeats until the stream fails or the node leaves.
func (n *session) read() {
	g := n.reign
	for {
		if n.stream.SetReadDeadline(time.Now().Add(heartbeatPause)) != nil {
			return
		}
		kind, body, err := cluster.ReadMessage(n.stream, cluster.MessageAskMax)
		if err != nil {
			return
		}
		var h cluster.Heartbeat
		if kind != cluster.MessageHeartbeat {
			continue // added by a newer node
		}
		if cluster.DecodeMessage(body, &h) != nil {
			return
		}
		g.manager.metrics.heartbeats.Inc()
		g.manager.metrics.heard.Add(cluster.MessageHead + len(body))
		g.mu.Lock()
		current := g.nodes[n.node] == n
		now := g.manager.cfg.Now()
		news := current && g.ledger.Heartbeat(n.node, h, now)
		if current && len(h.Done) > 0 {
			g.heard(n.node, h.Done, now)
			news = true
		}
		g.mu.Unlock()
		if !current {
			return
		}
		n.mu.Lock()
		n.seq = max(n.seq, h.Seq)
		n.mu.Unlock()
		if news {
			g.stir()
		}
		if h.Leaving {
			return
		}
		select {
		case n.beat <- struct{}{}:
		default:
		}
	}
}

// write pushes what changed and answers heartbeats until the session or the reign ends.
func (n *session) write() {
	g := n.reign
	for {
		applied := g.manager.cfg.Machine.Watch()
		g.mu.Lock()
		news := g.news
		g.mu.Unlock()
		if n.flush() != nil {
			n.stream.Cancel()
			return
		}
		select {
		case <-n.done:
			return
		case <-g.ended:
			_ = cluster.WriteMessage(n.stream, cluster.MessageRedirect, cluster.Redirect{})
			n.stream.Cancel()
			return
		case <-applied:
		case <-news:
		case <-n.beat:
		case <-n.orders:
		}
	}
}

// poke has the writer send the orders that wait.
func (n *session) poke() {
	select {
	case n.orders <- struct{}{}:
	default:
	}
}

// flush writes what the node has not been told: the topology first, because a lease is good only with it.
func (n *session) flush() error {
	g := n.reign
	if err := n.stream.SetWriteDeadline(time.Now().Add(pushTimeMax)); err != nil {
		return err
	}
	t := g.manager.cfg.Machine.Topology()
	g.mu.Lock()
	turn, alive := g.turn, g.alive
	g.mu.Unlock()
	if turn > 0 && (turn != n.turn || t.Index != n.index) {
		if err := n.push(t, turn, alive); err != nil {
			return err
		}
	}
	changes, to, ok := g.manager.cfg.Machine.Changes(n.feed)
	if len(changes) > 0 || !ok {
		if err := n.send(cluster.MessageFeed, cluster.FeedPush{To: to, Reset: !ok, Changes: changes}); err != nil {
			return err
		}
		n.feed = to
	}
	if err := n.renew(); err != nil {
		return err
	}
	g.mu.Lock()
	var orders []cluster.Order
	if g.nodes[n.node] == n {
		orders = g.desk.unsent(n.node)
	}
	g.mu.Unlock()
	for _, o := range orders { // after the topology, so that the node knows the epoch that the order names
		if err := n.send(cluster.MessageOrder, o); err != nil {
			return err
		}
	}
	return nil
}

// push tells the node what changed since it was told last: only that when it reads deltas, the whole topology when it does
// not or what it has is not remembered here.
func (n *session) push(t *cluster.Topology, turn uint64, alive []starling.NodeID) error {
	base := n.base
	if !n.deltas && t.Index != n.index {
		base = nil
	}
	p, err := n.reign.pushes.encoded(base, t, turn, alive, turn == n.turn)
	if err != nil {
		return err
	}
	n.turn, n.index, n.base = turn, t.Index, t
	return n.pass(p.kind, p.raw)
}

// send writes one message and counts it.
func (n *session) send(kind cluster.MessageKind, v any) error {
	raw, err := cluster.EncodeMessage(kind, v)
	if err != nil {
		return err
	}
	return n.pass(kind, raw)
}

func (n *session) pass(kind cluster.MessageKind, raw []byte) error {
	n.reign.manager.metrics.sent(kind, len(raw))
	_, err := n.stream.Write(raw)
	return err
}

// renew answers the newest heartbeat that has no answer yet.
func (n *session) renew() error {
	g := n.reign
	n.mu.Lock()
	seq := n.seq
	n.mu.Unlock()
	if seq == n.answered {
		return nil
	}
	t := g.manager.cfg.Machine.Topology()
	_, member := t.Node(n.node)
	g.mu.Lock()
	r := cluster.Renewal{Seq: seq, Index: t.Index}
	if g.names {
		r.Since = g.manager.cfg.Machine.Index()
	}
	if member && g.nodes[n.node] == n {
		r.Lease = g.ledger.Grant(n.node, g.manager.cfg.Now()).Microseconds()
	}
	g.mu.Unlock()
	n.answered = seq
	return n.send(cluster.MessageRenewal, r)
}
