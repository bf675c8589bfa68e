package manager

import (
	"slices"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/partmap"
)

// A Ledger is what a leader remembers of its nodes during its reign, and never longer: who was heard, until
// when each may hold a lease, what each has seen. It decides who is alive, who gets a lease, and whether a
// partition's owner is certain to have stopped. It reads no clock and has one caller at a time.
//
// Three rules make two owners at one instant impossible:
//
//  1. A lease is granted only until NodeLease after an instant at which the leader was certain to lead
//     (confirmed), and the next leader waits NodeLease after its claim: every lease of a predecessor is over
//     before a successor takes a partition away.
//  2. A lease ends on the node NodeLease after its heartbeat was sent, here NodeLease after it was heard.
//     Sending comes first, so the node stops first.
//  3. A partition is taken from a living owner by giving it to nobody first; it is given on when the owner says
//     that it has seen that, or when its lease is over.
type Ledger struct {
	self      starling.NodeID
	began     time.Time // of the reign's wait; moved when the leader finds that it was frozen
	Confirmed time.Time // the last instant at which the claim was certain to be the newest
	nodes     map[starling.NodeID]*member
	released  map[starling.PartitionID]release
}

// A member is one node.
type member struct {
	until   time.Time // no lease of it runs after this
	heard   time.Time // its last heartbeat; zero for never
	seen    uint64    // topology that it acts on
	fresh   bool      // it has just started and owns nothing, whatever the map says
	due     bool      // it was fresh already when the plan of this round was made
	fenced  bool      // partitions are being taken from it: no lease meanwhile
	leaving bool      // it gave up its lease
	load    cluster.Load

	level    cluster.Level // 0 when it was not heard in this reign
	takes    bool          // it carries out orders
	stopping bool          // it will leave soon
	rows     []partmap.Load
}

// A release is a partition that was taken from a living owner.
type release struct {
	from  starling.NodeID
	index uint64 // of the topology that tells
}

// NewLedger returns the ledger of a reign that began at began and was last certain of its claim at confirmed.
func NewLedger(self starling.NodeID, began, confirmed time.Time) *Ledger {
	return &Ledger{self: self, began: began, Confirmed: confirmed,
		nodes: map[starling.NodeID]*member{}, released: map[starling.PartitionID]release{}}
}

// member returns a node's entry. Of one not heard of yet it is assumed that a predecessor's lease runs.
func (l *Ledger) member(id starling.NodeID) *member {
	m := l.nodes[id]
	if m == nil {
		m = &member{}
		l.nodes[id] = m
	}
	return m
}

// Hello notes that a node opened a session. local says that it lives in this process: then an earlier life of
// it is certain to be over.
func (l *Ledger) Hello(id starling.NodeID, h cluster.Hello, local bool, now time.Time) {
	m := l.member(id)
	if h.Fresh && local {
		m.until = now
	}
	if h.Fresh {
		m.fresh, m.due = true, false
	}
	m.level, m.stopping = max(h.Level, 1), false
	m.leaving, m.heard = false, now
}

// Heartbeat notes a heartbeat and reports whether something the next round waits for has come.
func (l *Ledger) Heartbeat(id starling.NodeID, h cluster.Heartbeat, now time.Time) (news bool) {
	m := l.member(id)
	news = h.Seen > m.seen || h.Leaving
	m.heard, m.seen, m.load = now, max(m.seen, h.Seen), h.Load
	m.takes, m.stopping = h.Takes, h.Stopping
	if h.Report != nil {
		m.rows = h.Report.Rows[:min(len(h.Report.Rows), partmap.LoadMax)]
	}
	if h.Leaving {
		m.leaving, m.until = true, now
	}
	return news
}

// Grant returns how long a lease a node gets for the heartbeat that was noted last; 0 for none.
func (l *Ledger) Grant(id starling.NodeID, now time.Time) time.Duration {
	m := l.member(id)
	if m.fresh || m.fenced || m.leaving || now.Sub(m.heard) >= starling.NodeLease {
		return 0
	}
	lease := min(starling.NodeLease, l.Confirmed.Add(starling.NodeLease).Sub(now))
	if lease <= 0 {
		return 0
	}
	if until := m.heard.Add(starling.NodeLease); until.After(m.until) {
		m.until = until
	}
	return lease
}

// over reports whether every lease that the node may hold has ended.
func (l *Ledger) over(id starling.NodeID, now time.Time) bool {
	m := l.nodes[id]
	if m == nil {
		return !now.Before(l.began.Add(starling.NodeLease))
	}
	until := m.until
	if until.IsZero() {
		until = l.began.Add(starling.NodeLease)
	}
	return !now.Before(until)
}

// Alive reports whether a node counts as alive: it was heard within NodeLease, or the reign is too young to
// say that it was not.
func (l *Ledger) Alive(id starling.NodeID, now time.Time) bool {
	m := l.nodes[id]
	if m != nil && m.leaving {
		return false
	}
	return now.Before(l.began.Add(starling.NodeLease)) || l.hears(id, now)
}

// NextDeath returns how long after now the next node will count as dead if it stays silent, at most NodeLease.
func (l *Ledger) NextDeath(now time.Time) time.Duration {
	next := starling.NodeLease
	for _, m := range l.nodes {
		if d := m.heard.Add(starling.NodeLease).Sub(now); !m.leaving && d > 0 {
			next = min(next, d)
		}
	}
	return next
}

// behind returns a replica of the state that was not heard in this reign at the level or above, or a living node of
// another kind that is below it; 0 when there is none. What a replica does not know splits the state; what a host or a
// frontend does not know, that leases outlive a hand-over, costs calls.
func (l *Ledger) behind(t *cluster.Topology, level cluster.Level, now time.Time) starling.NodeID {
	for _, n := range t.Nodes {
		m := l.nodes[n.ID]
		if n.Replica != 0 && (m == nil || m.level < level) || l.hears(n.ID, now) && m.level < level {
			return n.ID
		}
	}
	return 0
}

func (l *Ledger) hears(id starling.NodeID, now time.Time) bool {
	m := l.nodes[id]
	return m != nil && !m.leaving && !m.heard.IsZero() && now.Sub(m.heard) < starling.NodeLease
}

// Thaw begins the wait anew after the leader itself stood still: what it did not hear meanwhile says nothing.
func (l *Ledger) Thaw(now time.Time) {
	l.began = now
	for _, m := range l.nodes {
		if !m.leaving {
			m.until = later(m.until, now.Add(starling.NodeLease))
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Picture says for every partition what its owner may still do, and who may become an owner.
func (l *Ledger) Picture(t *cluster.Topology, now time.Time) balance.Picture {
	p := balance.Picture{Map: t.Map, Claims: make([]balance.Claim, len(t.Map.Partitions)), Loads: map[starling.PartitionID]partmap.Load{}}
	for i, part := range t.Map.Partitions {
		p.Claims[i] = l.claim(t, part, now)
	}
	for _, n := range t.Nodes {
		if n.Roles.Has(starling.RoleScheduler) && l.hears(n.ID, now) {
			m := l.nodes[n.ID]
			p.Nodes = append(p.Nodes, balance.Node{ID: n.ID, Zone: n.Zone, Acquires: m.load.Acquires, Draining: n.Draining || m.stopping, Stopping: m.stopping})
			for _, row := range m.rows {
				if old, twice := p.Loads[row.Partition]; !twice || row.Epoch > old.Epoch {
					p.Loads[row.Partition] = row
				}
			}
		}
	}
	return p
}

// whyAssign says why a plan gives a partition to another owner, or to nobody.
func (l *Ledger) whyAssign(t *cluster.Topology, c partmap.Change) string {
	p, _ := t.Map.ByID(c.Partition)
	n, member := t.Node(p.Owner)
	m := l.nodes[p.Owner]
	_, released := l.released[p.ID]
	switch {
	case c.To == 0 && (n.Draining || m != nil && m.stopping):
		return p.Owner.String() + " is to be empty, and takes no orders"
	case c.To == 0:
		return p.Owner.String() + " has more partitions than others, and takes no orders"
	case p.Owner == 0 && released:
		return "its last owner has let go"
	case p.Owner == 0:
		return "nobody owned it"
	case !member:
		return p.Owner.String() + " was removed"
	case m != nil && m.leaving:
		return p.Owner.String() + " left"
	case m != nil && m.fresh:
		return p.Owner.String() + " restarted and forgot what it granted"
	}
	return p.Owner.String() + " is dead"
}

func (l *Ledger) claim(t *cluster.Topology, p partmap.Partition, now time.Time) balance.Claim {
	owner, free := p.Owner, false
	switch rel, ok := l.released[p.ID]; {
	case owner == 0 && p.Epoch == 0:
		return balance.Vacant // never owned
	case owner == 0 && ok:
		owner = rel.from
		free = l.member(owner).seen >= rel.index
	case owner == 0:
		free = !now.Before(l.began.Add(starling.NodeLease)) // a predecessor took it from somebody
	default:
		n, member := t.Node(owner)
		m := l.nodes[owner]
		gone := !member || !n.Roles.Has(starling.RoleScheduler) || m != nil && m.fresh || !l.hears(owner, now)
		if !gone {
			return balance.Held
		}
	}
	if free || l.over(owner, now) && owner != 0 {
		return balance.Vacant
	}
	return balance.Waiting
}

// Fence lets no owner that a plan takes partitions from as gone have a lease until settle. Call both in each
// round, even with an empty plan.
func (l *Ledger) Fence(m *partmap.Map, plan []partmap.Change) {
	for _, node := range l.nodes {
		node.due = node.fresh
	}
	for _, c := range plan {
		if p, ok := m.ByID(c.Partition); ok && p.Owner != 0 && c.To != 0 {
			l.member(p.Owner).fenced = true
		}
	}
}

// Settle ends the fence of a plan that the state has answered, and notes what it did: before and after are the
// maps around it.
func (l *Ledger) Settle(before *partmap.Map, after *cluster.Topology, plan []partmap.Change) {
	for _, c := range plan {
		p, _ := before.ByID(c.Partition)
		now, _ := after.Map.ByID(c.Partition)
		switch {
		case now.Epoch != c.Epoch+1 || now.Owner != c.To: // refused, or changed again by its new owner
		case c.To == 0:
			l.released[c.Partition] = release{from: p.Owner, index: after.Index}
		default:
			delete(l.released, c.Partition)
		}
	}
	for id, m := range l.nodes {
		m.fenced = false
		if m.due {
			m.fresh = ownsOld(id, after.Map, plan)
		}
	}
}

// ownsOld reports whether the node is still named as the owner of a partition that the plan did not give it: one of its
// former life, or one whose owner moved it there meanwhile, for a life that is over.
func ownsOld(id starling.NodeID, after *partmap.Map, plan []partmap.Change) bool {
	given := map[starling.PartitionID]starling.Epoch{}
	for _, c := range plan {
		if c.To == id {
			given[c.Partition] = c.Epoch + 1
		}
	}
	return slices.ContainsFunc(after.Partitions, func(p partmap.Partition) bool {
		return p.Owner == id && given[p.ID] != p.Epoch
	})
}
