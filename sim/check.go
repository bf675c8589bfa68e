package sim

import (
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster"
	"starling/cluster/partmap"
)

// Check says what is looked at. The zero value looks at nothing; All is for seeds.
type Check struct {
	Answers bool // one answer for each call
	Starved bool // no call waits beyond its bound
	Owners  bool // at most one owner grants for a key at any instant
	Tenants bool // no instance serves two versions, and so no two accounts
	Fences  bool // no host honours a lease or a start of a past epoch
	Slots   bool // no instance has more calls than slots, no host more memory than it has
	Limits  bool // no function is granted more than its limit
	Account bool // no account is granted more than its limit over all partitions
	Map     bool // the partition map tiles the key space
	Books   int  // every so many steps each scheduler's books are summed up anew; 0 for never
	Permits bool // what an account does not use is with its ledger again within two seconds
	Rest    bool // at rest, schedulers and hosts agree
}

// All returns every check.
func All() Check {
	return Check{Answers: true, Starved: true, Owners: true, Tenants: true, Fences: true, Slots: true, Limits: true, Account: true, Map: true, Books: 100, Permits: true, Rest: true}
}

// A checker looks at a world after every step and at what it does meanwhile.
type checker struct {
	w         *World
	owners    []ownership
	rights    rights
	since     map[life]starling.Epoch // when the books of a partition were last made by asking hosts
	lastGrant wire.Grant              // of PlantCorruptNet
	unused    unused
}

// An ownership is who granted last in a range.
type ownership struct {
	over      starling.Range
	partition starling.PartitionID
	epoch     starling.Epoch
	node      *node
	life      int
}

// A tenancy is the truth about one instance, noted apart from the code under test.
type tenancy struct {
	serves *function      // whom it has served
	epoch  starling.Epoch // of the last recovery that it was told of
	shown  map[shown]bool // leases that were used here
}

type shown struct {
	partition starling.PartitionID
	epoch     starling.Epoch
	id        starling.LeaseID
}

// fenced notes that a fence has reached the host.
func (k *checker) fenced(t *tenancy, m *wire.Fence) {
	t.epoch = max(t.epoch, k.since[life{m.Partition, m.Epoch}])
}

// begun notes since when the books of a new life are good.
func (k *checker) begun(p *part) {
	if k.since == nil {
		k.since = map[life]starling.Epoch{}
	}
	k.since[life{p.entry.ID, p.entry.Epoch}] = p.recovered
}

// A life is one partition in one epoch.
type life struct {
	partition starling.PartitionID
	epoch     starling.Epoch
}

// step looks at what costs little.
func (k *checker) step() {
	w := k.w
	if c := w.open.first; c != nil && w.cfg.Check.Starved {
		if late := w.now - c.giveUp - c.exec - (k.slept() - c.slept); late > lateMax {
			w.fail("call %d of %s arrived at %v and has no answer %v after its bound", c.id, c.f.version.Function, c.began, late)
		}
	}
	if n := w.cfg.Check.Books; n > 0 && w.steps%uint64(n) == 0 {
		k.books()
	}
	if w.cfg.Check.Permits && w.calm && w.now >= k.unused.at {
		k.permits()
	}
}

// lateMax is what a call may be late: looks of its frontend, a lost host noticed twice, an answer on its way.
const lateMax = 3 * time.Second

// slept is how long nodes were stopped so far, those that still are included.
func (k *checker) slept() (d time.Duration) {
	if k.w.cfg.Static {
		return 0
	}
	for _, n := range k.w.nodes {
		d += n.slept
		if n.paused {
			d += k.w.now - n.since
		}
	}
	return d
}

// answered looks at one answer.
func (k *checker) answered(c *call) {
	if k.w.cfg.Check.Answers && c.answers != 1 {
		k.w.fail("call %d of %s got %d answers", c.id, c.f.version.Function, c.answers)
	}
}

// granted looks at one grant to a frontend.
func (k *checker) granted(p *part, to starling.NodeID, l *starling.Lease) {
	w := k.w
	k.owns(p)
	f := w.versions[l.Version]
	if w.cfg.Check.Limits && f != nil {
		if leased := p.sched.Leased(l.Version); leased > f.limit {
			w.fail("%v granted %d slots of %s, its limit is %d", p.entry.ID, leased, f.version.Function, f.limit)
		}
	}
	if (w.cfg.Check.Account || w.cfg.Check.Limits && !w.cfg.Static) && f != nil {
		k.rights.account(w, f, &right{lease: *l, to: w.node(to), life: w.node(to).life, granted: w.now, booked: w.now + w.cfg.Sched.LeaseTTL + w.cfg.Sched.LeaseGrace})
	}
}

// starts looks at the order to start an instance: only who may grant may give it.
func (k *checker) starts(p *part, m *wire.Start) {
	k.owns(p)
	if f := k.w.versions[m.Version]; f != nil && k.unused.since != nil { // what starts needs permits, be it for a millisecond
		id := starling.AccountID(f.Account)
		k.unused.since[id], k.unused.back[id] = k.w.now, false
	}
}

// owns notes that p acts as the owner of its range, and looks whether somebody of a later life did so before.
func (k *checker) owns(p *part) {
	w := k.w
	if !w.cfg.Check.Owners {
		return
	}
	n := p.k.n
	me := ownership{p.entry.Range, p.entry.ID, p.entry.Epoch, n, n.life}
	for _, o := range k.owners {
		if o == me {
			return
		}
	}
	kept := k.owners[:0]
	for _, o := range k.owners {
		switch {
		case !overlap(o.over, me.over):
		case o.epoch > me.epoch:
			w.fail("%v grants in %v at epoch %d, after %v did at epoch %d", n.id, me.over, me.epoch, o.node.id, o.epoch)
		case o.epoch == me.epoch:
			w.fail("%v and %v both grant in %v at epoch %d", o.node.id, n.id, me.over, me.epoch)
		}
		if !within(o.over, me.over) {
			kept = append(kept, o)
		}
	}
	k.owners = append(kept, me)
}

// within reports whether all keys of a are in b.
func within(a, b starling.Range) bool {
	return b.Lo <= a.Lo && (b.Hi == 0 || a.Hi != 0 && a.Hi <= b.Hi)
}

// partitions returns how many partitions there are now.
func (w *World) partitions() int {
	if w.cfg.Static {
		return w.cfg.Partitions
	}
	return len(w.raft.state.Topology().Map.Partitions)
}

// restored looks at a state with which a partition goes on: whoever had it before must not have acted since it was taken.
func (k *checker) restored(e partmap.Partition, h *held) {
	if !k.w.cfg.Check.Owners {
		return
	}
	for _, o := range h.truth.of {
		acts := o.p.acts
		for p := o.p.heir; p != nil; p = p.heir {
			acts += p.acts
		}
		if acts != o.acts {
			k.w.fail("%v goes on at epoch %d with a state after which its former owner granted or started something", e.ID, e.Epoch)
		}
	}
}

func overlap(a, b starling.Range) bool {
	return (b.Hi == 0 || a.Lo < b.Hi) && (a.Hi == 0 || b.Lo < a.Hi)
}

// started looks at a start that a host accepts.
func (k *checker) started(i *instance, m *wire.Start) {
	i.truth.epoch = m.Epoch
}

// entered looks at a call that a host lets begin.
func (k *checker) entered(i *instance, c *call) {
	w, check := k.w, &k.w.cfg.Check
	if check.Tenants {
		if t := &i.truth; t.serves == nil {
			t.serves = c.f
		} else if t.serves != c.f {
			w.fail("%v serves %s after %s", i.id, c.f.version.Function, t.serves.version.Function)
		}
	}
	if n := i.f.version.Config.Concurrency; check.Slots && i.busy > n {
		w.fail("%v has %d calls in %d slots", i.id, i.busy, n)
	}
	if check.Fences {
		k.shows(i, &c.lease.Lease)
	}
	if check.Limits && w.cfg.Static && c.f.running > c.f.limit {
		w.fail("%d calls of %s run, its limit is %d", c.f.running, c.f.version.Function, c.f.limit)
	}
}

// shows looks at a lease that a host honours: of a past epoch it may only be one that was in use.
func (k *checker) shows(i *instance, l *starling.Lease) {
	key := shown{l.Partition, l.Epoch, l.ID}
	if l.Epoch < i.truth.epoch && !i.truth.shown[key] {
		k.w.fail("%v honours a lease of epoch %d that it had never seen before the recovery of epoch %d", i.id, l.Epoch, i.truth.epoch)
	}
	if i.truth.shown == nil {
		i.truth.shown = map[shown]bool{}
	}
	i.truth.shown[key] = true
}

// memory looks at a host's claims.
func (k *checker) memory(h *host) {
	if k.w.cfg.Check.Slots && h.used > k.w.cfg.HostMiB {
		k.w.fail("%v has given out %d MiB of %d", h.n.id, h.used, k.w.cfg.HostMiB)
	}
}

// tiles looks at a map that reaches a node.
func (k *checker) tiles(t *cluster.Topology) {
	if k.w.cfg.Check.Map {
		if err := t.Map.Check(); err != nil {
			k.w.fail("the map of index %d: %v", t.Index, err)
		}
	}
}

// books sums up every scheduler anew.
func (k *checker) books() {
	for _, n := range k.w.fronts {
		for _, p := range n.parts.order {
			if err := p.sched.Check(); err != nil {
				k.w.fail("the books of %v on %v: %v", p.entry.ID, n.id, err)
			}
		}
	}
}

// rest looks at a world in which nothing happens any more: no slot is leased, nobody waits, and the schedulers know
// exactly the instances that the hosts run.
func (k *checker) rest() {
	w := k.w
	if !w.cfg.Check.Rest {
		return
	}
	if w.open.n > 0 {
		w.fail("%d calls have no answer", w.open.n)
	}
	booked, run, parts := 0, 0, 0
	for _, n := range w.fronts {
		for _, p := range n.parts.order {
			st := p.sched.Status()
			booked += st.Instances
			parts++
			if st.Leased > 0 || st.Waiting > 0 {
				w.fail("%v on %v at rest: %d slots leased, %d calls wait", st.Partition, n.id, st.Leased, st.Waiting)
			}
		}
		if live := n.front.cache.Live(); live > 0 {
			w.fail("%v at rest holds %d leases", n.id, live)
		}
	}
	for _, n := range w.hosts {
		run += len(n.host.all)
	}
	if booked != run {
		w.fail("at rest the hosts run %d instances, the schedulers know of %d", run, booked)
	}
	if n := w.partitions(); parts != n {
		w.fail("at rest %d of %d partitions have an owner", parts, n)
	}
}
