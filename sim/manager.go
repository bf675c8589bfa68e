package sim

import (
	"errors"
	"slices"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/manager"
	"starling/cluster/partmap"
)

// A raft is the replicated log as its users see it: one leader that a majority follows, commits that take time, and
// proposals whose outcome is unknown. What it decides on is the real cluster.State.
type raft struct {
	state  *cluster.State
	index  uint64
	leader *node
	down   time.Duration // since when the leader has no majority
}

const (
	electEvery = 100 * time.Millisecond
	electAfter = 300 * time.Millisecond // without a working leader
	roundEvery = 40 * time.Millisecond
	commitMax  = 5 * time.Millisecond // drawn on top of two ways through the network
)

// found makes the cluster: its name, nodes, accounts and functions.
func (w *World) found() {
	w.raft.state = cluster.NewState()
	w.apply(&cluster.InitCluster{Name: "sim", Partitions: w.cfg.Partitions})
	for _, n := range w.nodes {
		add := cluster.AddNode{PublicKey: [32]byte{byte(n.id), byte(n.id >> 8)}, Now: base.Unix(),
			Node: starling.Node{Name: n.id.String(), Addr: n.id.String() + ":1", Roles: n.roles, Zone: n.zone}}
		if n.id > 1 {
			add.Token = [32]byte{1, byte(n.id), byte(n.id >> 8)}
			w.apply(&cluster.AddToken{Hash: add.Token, Roles: n.roles, Expires: base.Unix() + 1000, Now: base.Unix()})
		}
		w.apply(&add)
	}
	clear(w.versions)
	known := map[string]bool{}
	for _, f := range w.functions {
		if !known[f.Account] {
			known[f.Account] = true
			w.apply(&cluster.CreateAccount{Account: starling.Account{ID: starling.AccountID(f.Account), ConcurrencyMax: w.cfg.Accounts}})
		}
		r := w.apply(&cluster.PutFunction{Function: f.version.Function, Config: f.version.Config, Code: codeHash, CodeSize: 1, Now: base.Unix()})
		if r.Version != nil {
			f.version = r.Version
			w.versions[r.Version.ID] = f
		}
	}
	w.at(electEvery, do(w.elect))
	w.raft.leader = w.nodes[0]
}

// codeHash is what every function runs.
const codeHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// apply carries out a command of the founder, which cannot be refused.
func (w *World) apply(c cluster.Command) cluster.Reply {
	raw, err := cluster.EncodeCommand(c)
	if err == nil {
		var r cluster.Reply
		w.raft.index++
		if r, err = cluster.DecodeReply(w.raft.state.Apply(w.raft.index, raw)); err == nil {
			return r
		}
	}
	w.fail("the cluster cannot be founded: %v", err)
	return cluster.Reply{}
}

// majority reports whether n reaches more than half of the managers, itself among them.
func (w *World) majority(n *node) bool {
	reached := 0
	for _, m := range w.nodes[:w.cfg.Managers] {
		if m.up && w.connected(n, m) {
			reached++
		}
	}
	return 2*reached > w.cfg.Managers
}

// elect replaces a leader that has no majority.
func (w *World) elect() {
	r := &w.raft
	w.at(electEvery, do(w.elect))
	if r.leader != nil && r.leader.running() && w.majority(r.leader) {
		r.down = 0
		return
	}
	if r.down += electEvery; r.down < electAfter {
		return
	}
	var able []*node
	for _, m := range w.nodes[:w.cfg.Managers] {
		if m.running() && w.majority(m) {
			able = append(able, m)
		}
	}
	if len(able) > 0 {
		r.leader, r.down = able[w.rng.IntN(len(able))], 0
		w.trace("raft: %v leads", r.leader.id)
	}
}

var errNoOutcome = errors.New("the proposal has no known outcome")

// propose has a command committed or not; done hears on n, and may hear that nobody knows.
func (w *World) propose(n *node, c cluster.Command, done func(r cluster.Reply, err error)) {
	raw, err := cluster.EncodeCommand(c)
	if err != nil {
		w.fail("a command cannot be encoded: %v", err)
		return
	}
	life := n.life
	answer := func(f func()) { (&timer{n, life, f}).run(w) }
	w.at(2*w.cfg.Net.Delay+time.Duration(w.rng.Int64N(int64(commitMax))), do(func() {
		r := &w.raft
		if r.leader != n || !n.up || !n.paused && !w.majority(n) {
			answer(func() { done(cluster.Reply{}, errNoOutcome) })
			return
		}
		if _, change := c.(*cluster.ChangeMap); change && w.hostile() && w.rng.IntN(40) == 0 { // it comes true later
			w.at(w.upTo(500*time.Millisecond), do(func() { w.commit(n, raw) }))
			answer(func() { done(cluster.Reply{}, errNoOutcome) })
			return
		}
		encoded := w.commit(n, raw)
		lost := w.faulty() && w.rng.IntN(20) == 0 && (w.hostile() || !ofOwner(c))
		answer(func() {
			reply, err := cluster.DecodeReply(encoded)
			if lost {
				err = errNoOutcome
			}
			done(reply, err)
		})
	}))
}

// ofOwner reports whether a command is an owner's change of its partition.
func ofOwner(c cluster.Command) bool {
	m, ok := c.(*cluster.ChangeMap)
	return ok && m.Claim == 0
}

// commit applies a command; the replicas hear of it.
func (w *World) commit(n *node, raw []byte) []byte {
	r := &w.raft
	r.index++
	encoded := r.state.Apply(r.index, raw)
	for _, m := range w.nodes[:w.cfg.Managers] {
		if m != n && n.up {
			n.tell(m, func() { m.mgr.follow() }, nothing)
		}
	}
	(&timer{n, n.life, func() { n.mgr.follow() }}).run(w)
	return encoded
}

// A mgr is the manager of one node: the leader's loop around the real ledger and balancer.
type mgr struct {
	n        *node
	topology *cluster.Topology // as far as this replica has applied
	leads    bool              // as far as it knows
	claiming bool
	reign    *reign
}

// A reign is the time between a claim and its end.
type reign struct {
	claim  uint64
	ledger *manager.Ledger
	lives  map[starling.NodeID]int // of the nodes with a session
	told   map[starling.NodeID]told
	alive  []starling.NodeID
	turn   uint64
	moved  time.Time
	last   time.Time
	busy   bool // a proposal is under way
}

// told is what a session has pushed last.
type told struct {
	turn, index uint64
	base        *cluster.Topology // that the node has then; nil when it is not known
}

func (m *mgr) open() {
	m.topology = m.n.w.raft.state.Topology()
	m.tick()
	m.confirm()
}

// follow applies what is committed.
func (m *mgr) follow() {
	m.topology = m.n.w.raft.state.Topology()
	if m.reign != nil {
		m.flush()
	}
}

// tick looks who leads, claims the lead, and plans.
func (m *mgr) tick() {
	w := m.n.w
	m.n.after(roundEvery, m.tick)
	switch leader := w.raft.leader == m.n; {
	case leader:
		m.leads = true
	case w.majority(m.n):
		m.leads, m.reign = false, nil
		m.topology = w.raft.state.Topology()
	}
	switch {
	case m.leads && m.reign == nil && !m.claiming:
		m.claim()
	case m.reign != nil && !m.reign.busy:
		m.round()
	}
}

func (m *mgr) claim() {
	w, began := m.n.w, m.n.w.clock()
	m.claiming = true
	w.propose(m.n, &cluster.ClaimLead{Node: m.n.id}, func(r cluster.Reply, err error) {
		m.claiming = false
		if err != nil || r.Claim == nil {
			return
		}
		w.trace("%v reigns, claim %d", m.n.id, r.Claim.Index)
		m.reign = &reign{claim: r.Claim.Index, ledger: manager.NewLedger(m.n.id, w.clock(), began), lives: map[starling.NodeID]int{},
			told: map[starling.NodeID]told{}, last: w.clock()}
	})
}

// confirm proves ten times a second that the claim is the newest, and ends the reign when it is not, or when that
// could not be proven for a whole lease.
func (m *mgr) confirm() {
	w, g, began := m.n.w, m.reign, m.n.w.clock()
	m.n.after(starling.HeartbeatInterval, m.confirm)
	if g == nil {
		return
	}
	if began.Sub(g.ledger.Confirmed) > starling.NodeLease {
		m.reign, m.leads = nil, false
		return
	}
	m.n.after(2*w.cfg.Net.Delay, func() {
		if m.reign != g || w.raft.leader != m.n || !w.majority(m.n) {
			return
		}
		reply, err := w.raft.state.Query(cluster.Query{What: cluster.QueryClaim})
		if err != nil || reply.Claim.Index != g.claim {
			m.reign = nil
			return
		}
		g.ledger.Confirmed = began
	})
}

// The pace at which partitions are taken from living owners.
const (
	moveMax   = 4
	movePause = 500 * time.Millisecond
)

// round tells who lives, plans on one picture, proposes the plan and notes what came of it.
func (m *mgr) round() {
	w, g, t, now := m.n.w, m.reign, m.topology, m.n.w.clock()
	if now.Sub(g.last) > starling.NodeLease/2 {
		g.ledger.Thaw(now)
	}
	g.last = now
	m.count(now)
	moves := 0
	if w.cfg.Faults.Orders == 0 && now.Sub(g.moved) >= movePause { // where owners take orders, nothing is taken from them
		moves = moveMax
	}
	var plan []partmap.Change
	w.cfg.Meter.planning(func() { plan = balance.Plan(g.ledger.Picture(t, now), moves) })
	g.ledger.Fence(t.Map, plan)
	if len(plan) == 0 {
		g.ledger.Settle(t.Map, t, plan)
		m.flush()
		return
	}
	g.busy = true
	w.trace("%v plans %v", m.n.id, plan)
	w.propose(m.n, &cluster.ChangeMap{Changes: plan, Claim: g.claim}, func(_ cluster.Reply, err error) {
		if m.reign != g {
			return
		}
		if err != nil {
			m.reign = nil // it may still come true: not under this claim
			return
		}
		g.busy, g.last = false, w.clock()
		g.ledger.Settle(t.Map, m.topology, plan)
		if slices.ContainsFunc(plan, func(c partmap.Change) bool { return c.To == 0 }) {
			g.moved = now
		}
		m.flush()
	})
}

// count finds who lives.
func (m *mgr) count(now time.Time) {
	g := m.reign
	var alive []starling.NodeID
	for _, n := range m.topology.Nodes {
		if g.ledger.Alive(n.ID, now) {
			alive = append(alive, n.ID)
		}
	}
	if g.turn == 0 || !slices.Equal(alive, g.alive) {
		g.alive = alive
		g.turn++
	}
}

// hello opens a session with a node, if this manager leads.
func (m *mgr) hello(n *node, fresh bool, has *cluster.Topology) {
	g := m.reign
	if g == nil {
		return
	}
	g.lives[n.id] = n.life
	g.told[n.id] = told{}
	if has != nil && has.Index <= m.topology.Index { // what is remembered of the past, and everything is
		g.told[n.id] = told{base: has}
	}
	g.ledger.Hello(n.id, cluster.Hello{Fresh: fresh, Level: cluster.LevelNow}, n == m.n, n.w.clock())
	m.n.tell(n, func() { n.welcome(m.n, g) }, func() { delete(g.lives, n.id) })
}

// heartbeat notes a heartbeat and answers it: the topology first, because a lease is good only with it.
func (m *mgr) heartbeat(n *node, g *reign, h cluster.Heartbeat, sent time.Duration) {
	if m.reign != g || g.lives[n.id] != n.life {
		return
	}
	n.w.cfg.Meter.heard(n, h)
	news := g.ledger.Heartbeat(n.id, h, n.w.clock())
	if news && !g.busy {
		m.round()
	}
	m.pushTo(n)
	index := m.topology.Index
	length := g.ledger.Grant(n.id, n.w.clock())
	n.w.cfg.Meter.renewed(length, index)
	m.n.tell(n, func() { n.renewed(g, sent, length, index) }, func() { delete(g.lives, n.id) })
}

// flush tells every node with a session what it has not been told.
func (m *mgr) flush() {
	for _, n := range m.n.w.nodes {
		if m.reign.lives[n.id] == n.life {
			m.pushTo(n)
		}
	}
}

func (m *mgr) pushTo(n *node) {
	g, t, last := m.reign, m.topology, m.reign.told[n.id]
	if g.turn == 0 || last.turn == g.turn && last.index == t.Index {
		return
	}
	index := t.Index
	if n.w.cfg.Plant == PlantGap && index%2 == 0 {
		t = gap(t)
	}
	g.told[n.id] = told{g.turn, index, t}
	if meter := n.w.cfg.Meter; meter != nil && meter.Whole && index != last.index {
		last.base = nil
	}
	kind, push := cluster.Push(last.base, t, g.alive, last.turn == g.turn)
	n.w.cfg.Meter.pushed(kind, push)
	m.n.tell(n, func() {
		n.w.checks.tiles(t)
		n.push(g, push)
	}, func() { delete(g.lives, n.id) }) // the node hears nothing more, and opens another session
}
