package sim

import (
	"math/rand/v2"
	"slices"
	"time"

	"starling"
	"starling/actors/partition/handover"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched"
)

// A keeper runs the schedulers of the partitions that a node owns, as actors/partition does.
type keeper struct {
	n     *node
	parts map[starling.PartitionID]*part
	order []*part // by id
	alive []starling.NodeID
	lost  map[starling.PartitionID]*part          // whose schedulers failed
	still map[starling.PartitionID]starling.Epoch // in which nothing may be granted, whatever becomes of the part
	wall  time.Duration                           // how far the wall clock was off when the keeper was born

	offers uint64 // of states, so far
	held   map[starling.Range]*held
	strays map[starling.PartitionID]*stray
	busy   map[starling.PartitionID]bool     // being changed as ordered
	dead   map[starling.NodeID]time.Duration // those that died lately
	first  time.Duration                     // when it heard who lives

	borders handover.Borders
}

// A part is one partition in one epoch.
type part struct {
	k      *keeper
	entry  partmap.Partition
	sched  *sched.Scheduler
	until  time.Duration // of the node lease, as last told to the scheduler
	tickAt time.Duration // of the tick that is planned; 0 for none
	ended  bool
	frozen bool // nothing is decided; what comes is kept
	kept   []sched.Event
	from   *held         // the state it began with, until it can be reached
	gap    time.Duration // since when nobody grants, of one that goes on with a state and does not grant yet; 0 for none

	recovered starling.Epoch // of the last recovery, noted apart from the code under test
	acts      int            // grants and starts so far
	heir      *part          // that replaced it in the same epoch when it failed
}

func newKeeper(n *node) *keeper {
	return &keeper{n: n, parts: map[starling.PartitionID]*part{}, lost: map[starling.PartitionID]*part{}, still: map[starling.PartitionID]starling.Epoch{}, wall: n.wall,
		held: map[starling.Range]*held{}, strays: map[starling.PartitionID]*stray{}, dead: map[starling.NodeID]time.Duration{}, busy: map[starling.PartitionID]bool{}}
}

// follow makes the parts what the map says, and tells them who died.
func (k *keeper) follow() {
	w, v := k.n.w, &k.n.view
	var hosts []starling.NodeID
	if w.cfg.Static {
		for _, h := range w.hosts {
			hosts = append(hosts, h.id)
		}
	}
	for _, id := range v.alive {
		if w.node(id).host != nil || w.node(id).roles.Has(starling.RoleHost) {
			hosts = append(hosts, id)
		}
	}
	for _, id := range k.alive {
		if !slices.Contains(v.alive, id) {
			k.dead[id] = w.now
			for _, p := range slices.Clone(k.order) {
				p.step(sched.NodeDown{Node: id})
			}
		}
	}
	k.alive = v.alive
	if k.first == 0 && len(k.alive) > 0 {
		k.first = w.now
	}
	k.borders.Note(w.clock(), v.topology.Map)
	var order, began []*part
	for _, e := range v.topology.Map.Partitions {
		if e.Owner != k.n.id {
			continue
		}
		p := k.parts[e.ID]
		if k.failedStill(e) {
			continue
		}
		if p == nil || p.ended || p.entry.Epoch != e.Epoch {
			p = k.begin(e, hosts)
			began = append(began, p)
		}
		order = append(order, p)
	}
	old := k.order
	k.order = order
	clear(k.parts)
	for _, p := range order {
		k.parts[p.entry.ID] = p
	}
	for _, p := range began {
		p.used()
	}
	for _, p := range old {
		if !slices.Contains(order, p) {
			p.end()
		}
	}
	for id, epoch := range k.still {
		if e, ok := v.topology.Map.ByID(id); !ok || e.Epoch > epoch {
			delete(k.still, id)
		}
	}
}

// failed returns the part that failed in the epoch of e, or nil.
func (k *keeper) failed(e partmap.Partition) *part {
	if p := k.lost[e.ID]; p != nil && p.entry.Epoch == e.Epoch {
		return p
	}
	return nil
}

// failedStill reports whether the part of e failed in an epoch that stands still: it is not made anew.
func (k *keeper) failedStill(e partmap.Partition) bool {
	epoch, still := k.still[e.ID]
	return still && epoch == e.Epoch && k.parts[e.ID] == nil && k.failed(e) != nil && k.n.w.cfg.Plant != PlantAgain
}

// used drops the state that p began with, and gives p what came before.
func (p *part) used() {
	h, k := p.from, p.k
	if h == nil {
		return
	}
	if k.held[p.entry.Range] == h {
		delete(k.held, p.entry.Range)
	}
	p.from = nil
	for _, m := range h.early {
		p.take(m.From, m.Body)
	}
}

func (k *keeper) begin(e partmap.Partition, hosts []starling.NodeID) *part {
	w := k.n.w
	p := &part{k: k, entry: e, sched: sched.New(w.cfg.Sched, rand.New(rand.NewPCG(w.rng.Uint64(), w.rng.Uint64())))}
	seq, failed := uint64(w.clock().Add(k.wall).UnixMicro()), k.failed(e)
	again := failed != nil
	if again {
		seq = max(seq, failed.sched.Seq()+1)
		failed.heir, k.lost[e.ID] = p, p
	}
	h := k.find(e)
	if h == nil || again {
		w.trace("%v owns %v epoch %d", k.n.id, e.ID, e.Epoch)
		p.recovered = e.Epoch
		w.checks.begun(p)
		ev := sched.Activate{Partition: e.ID, Epoch: e.Epoch, Range: e.Range, Hosts: hosts, Seq: seq, Again: again, Cut: k.borders.Drawn(k.n.view.topology.Map, e),
			Fronts: k.fronts(), Missing: k.missing()}
		if w.cfg.Plant == PlantCensus {
			ev.Fronts, ev.Missing = nil, nil
		}
		p.step(ev)
		return p
	}
	w.trace("%v goes on with %v epoch %d since %d", k.n.id, e.ID, e.Epoch, e.Since)
	w.checks.restored(e, h)
	p.from, p.gap, p.recovered = h, h.truth.frozen, h.truth.since
	w.checks.begun(p)
	p.step(sched.Restore{Partition: e.ID, Epoch: e.Epoch, Since: e.Since, Range: e.Range, Seq: seq, Snapshot: *h.state, Versions: h.versions})
	for _, n := range w.nodes {
		if at, dead := k.dead[n.id]; dead && w.now-at <= 2*heldTime && !slices.Contains(k.alive, n.id) {
			p.step(sched.NodeDown{Node: n.id})
		}
	}
	return p
}

// fronts returns the frontends that live.
func (k *keeper) fronts() (ids []starling.NodeID) {
	for _, n := range k.n.w.fronts {
		if k.n.w.cfg.Static || slices.Contains(k.alive, n.id) {
			ids = append(ids, n.id)
		}
	}
	return ids
}

// missing returns the hosts that died lately, as far as this node knows.
func (k *keeper) missing() (ids []starling.NodeID) {
	w := k.n.w
	if w.cfg.Static {
		return nil
	}
	for _, n := range w.hosts {
		at, known := k.dead[n.id]
		if !known {
			at = k.first
		}
		if !slices.Contains(k.alive, n.id) && w.now-at <= missingTime {
			ids = append(ids, n.id)
		}
	}
	return ids
}

// missingTime is as in actors/partition.
const missingTime = starling.NodeLease + starling.LeaseTTL + time.Second

// end has the scheduler tell its waiting calls Moved.
func (p *part) end() {
	switch {
	case p.ended:
	case p.frozen:
		p.endFrozen()
	default:
		p.step(sched.Deactivate{})
		p.ended = true
	}
}

// receive hands a message to a partition; 0 stands for all. What is for one that was changed lately follows it.
func (k *keeper) receive(id starling.PartitionID, from starling.NodeID, m wire.Message) {
	if id == 0 {
		for _, p := range k.order {
			p.take(from, m)
		}
		return
	}
	if s := k.strayOf(id); s != nil {
		k.divert(id, s, from, m)
		return
	}
	k.deliver(id, from, m)
}

// deliver hands a message to a partition that lives here, or will in a moment. Calls for one that does not are told so.
func (k *keeper) deliver(id starling.PartitionID, from starling.NodeID, m wire.Message) {
	if p := k.parts[id]; p != nil {
		p.take(from, m)
		return
	}
	if k.early(id, from, m) {
		return
	}
	if r, ok := m.(*wire.Relay); ok {
		from, m = r.From, r.Body
	}
	if q, ok := m.(*wire.Acquire); ok {
		k.n.send(wire.Address{Node: from}, &wire.Reject{Call: q.Call, Partition: id, Reject: starling.Moved, Reason: sched.ReasonMoved, Message: "this node does not own the partition"})
	}
}

// step gives the scheduler one event and carries its effects out.
func (p *part) step(ev sched.Event) {
	if p.ended {
		return
	}
	if p.frozen {
		p.keep(ev)
		return
	}
	n := p.k.n
	if u := n.leaseUntil(); u != p.until {
		p.until = u
		p.apply(sched.LeaseUntil{Until: base.Add(u)})
	}
	p.apply(ev)
	if p.gap != 0 && p.sched.Status().Granting {
		n.w.planned.Gaps = append(n.w.planned.Gaps, n.w.now-p.gap)
		n.w.trace("%v %v grants %v after the freeze", n.id, p.entry.ID, n.w.now-p.gap)
		p.gap = 0
	}
	p.plan()
}

func (p *part) apply(ev sched.Event) {
	w, n := p.k.n.w, p.k.n
	if w.cfg.Plant == PlantStale && w.rng.IntN(50) == 0 {
		stale := *p.sched
		defer func() { *p.sched = stale }()
	}
	for _, e := range p.sched.Step(w.clock(), ev) {
		switch {
		case e.Body == nil && e.Account != "":
			p.lookupAccount(e.Account)
			continue
		case e.Body == nil:
			p.lookup(e.Version)
			continue
		case e.Keys != (starling.Range{}):
			p.spread(e.Keys, e.Body)
			continue
		}
		switch m := e.Body.(type) {
		case *wire.Grant:
			p.acts++
			w.checks.granted(p, e.To, &m.Lease)
		case *wire.Start:
			p.acts++
			w.checks.starts(p, m)
		}
		n.send(wire.Address{Node: e.To, Partition: e.Partition}, e.Body)
	}
}

// spread sends a message to every partition with keys in r, as the map of this node says.
func (p *part) spread(r starling.Range, m wire.Message) {
	for _, q := range p.k.n.view.topology.Map.Overlapping(r) {
		if q.Owner != 0 && q.ID != p.entry.ID {
			p.k.n.send(wire.Address{Node: q.Owner, Partition: q.ID}, m)
		}
	}
}

// plan has the scheduler woken when it wants to be.
func (p *part) plan() {
	t := p.sched.NextTick()
	if t.IsZero() {
		return
	}
	w := p.k.n.w
	at := max(t.Sub(base), w.now)
	if p.tickAt != 0 && p.tickAt <= at && p.tickAt >= w.now {
		return
	}
	p.tickAt = at
	p.k.n.after(at-w.now, func() {
		if p.tickAt == at {
			p.tickAt = 0
			p.step(sched.Tick{})
		}
	})
}

// lookup asks the catalog, which is a way through the network away and sometimes does not answer.
func (p *part) lookup(id starling.VersionID) {
	w := p.k.n.w
	if w.faulty() && w.rng.Float64() < w.cfg.Net.Loss {
		return
	}
	f := w.versions[id]
	p.k.n.after(2*w.cfg.Net.Delay, func() {
		if f == nil {
			p.step(sched.VersionGone{Version: id})
			return
		}
		v := f.version
		if w.cfg.Plant == PlantLimit {
			c := *v
			c.Config.InstanceMax = 0
			v = &c
		}
		p.step(sched.VersionKnown{Version: v, ConcurrencyMax: w.accountMax()})
	})
}

// lookupAccount is lookup of an account's limit.
func (p *part) lookupAccount(id starling.AccountID) {
	w := p.k.n.w
	if w.faulty() && w.rng.Float64() < w.cfg.Net.Loss {
		return
	}
	p.k.n.after(2*w.cfg.Net.Delay, func() { p.step(sched.AccountKnown{Account: id, ConcurrencyMax: w.accountMax()}) })
}

// accountMax is the limit of every account as the catalog tells it.
func (w *World) accountMax() int {
	if w.cfg.Plant == PlantLimit {
		return 10 * w.cfg.Accounts
	}
	return w.cfg.Accounts
}
