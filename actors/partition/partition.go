// Package partition runs the scheduler of each partition this node owns as a virtual actor: the map decides who
// lives, the epoch is part of the name, and nothing is decided here.
package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/protoactor"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched"
)

// An actor is one partition in one epoch on this node. Everything but the atomics belongs to the goroutine that
// handles its mailbox.
type actor struct {
	keeper *Keeper
	entry  partmap.Partition
	ref    *protoactor.Ref
	sched  *sched.Scheduler
	until  time.Time // last told to the scheduler
	out    outgoing
	from   *held     // the state it began with, until it can be reached; of the map's goroutine
	frozen bool      // nothing is decided; what comes is kept
	kept   []any     // messages of the mailbox
	events int       // in kept
	left   bool      // its partition lives elsewhere: what still comes follows it
	noted  time.Time // until when it may grant, as the audit has it

	ticking  atomic.Bool  // a tick is in the mailbox
	idle     atomic.Bool  // nothing happens here: a look every restBeats is enough
	next     atomic.Int64 // Unix nanoseconds of the next tick wanted; 0 for none
	status   atomic.Pointer[Status]
	floors   atomic.Pointer[sched.Provisioned] // told
	numbers  atomic.Pointer[numbers]           // nil in its first moment
	acquired uint64                            // acquires at the last status
	statusAt time.Time                         // of the last status
	meter    meter
}

// The messages of the mailbox, beside sched events.
type (
	batch struct {
		from starling.NodeID
		msgs []wire.Message
	}
	tick struct{}
	end  struct{}
	show struct {
		rows int
		to   chan<- []sched.VersionStatus // of capacity 1
	}
	inUse  struct{ to chan<- []starling.VersionID } // of capacity 1
	cut    struct{ to chan<- bool }                 // of capacity 1; may the state be divided?
	freeze struct {
		to  chan<- frozen // of capacity 1
		cut bool          // the state is to be divided
	}
	thaw struct{}
)

// frozen answers freeze: the state from which nothing changes until thaw, or why there is none.
type frozen struct {
	state *sched.Snapshot
	err   error
}

// name is the actor's name: another epoch is another actor.
func name(p partmap.Partition) string { return fmt.Sprintf("partition/%s/e%d", p.ID, uint64(p.Epoch)) }

// begin spawns the actor of a map entry: with the state that was handed over for it, or to fence the living hosts. Its borders
// were drawn at the instant cut; failed is the one of the same epoch that it replaces, or nil.
func (k *Keeper) begin(p partmap.Partition, who census, cut time.Time, failed *actor) (*actor, error) {
	a := &actor{keeper: k, entry: p}
	a.out.post, a.out.placed, a.out.clock = k.cfg.Post, &k.placed, k.cfg.Now
	now := k.cfg.Now()
	a.statusAt = now
	a.sched = sched.New(k.cfg.Sched, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	a.status.Store(&Status{Owner: k.cfg.Node, Status: sched.Status{Partition: p.ID, Epoch: p.Epoch, Range: p.Range}})
	ref, err := k.system.Spawn(name(p), k.cfg.MailboxMax, a.handle, func(any) { k.failed(a) })
	if err != nil {
		return nil, err
	}
	a.ref = ref
	// The count of instances begins at the clock, so that an actor that failed and is replaced in the same epoch draws no
	// id twice.
	seq := k.seq(now)
	if failed != nil {
		seq = max(seq, failed.sched.Seq()+1) // which may have gone on from another node's clock
	}
	if h := k.find(p); h != nil && failed == nil {
		for _, i := range h.state.Instances { // whose starts may still be under way
			k.placed.note(i.Version, i.Host, now)
		}
		ref.Tell(sched.Restore{Partition: p.ID, Epoch: p.Epoch, Since: p.Since, Range: p.Range, Seq: seq, Snapshot: *h.state, Versions: h.versions}, 1)
		for n := range k.dead { // maybe on the way
			ref.Tell(sched.NodeDown{Node: n}, 1)
		}
		a.from = h
	} else {
		ref.Tell(sched.Activate{Partition: p.ID, Epoch: p.Epoch, Range: p.Range, Hosts: who.hosts, Seq: seq, Again: failed != nil, Cut: cut, Fronts: who.fronts, Missing: who.missing}, 1)
		k.tellRooms(a, who.hosts)
	}
	k.tellFloors(a)
	return a, nil
}

// handle is the actor's only entry.
func (a *actor) handle(msg any) {
	now := a.keeper.cfg.Now()
	events := 1
	if a.frozen && !a.whileFrozen(now, msg) {
		return
	}
	a.learnLease(now)
	a.note(now)
	switch m := msg.(type) {
	case *batch:
		events = len(m.msgs)
		if _, everybodys := m.msgs[0].(*wire.HostReport); !everybodys {
			a.idle.Store(false)
		}
		a.take(now, m)
	case inUse:
		m.to <- a.sched.InUse()
	case cut:
		m.to <- a.sched.Divisible()
	case freeze:
		a.freeze(now, m)
	case tick:
		a.ticking.Store(false)
		a.step(now, sched.Tick{})
		a.publish(now)
	case show:
		m.to <- a.sched.Busiest(m.rows)
	case end:
		a.step(now, sched.Deactivate{})
		a.publish(now)
		a.ref.Stop()
	case sched.Event:
		a.step(now, m)
	}
	a.note(now)
	a.plan()
	a.meter.busy += a.keeper.cfg.Now().Sub(now)
	if n := a.numbers.Load(); n != nil {
		n.step.Update(a.keeper.cfg.Now().Sub(now).Seconds() / float64(max(events, 1)))
	}
}

// take gives the scheduler a batch. What a former owner hands on counts as its sender's.
func (a *actor) take(now time.Time, b *batch) {
	a.sched.Expect(b.msgs)
	for _, body := range b.msgs {
		from := b.from
		if r, ok := body.(*wire.Relay); ok {
			from, body = r.From, r.Body
		}
		a.step(now, sched.Message{From: from, Body: body})
	}
}

func (a *actor) step(now time.Time, ev sched.Event) {
	for _, e := range a.sched.Step(now, ev) {
		switch {
		case e.Body == nil:
			a.keeper.lookup(question{a, e.Version, e.Account})
		case e.Keys != (starling.Range{}):
			a.spread(e.Keys, e.Body)
		default:
			a.noteGrant(now, e.Body)
			a.out.send(wire.Address{Node: e.To, Partition: e.Partition}, e.Body)
		}
	}
}

// spread sends a message to every partition with keys in r that has an owner. What has none is asked again later.
func (a *actor) spread(r starling.Range, m wire.Message) {
	for _, p := range a.keeper.cfg.Topology.Map().Overlapping(r) {
		if p.Owner != 0 && p.ID != a.entry.ID {
			a.out.send(wire.Address{Node: p.Owner, Partition: p.ID}, m)
		}
	}
}

// learnLease tells the scheduler when the node lease was prolonged. A lease that comes after the last one ran out comes with
// the map in which others have this node's partitions, and maybe before the keeper has ended the actor: it is not for an epoch
// that has passed. The lease is read before the map, because the view takes them in the other order.
func (a *actor) learnLease(now time.Time) {
	u := a.keeper.cfg.Topology.LeaseUntil()
	if u.Equal(a.until) {
		return
	}
	p, ok := a.keeper.cfg.Topology.Map().Lookup(a.entry.Range.Lo) // which stays with the id
	if !ok || p.ID != a.entry.ID || p.Epoch != a.entry.Epoch || p.Owner != a.keeper.cfg.Node {
		return
	}
	a.until = u
	a.step(now, sched.LeaseUntil{Until: u})
}

// plan tells the keeper's clock when the scheduler wants to be woken.
func (a *actor) plan() {
	t := a.sched.NextTick()
	if t.IsZero() {
		a.next.Store(0)
		return
	}
	ns := t.UnixNano()
	if a.next.Swap(ns) != ns {
		a.keeper.wakeBy(ns)
	}
}

// publish makes the state visible to operators and metrics.
func (a *actor) publish(now time.Time) {
	st := a.sched.Status()
	s := &Status{Owner: a.keeper.cfg.Node, Status: st, Mailbox: max(a.ref.Waiting()-1, 0), Rate: a.status.Load().Rate}
	if d := now.Sub(a.statusAt).Seconds(); d > 0 {
		w := min(d, 1) // weighs the last second or so
		s.Rate = s.Rate*(1-w) + float64(st.Counts.Acquires-a.acquired)/d*w
		a.acquired, a.statusAt = st.Counts.Acquires, now
	}
	a.status.Store(s)
	a.idle.Store(st.Phase == sched.Active && st.Granting && st.Waiting == 0 && st.Instances == 0 && s.Rate < 1)
	a.measure(now, s)
	if n := a.numbers.Load(); n != nil {
		n.set(s)
	}
}

// outgoing copies the scheduler's effects, which live until its next step only, into messages of their own.
type outgoing struct {
	post   actors.Post
	placed *placements
	clock  func() time.Time
	grants []wire.Grant
}

func (o *outgoing) send(to wire.Address, m wire.Message) {
	switch e := m.(type) {
	case *wire.Grant:
		if len(o.grants) == 0 {
			o.grants = make([]wire.Grant, 32)
		}
		g := &o.grants[0]
		o.grants = o.grants[1:]
		*g = *e
		m = g
	case *wire.Reject:
		c := *e
		m = &c
	case *wire.Recall:
		c := *e
		c.Leases = append([]starling.LeaseID(nil), e.Leases...)
		m = &c
	case *wire.Renewed:
		c := *e
		c.Leases = append([]starling.LeaseID(nil), e.Leases...)
		m = &c
	case *wire.Start:
		o.placed.note(e.Version, to.Node, o.clock()) // before the host can ask for the key of the code
		c := *e
		m = &c
	case *wire.Stop:
		c := *e
		m = &c
	case *wire.Fence:
		c := *e
		m = &c
	case *wire.Borrow:
		c := *e
		m = &c
	case *wire.Lend:
		c := *e
		m = &c
	case *wire.Audit:
		c := *e
		m = &c
	}
	o.post.Send(to, m)
}

// lookup asks for a version or an account on one of the keeper's workers. When all are busy the question is dropped:
// the scheduler asks again.
func (k *Keeper) lookup(q question) {
	select {
	case k.questions <- q:
	default:
		k.dropped.Inc()
	}
}

// question is one lookup on its way to the catalog.
type question struct {
	actor   *actor
	version starling.VersionID
	account starling.AccountID // when it is not empty, the question is for its limit
}

// answer asks the catalog. What cannot be answered is not answered: the scheduler asks again.
func (k *Keeper) answer(ctx context.Context, q question) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.LookupTimeout)
	defer cancel()
	if q.account != "" {
		k.answerAccount(ctx, q)
		return
	}
	v, err := k.cfg.Catalog.Version(ctx, q.version)
	most := 0
	if err == nil {
		most, err = k.limitOf(ctx, v.Function.Account)
	}
	switch {
	case err == nil:
		q.actor.ref.Tell(sched.VersionKnown{Version: v, ConcurrencyMax: most}, 1)
	case starling.KindOf(err) == starling.NotFound:
		q.actor.ref.Tell(sched.VersionGone{Version: q.version}, 1)
	case ctx.Err() == nil || context.Cause(ctx) == context.DeadlineExceeded:
		k.cfg.Log.Warn("version could not be looked up; it is asked for again", "version", uint64(q.version), "err", err)
	}
}

func (k *Keeper) answerAccount(ctx context.Context, q question) {
	most, err := k.limitOf(ctx, q.account)
	switch {
	case err == nil || starling.KindOf(err) == starling.NotFound: // nothing is lent to who is gone
		q.actor.ref.Tell(sched.AccountKnown{Account: q.account, ConcurrencyMax: most}, 1)
	case ctx.Err() == nil || context.Cause(ctx) == context.DeadlineExceeded:
		k.cfg.Log.Warn("account could not be looked up; it is asked for again", "account", string(q.account), "err", err)
	}
}

// limitOf returns the account's concurrency limit in slots.
func (k *Keeper) limitOf(ctx context.Context, id starling.AccountID) (int, error) {
	acc, err := k.cfg.Catalog.Account(ctx, id)
	if err == nil && acc.ConcurrencyMax <= 0 {
		return starling.ConcurrencyMax, nil
	}
	return acc.ConcurrencyMax, err
}
