package sim

import (
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster"
	"starling/cluster/partmap"
)

// A node is one process of the cluster. Its parts live as long as it does; a restarted node has new ones.
type node struct {
	w     *World
	id    starling.NodeID
	roles starling.Roles
	zone  starling.Zone

	up      bool
	life    int             // how often it was started
	paused  bool            // stopped with SIGSTOP: what arrives waits
	backlog []runner        // what arrived and what was due meanwhile
	slept   time.Duration   // sum of the pauses
	since   time.Duration   // of the pause
	wall    time.Duration   // how far its wall clock is off; nothing may depend on it
	cutTo   []bool          // by receiver: messages to it are lost
	lastTo  []time.Duration // by receiver: when the last message of the link arrives

	lapsed time.Duration // when it last got a node lease after one had ended

	view  view
	mgr   *mgr
	parts *keeper
	front *frontend
	host  *host

	machine *machine // that it shares; nil where CPU has no bound
}

// running reports whether the node does anything now.
func (n *node) running() bool { return n.up && !n.paused }

// boot starts the parts of the node's roles.
func (n *node) boot() {
	n.up, n.life = true, n.life+1
	if !n.w.cfg.Static {
		n.lastTo = make([]time.Duration, len(n.w.nodes))
	}
	n.view = view{}
	n.mgr, n.parts, n.front, n.host = nil, nil, nil, nil
	if n.roles.Has(starling.RoleManager) && !n.w.cfg.Static {
		n.mgr = &mgr{n: n}
		n.mgr.open()
	}
	if n.roles.Has(starling.RoleScheduler) {
		n.parts = newKeeper(n)
	}
	if n.roles.Has(starling.RoleFrontend) {
		n.front = newFrontend(n)
	}
	if n.roles.Has(starling.RoleHost) {
		n.host = newHost(n)
	}
	if n.w.cfg.Static {
		n.view.topology = &cluster.Topology{Index: 1, Map: n.w.fixed}
		if n.parts != nil {
			n.parts.follow()
		}
		return
	}
	n.view.topology = &cluster.Topology{Map: &partmap.Map{}}
	n.beat()
}

// receive hands a message to the part that takes its kind.
func (n *node) receive(from *node, addr wire.Address, m wire.Message) {
	switch m.Kind() {
	case wire.KindGrant, wire.KindReject, wire.KindRecall, wire.KindRenewed, wire.KindCensus:
		if n.front != nil {
			n.front.receive(from.id, m)
		}
	case wire.KindStart, wire.KindStop, wire.KindFence:
		if n.host != nil {
			n.host.receive(from.id, m)
		}
	default:
		if n.parts != nil {
			n.parts.receive(addr.Partition, from.id, m)
		}
	}
}

// send posts a message of this node.
func (n *node) send(to wire.Address, m wire.Message) { n.w.send(n, to, m) }

// A timer is something a node does later, unless it dies before.
type timer struct {
	n    *node
	life int
	f    func()
}

func (t *timer) run(*World) {
	switch {
	case !t.n.up || t.n.life != t.life:
	case t.n.paused:
		t.n.backlog = append(t.n.backlog, t)
	default:
		t.f()
	}
}

// after lets f happen on this node after d.
func (n *node) after(d time.Duration, f func()) { n.w.at(d, &timer{n, n.life, f}) }

// tell lets f happen on another node when a control message of this one arrives there; when the link is cut before,
// the stream has failed and lost happens instead.
func (n *node) tell(to *node, f, lost func()) {
	w := n.w
	if n != to && w.cut(n, to) || !to.up {
		lost()
		return
	}
	d := time.Duration(0)
	if n != to {
		d = w.delay(n, to)
	}
	life := to.life
	w.at(d, do(func() {
		if n != to && w.cut(n, to) {
			lost()
			return
		}
		(&timer{to, life, f}).run(w)
	}))
}

// nothing is what a node does about a stream that fails when somebody else will notice.
func nothing() {}

// crash ends the node with everything it has in memory.
func (n *node) crash() {
	w := n.w
	w.trace("%v CRASH", n.id)
	n.up, n.paused, n.backlog = false, false, nil
	if n.parts != nil {
		for _, p := range n.parts.order {
			p.ended = true
		}
		n.parts.parts = map[starling.PartitionID]*part{}
	}
	for c := w.open.first; c != nil; {
		next := c.next
		switch {
		case c.front.n == n:
			c.end(endConnection, "the frontend died")
		case c.host != nil && c.host.n == n && c.atHost:
			c.lostHost()
		}
		c = next
	}
	if n.host != nil {
		n.host.die()
	}
}

// pause stops the process, as SIGSTOP does.
func (n *node) pause() {
	n.w.trace("%v STOPPED", n.id)
	n.paused, n.since = true, n.w.now
}

// resume lets it run on: what came meanwhile comes now, in order.
func (n *node) resume() {
	n.w.trace("%v CONTINUED after %v", n.id, n.w.now-n.since)
	n.paused = false
	n.slept += n.w.now - n.since
	list := n.backlog
	n.backlog = nil
	for _, r := range list {
		n.w.at(0, r)
	}
}

// A view is what one node knows of the cluster.
type view struct {
	topology *cluster.Topology
	alive    []starling.NodeID
	until    time.Duration // of the node lease
	claim    uint64        // the highest seen: a leader with a lower one is deposed
	leader   *node         // whom it has a session with; nil while it looks for one
	reign    *reign        // of the session
	heard    time.Duration // last word of the leader
	tried    int           // which manager was asked last
	whole    bool          // a delta did not fit: the next session begins with a whole topology
	beats    int           // that were counted
}

// beat sends a heartbeat, or looks for the leader when there is none, ten times a second.
func (n *node) beat() {
	n.heartbeat()
	n.after(starling.HeartbeatInterval, n.beat)
}

func (n *node) heartbeat() {
	v := &n.view
	if v.leader != nil && n.w.now-v.heard > 3*starling.HeartbeatInterval {
		v.leader, v.reign = nil, nil
	}
	if v.leader == nil {
		v.tried = (v.tried + 1) % n.w.cfg.Managers
		m := n.w.nodes[v.tried]
		fresh, has := v.until == 0, v.topology
		if v.whole || has.Index == 0 {
			has = nil
		}
		n.tell(m, func() { m.mgr.hello(n, fresh, has) }, nothing)
		return
	}
	m, g, sent := v.leader, v.reign, n.w.now
	h := cluster.Heartbeat{Seen: v.topology.Index}
	n.tell(m, func() { m.mgr.heartbeat(n, g, h, sent) }, nothing)
}

// welcome opens a session unless the leader has a successor.
func (n *node) welcome(m *node, g *reign) {
	v := &n.view
	if g.claim < v.claim {
		return
	}
	v.claim, v.leader, v.reign, v.heard = g.claim, m, g, n.w.now
	n.heartbeat()
}

// push takes what changed of the topology and who lives. An older topology than the one in hand is dropped; what does
// not fit ends the session.
func (n *node) push(g *reign, push any) {
	v := &n.view
	if v.reign != g {
		return
	}
	v.heard = n.w.now
	switch p := push.(type) {
	case cluster.TopologyPush:
		v.whole, v.alive = false, p.Alive
		if p.Topology != nil && p.Topology.Index > v.topology.Index {
			v.topology = p.Topology
		}
	case cluster.TopologyDelta:
		if p.Index > v.topology.Index {
			t, err := v.topology.Patch(p)
			if err != nil {
				n.w.trace("%v refuses topology %d: %v", n.id, p.Index, err)
				v.leader, v.reign, v.whole = nil, nil, true
				return
			}
			v.topology = t
		}
		if !p.Same {
			v.alive = p.Alive
		}
	}
	n.w.trace("%v hears of topology %d, alive %v", n.id, v.topology.Index, v.alive)
	if n.parts != nil {
		n.parts.follow()
	}
	if n.front != nil {
		n.front.cache.MapChanged(n.w.now)
	}
	n.heartbeat()
}

// renewed takes a lease that a heartbeat earned; it counts from when that was sent.
func (n *node) renewed(g *reign, sent, length time.Duration, index uint64) {
	v := &n.view
	if v.reign != g {
		return
	}
	v.heard = n.w.now
	n.w.trace("%v lease from %v for %v, index %d of %d", n.id, sent, length, index, v.topology.Index)
	if index > v.topology.Index { // the push before it was of a session that this node had given up: it did not come on this one's stream
		v.leader, v.reign = nil, nil
		return
	}
	length = min(length, starling.NodeLease)
	if length > 0 {
		if n.barred() {
			n.lapsed = n.w.now
		}
		v.until = max(v.until, sent+length)
	}
}

// barred reports whether the node lease is over: nothing may be granted, and no call begun.
func (n *node) barred() bool { return n.leaseUntil()-starling.NodeLeaseGuard <= n.w.now }

// leaseUntil is when the node lease ends.
func (n *node) leaseUntil() time.Duration {
	switch p := n.w.cfg.Plant; {
	case n.w.cfg.Static, p == PlantNoGuard, p == PlantNoFence, p == PlantHonour:
		return 100 * 365 * 24 * time.Hour
	}
	return n.view.until
}
