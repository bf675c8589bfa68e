package sched

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
)

// TestWhateverMoves runs random worlds whose partitions are frozen, thawed, moved, cut, joined and recovered while calls come:
// every call gets one answer, no slot is leased twice, no limit of a function or of the account is passed by all of them together,
// and at rest each instance is in the books of one partition.
func TestWhateverMoves(t *testing.T) {
	from, to := uint64(1), *seeds
	if *seed != 0 {
		from, to = *seed, *seed
	}
	var sum ring
	for n := from; n <= to; n++ {
		w := newRing(n)
		if err := w.run(400); err != nil {
			t.Fatalf("%v; rerun with -seed=%d", err, n)
		}
		sum.granted, sum.moves, sum.cuts, sum.merges, sum.renewed = sum.granted+w.granted, sum.moves+w.moves, sum.cuts+w.cuts, sum.merges+w.merges, sum.renewed+w.renewed
	}
	if *seed == 0 && (sum.granted < 1000 || sum.moves < 100 || sum.cuts < 100 || sum.merges < 50 || sum.renewed < 100) {
		t.Errorf("the worlds are too quiet: %d granted, %d moves, %d splits, %d merges, %d renewals of handed-over leases", sum.granted, sum.moves, sum.cuts, sum.merges, sum.renewed)
	}
}

// A ring is a key space cut into partitions, with hosts and frontends that answer late, twice or never. A message finds whoever has
// its key when it arrives, as relays see to.
type ring struct {
	rng     *rand.Rand
	cfg     Config
	now     time.Time
	parts   []*life // by range
	hosts   map[starling.NodeID]*fakeHost
	config  map[starling.VersionID]*starling.Version
	account int
	pending []func() error
	kept    []func() error // for frozen ones
	open    map[callKey]*wire.Acquire
	leases  map[leaseKey]*right
	ended   map[starling.InstanceID]bool
	calls   uint64
	last    starling.PartitionID
	faults  bool

	granted, moves, cuts, merges, renewed int
}

// A life is one partition in one epoch.
type life struct {
	s      *Scheduler
	id     starling.PartitionID
	epoch  starling.Epoch
	since  starling.Epoch
	keys   starling.Range
	frozen bool
	cut    time.Time // when its lower border was drawn
}

type right struct {
	lease  starling.Lease
	holder starling.NodeID
	ends   time.Time
}

func newRing(n uint64) *ring {
	rng := rand.New(rand.NewPCG(n, n))
	w := &ring{rng: rng, cfg: DefaultConfig(), now: time.Unix(1_700_000_000, 0), hosts: map[starling.NodeID]*fakeHost{}, config: map[starling.VersionID]*starling.Version{},
		account: 1 + rng.IntN(20), open: map[callKey]*wire.Acquire{}, leases: map[leaseKey]*right{}, ended: map[starling.InstanceID]bool{}, last: 1, faults: n%3 != 0}
	w.cfg.Bounds.Function, w.cfg.Bounds.Age, w.cfg.Audit = 5+rng.IntN(30), time.Second+time.Duration(rng.IntN(5))*time.Second, time.Second
	for v := starling.VersionID(1); v <= 4; v++ {
		w.config[v] = &starling.Version{ID: v, Function: starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", v%3))},
			Config: starling.Config{Runtime: starling.Provided, Concurrency: 1 + rng.IntN(3), InstanceMax: rng.IntN(5)}.WithDefaults()}
	}
	w.config[4].Config = w.config[1].Config // two versions of one function
	for h := starling.NodeID(1); h <= starling.NodeID(1+rng.IntN(4)); h++ {
		w.hosts[h] = &fakeHost{id: h, room: 128 * (1 + rng.IntN(8)), runs: map[starling.InstanceID]*wire.InstanceReport{}}
	}
	p := &life{id: 1, epoch: 1, since: 1}
	w.parts = []*life{p}
	_ = w.begin(p, nil)
	return w
}

// begin gives p a scheduler: one that goes on from a snapshot, or one that asks the hosts.
func (w *ring) begin(p *life, from *Snapshot) error {
	p.s, p.frozen = New(w.cfg, w.rng), false
	if err := w.step(p, LeaseUntil{w.now.Add(time.Hour)}); err != nil {
		return err
	}
	if from == nil {
		cut := p.cut
		if p.keys.Hi != 0 && w.at(p.keys.Hi).cut.After(cut) {
			cut = w.at(p.keys.Hi).cut
		}
		return w.step(p, Activate{Partition: p.id, Epoch: p.epoch, Range: p.keys, Hosts: slices.Sorted(maps.Keys(w.hosts)), Cut: cut})
	}
	raw, err := EncodeSnapshot(from)
	if err == nil {
		from, err = DecodeSnapshot(raw)
	}
	if err != nil {
		return err
	}
	ev := Restore{Partition: p.id, Epoch: p.epoch, Range: p.keys, Since: p.since, Snapshot: *from}
	for _, id := range from.InUse() {
		if w.rng.IntN(4) > 0 {
			ev.Versions = append(ev.Versions, VersionKnown{w.config[id], w.account})
		}
	}
	return w.step(p, ev)
}

func (w *ring) run(steps int) error {
	for range steps {
		w.now = w.now.Add(time.Duration(w.rng.IntN(40)) * time.Millisecond)
		if err := w.anything(); err != nil {
			return err
		}
		for len(w.pending) > 0 && w.rng.IntN(3) > 0 {
			k := w.rng.IntN(len(w.pending))
			f := w.pending[k]
			w.pending = append(w.pending[:k], w.pending[k+1:]...)
			if err := f(); err != nil {
				return err
			}
		}
	}
	w.faults = false
	for range 150 {
		w.now = w.now.Add(100 * time.Millisecond)
		if err := w.rest(); err != nil {
			return err
		}
	}
	if len(w.open) > 0 {
		return fmt.Errorf("%d calls without an answer: %v", len(w.open), w.open)
	}
	return w.disjoint()
}

// rest lets everything arrive and time pass.
func (w *ring) rest() error {
	for _, p := range w.parts {
		if p.frozen {
			if err := w.thaw(p); err != nil {
				return err
			}
		}
	}
	for len(w.pending) > 0 {
		f := w.pending[0]
		w.pending = w.pending[1:]
		if err := f(); err != nil {
			return err
		}
	}
	for _, p := range slices.Clone(w.parts) {
		if err := w.step(p, Tick{}); err != nil {
			return err
		}
	}
	return nil
}

// disjoint reports an instance that is in no books, or in those of two.
func (w *ring) disjoint() error {
	run, booked := 0, map[starling.InstanceID]bool{}
	for _, h := range w.hosts {
		run += len(h.runs)
	}
	for _, p := range w.parts {
		for id, i := range p.s.instances {
			if booked[id] || !p.keys.Contains(i.key) || w.hosts[i.node].runs[id] == nil {
				return fmt.Errorf("%v has the instance %v with the key %x: it does not run, or is another's", p.id, id, i.key)
			}
			booked[id] = true
		}
	}
	if len(booked) != run {
		return fmt.Errorf("the hosts run %d instances, %d are in the books", run, len(booked))
	}
	return nil
}

func (w *ring) at(k starling.Key64) *life {
	for _, p := range w.parts {
		if p.keys.Contains(k) {
			return p
		}
	}
	return nil
}

// reach gives what make returns to whoever has the key, when it is not frozen.
func (w *ring) reach(k starling.Key64, make func(p *life) Event) error {
	p := w.at(k)
	if p.frozen {
		w.kept = append(w.kept, func() error { return w.reach(k, make) })
		return nil
	}
	return w.step(p, make(p))
}

// spread gives a host's word to all: those that it does not concern pass over it.
func (w *ring) spread(m Message) error {
	for _, p := range slices.Clone(w.parts) {
		if err := w.reach(p.keys.Lo, func(*life) Event { return m }); err != nil {
			return err
		}
	}
	return nil
}

func (w *ring) later(f func() error) {
	if w.faults && w.rng.IntN(20) == 0 {
		return
	}
	w.pending = append(w.pending, f)
	if w.faults && w.rng.IntN(20) == 0 {
		w.pending = append(w.pending, f)
	}
}

func (w *ring) ask(fe starling.NodeID, a *wire.Acquire) error {
	return w.reach(a.Key, func(p *life) Event {
		m := *a
		m.Partition, m.Epoch = p.id, p.epoch
		if w.open[callKey{fe, a.Call}] == nil { // kept, and asked again meanwhile: the frontend gives back what comes twice
			return Message{fe, &wire.Cancel{Partition: p.id, Call: a.Call}}
		}
		return Message{fe, &m}
	})
}

func (w *ring) anything() error {
	switch n := w.rng.IntN(24); {
	case n < 8:
		w.calls++
		v, fe := starling.VersionID(1+w.rng.IntN(4)), starling.NodeID(10+w.rng.IntN(3))
		a := &wire.Acquire{Call: w.calls, Version: v, Key: spanOf(w.config[v].Key()) + starling.Key64(w.rng.Uint32()), Wait: time.Duration(w.rng.IntN(3000)) * time.Millisecond}
		w.open[callKey{fe, a.Call}] = a
		return w.ask(fe, a)
	case n < 14:
		return w.useLease(w.rng.IntN(3) > 0)
	case n < 16:
		h, _ := pick(w.rng, w.hosts, byNumber[starling.NodeID])
		return w.report(w.hosts[h])
	case n == 16 && w.faults:
		return w.exit()
	case n < 20:
		return w.handOver()
	}
	for _, p := range slices.Clone(w.parts) {
		if !p.frozen {
			if err := w.step(p, Tick{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func byLease(a, b leaseKey) int {
	return byInstanceID(starling.InstanceID{Epoch: a.epoch, Seq: uint64(a.partition)<<48 ^ uint64(a.id)}, starling.InstanceID{Epoch: b.epoch, Seq: uint64(b.partition)<<48 ^ uint64(b.id)})
}

// useLease renews a lease or gives it back, under its old name at whoever has its key.
func (w *ring) useLease(renew bool) error {
	k, ok := pick(w.rng, w.leases, byLease)
	if !ok {
		return nil
	}
	r := w.leases[k]
	if w.now.After(r.ends) {
		delete(w.leases, k)
		return nil
	}
	if renew {
		return w.reach(r.lease.Key, func(*life) Event {
			return Message{r.holder, &wire.Renew{Partition: k.partition, Epoch: k.epoch, Leases: []starling.LeaseID{k.id}}}
		})
	}
	delete(w.leases, k)
	return w.reach(r.lease.Key, func(*life) Event {
		return Message{r.holder, &wire.Release{Partition: k.partition, Epoch: k.epoch, Leases: []starling.LeaseID{k.id}}}
	})
}

func (w *ring) report(h *fakeHost) error {
	return w.spread(Message{h.id, &wire.HostReport{Host: h.id, FreeMiB: uint32(max(h.room, 0)), TotalMiB: 1024, Instances: uint32(len(h.runs))}})
}

func (w *ring) exit() error {
	n, _ := pick(w.rng, w.hosts, byNumber[starling.NodeID])
	h := w.hosts[n]
	if id, ok := pick(w.rng, h.runs, byInstanceID); ok {
		w.lose(h, id)
		return w.spread(Message{h.id, &wire.Exited{Host: h.id, Instance: id, Reason: starling.ErrExit}})
	}
	return nil
}

func (w *ring) lose(h *fakeHost, id starling.InstanceID) {
	delete(h.runs, id)
	w.ended[id] = true
	h.room += 128
	maps.DeleteFunc(w.leases, func(_ leaseKey, r *right) bool { return r.lease.Instance == id })
}

// handOver begins or ends a planned change of one partition; now and then its owner is lost instead.
func (w *ring) handOver() error {
	k := w.rng.IntN(len(w.parts))
	p := w.parts[k]
	if !p.frozen {
		if p.s.Phase() != Active {
			return nil
		}
		if w.faults && w.rng.IntN(8) == 0 {
			return w.recover(p)
		}
		p.frozen = true
		return w.step(p, Freeze{})
	}
	snap := p.s.Snapshot(w.now)
	switch n := w.rng.IntN(8); {
	case n == 0:
		return w.thaw(p)
	case n == 1 && w.faults:
		return w.recover(p)
	case n < 4 && len(w.parts) < 6:
		return w.cut(k, snap)
	case n < 6 && k+1 < len(w.parts) && w.parts[k+1].frozen:
		return w.merge(k, snap)
	}
	w.moves++
	p.epoch++
	return w.goOn(w.begin(p, &snap))
}

// goOn gives out what was kept.
func (w *ring) goOn(err error) error {
	kept := w.kept
	w.kept = nil
	for _, f := range kept {
		if err == nil {
			err = f()
		}
	}
	return err
}

func (w *ring) thaw(p *life) error {
	p.frozen = false
	return w.goOn(w.step(p, Thaw{}))
}

func (w *ring) cut(k int, snap Snapshot) error {
	p := w.parts[k]
	at := spanOf(w.config[starling.VersionID(1+w.rng.IntN(4))].Key()) + starling.Key64(w.rng.Uint32())
	if at <= p.keys.Lo || !p.keys.Contains(at) || !p.s.Divisible() {
		return nil
	}
	w.cuts++
	w.last++
	q := &life{id: w.last, epoch: p.epoch + 1, since: p.since, keys: starling.Range{Lo: at, Hi: p.keys.Hi}}
	p.epoch, p.keys.Hi = p.epoch+1, at
	q.cut = w.now
	low, high := snap.Divide(at)
	w.parts = slices.Insert(w.parts, k+1, q)
	q.frozen = true // until it has begun
	if err := w.begin(p, &low); err != nil {
		return err
	}
	return w.goOn(w.begin(q, &high))
}

func (w *ring) merge(k int, snap Snapshot) error {
	p, q := w.parts[k], w.parts[k+1]
	w.merges++
	joined := Join(snap, q.s.Snapshot(w.now))
	p.epoch, p.since, p.keys.Hi = max(p.epoch, q.epoch)+1, max(p.since, q.since), q.keys.Hi
	w.parts = slices.Delete(w.parts, k+1, k+2)
	return w.goOn(w.begin(p, &joined))
}

// recover is a new owner that asks the hosts; the frontends ask again.
func (w *ring) recover(p *life) error {
	p.epoch++
	p.since = p.epoch
	err := w.begin(p, nil)
	for _, k := range slices.SortedFunc(maps.Keys(w.open), func(a, b callKey) int { return int(a.call) - int(b.call) }) {
		if a := w.open[k]; err == nil && a != nil && p.keys.Contains(a.Key) {
			err = w.ask(k.node, a)
		}
	}
	return w.goOn(err)
}

// step gives one event to a scheduler and plays all others' part in the effects.
func (w *ring) step(p *life, ev Event) error {
	effects := p.s.Step(w.now, ev)
	if err := p.s.Check(); err != nil {
		return fmt.Errorf("%v epoch %d after %T: %w", p.id, p.epoch, ev, err)
	}
	for _, e := range slices.Clone(effects) { // effects of this step are carried out before the next
		if err := w.effect(p, e); err != nil {
			return fmt.Errorf("%v epoch %d after %T: %w", p.id, p.epoch, ev, err)
		}
	}
	return nil
}

func (w *ring) effect(p *life, e Effect) error {
	switch m := e.Body.(type) {
	case nil:
		s := p.s
		w.later(func() error {
			switch {
			case p.s != s || p.frozen:
				return nil
			case e.Account != "":
				return w.step(p, AccountKnown{e.Account, w.account})
			}
			return w.step(p, VersionKnown{w.config[e.Version], w.account})
		})
	case *wire.Grant:
		return w.grant(e.To, m)
	case *wire.Reject:
		if m.Reject == starling.Moved {
			return fmt.Errorf("call %d was told %s by the owner of its key", m.Call, m.Reason)
		}
		return w.answer(e.To, m.Call)
	case *wire.Renewed:
		for k, r := range w.leases {
			if k.partition == m.Partition && k.epoch == m.Epoch && slices.Contains(m.Leases, k.id) {
				r.ends = w.now.Add(m.TTL)
				if k.epoch < p.epoch {
					w.renewed++
				}
			}
		}
	case *wire.Start:
		w.start(w.hosts[e.To], *m)
	case *wire.Stop:
		h, id, epoch := w.hosts[e.To], m.Instance, m.Epoch
		w.later(func() error {
			r := h.runs[id]
			switch {
			case r != nil && w.at(r.Key).epoch > epoch:
				return nil // fenced
			case r != nil:
				w.lose(h, id)
			}
			return w.spread(Message{h.id, &wire.Exited{Host: h.id, Instance: id, Reason: "stopped"}})
		})
	case *wire.Fence:
		w.fence(p, w.hosts[e.To], *m)
	case *wire.Borrow, *wire.Lend, *wire.Audit:
		w.post(p, e)
	}
	return nil
}

// post carries messages between partitions.
func (w *ring) post(p *life, e Effect) {
	var body wire.Message
	switch m := e.Body.(type) {
	case *wire.Borrow:
		c := *m
		body = &c
	case *wire.Lend:
		c := *m
		body = &c
	case *wire.Audit:
		c := *m
		body = &c
	}
	w.later(func() error {
		for _, o := range slices.Clone(w.parts) {
			if o.id == e.Partition || e.Partition == 0 && (o.keys.Hi == 0 || e.Keys.Lo < o.keys.Hi) && (e.Keys.Hi == 0 || o.keys.Lo < e.Keys.Hi) {
				if err := w.reach(o.keys.Lo, func(*life) Event { return Message{starling.NodeID(100), body} }); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (w *ring) fence(p *life, h *fakeHost, m wire.Fence) {
	w.later(func() error {
		if p.epoch != m.Epoch {
			return nil // a later fence was seen
		}
		f := &wire.Fenced{Partition: m.Partition, Epoch: m.Epoch, Host: h.id}
		for _, id := range slices.SortedFunc(maps.Keys(h.runs), byInstanceID) {
			r := *h.runs[id]
			if !m.Range.Contains(r.Key) {
				continue
			}
			for _, k := range slices.SortedFunc(maps.Keys(w.leases), byLease) {
				if l := w.leases[k]; l.lease.Instance == id && !w.now.After(l.ends) {
					r.Leases = append(r.Leases, l.lease)
				}
			}
			f.Instances = append(f.Instances, r)
		}
		return w.spread(Message{h.id, f})
	})
}

func (w *ring) start(h *fakeHost, m wire.Start) {
	w.later(func() error {
		started := Message{h.id, &wire.Started{Host: h.id, Instance: m.Instance, Start: time.Millisecond, Init: time.Millisecond}}
		switch {
		case h.runs[m.Instance] != nil:
			return w.spread(started)
		case w.ended[m.Instance]: // hosts remember what has ended: a Start that comes twice does not bring it back
			return w.spread(Message{h.id, &wire.Exited{Host: h.id, Instance: m.Instance, Reason: starling.ErrExit}})
		}
		failed := &wire.StartFailed{Host: h.id, Instance: m.Instance, Fault: starling.Overloaded, Reason: "Full", Message: "full"}
		switch n := w.rng.IntN(10); {
		case w.at(m.Key).epoch > m.Epoch:
			failed.Fault, failed.Reason = starling.Moved, "OldEpoch"
		case h.room < 128:
		case n == 0 && w.faults:
			failed.Fault, failed.Reason = starling.Failed, starling.ErrInit
		default:
			h.room -= 128
			h.runs[m.Instance] = &wire.InstanceReport{Instance: m.Instance, Key: m.Key, Version: m.Version, Ready: true}
			return w.spread(started)
		}
		return w.spread(Message{h.id, failed})
	})
}

func (w *ring) answer(fe starling.NodeID, call uint64) error {
	k := callKey{fe, call}
	if _, ok := w.open[k]; !ok {
		return fmt.Errorf("call %d of %s was answered twice, or after its end", call, fe)
	}
	delete(w.open, k)
	return nil
}

// grant checks that the slot was free and that the limits of all partitions together leave room for it.
func (w *ring) grant(fe starling.NodeID, m *wire.Grant) error {
	if err := w.answer(fe, m.Call); err != nil {
		return err
	}
	l, c := m.Lease, w.config[m.Lease.Version]
	if h := w.hosts[l.Host]; h.runs[l.Instance] == nil {
		return nil // it died while its partition was frozen: the frontend will hear so
	}
	name := leaseKey{l.Partition, l.Epoch, l.ID}
	if w.leases[name] != nil {
		return fmt.Errorf("lease %v was granted twice", name)
	}
	used, function, all := 0, 0, 0
	for k, o := range w.leases {
		switch {
		case w.now.After(o.ends):
			delete(w.leases, k)
			continue
		case o.lease.Instance == l.Instance:
			used++
		}
		all++
		if w.config[o.lease.Version].Function == c.Function {
			function++
		}
	}
	switch n := c.Config.InstanceMax * c.Config.Concurrency; {
	case used >= c.Config.Concurrency:
		return fmt.Errorf("instance %s: a slot beyond its %d was granted", l.Instance, c.Config.Concurrency)
	case n > 0 && function >= n:
		return fmt.Errorf("version %d: slot %d was granted, the limit is %d", l.Version, function+1, n)
	case all >= w.account:
		return fmt.Errorf("a slot beyond the account's %d was granted", w.account)
	}
	w.leases[name] = &right{l, fe, w.now.Add(l.TTL)}
	w.granted++
	return nil
}

// TestAStrangerThatStartedIsAskedFor: a life before ours started it, and we heard that it failed while we repeated its Start. The
// host's list decides whether it is ours to stop.
func TestAStrangerThatStartedIsAskedFor(t *testing.T) {
	s, now := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1))), time.Unix(1_700_000_000, 0)
	s.Step(now, LeaseUntil{now.Add(time.Hour)})
	s.Step(now, Activate{Partition: 1, Epoch: 2, Hosts: []starling.NodeID{9}})
	s.Step(now, Message{From: 9, Body: &wire.Fenced{Partition: 1, Epoch: 2, Host: 9}})
	out := s.Step(now, Message{From: 9, Body: &wire.Started{Partition: 1, Host: 9, Instance: starling.InstanceID{Partition: 1, Epoch: 1, Seq: 5}}})
	if len(out) != 1 || out[0].To != 9 {
		t.Fatalf("%d effects; want one fence", len(out))
	}
	if _, ok := out[0].Body.(*wire.Fence); !ok {
		t.Errorf("the host hears %T, want a fence", out[0].Body)
	}
}
