package sched

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/scale"
)

var (
	seeds = flag.Uint64("seeds", 150, "worlds that the property test runs")
	seed  = flag.Uint64("seed", 0, "run this world only")
)

// TestWhateverHappens runs random worlds: every acquire gets exactly one answer, no slot of an instance is leased
// twice, no limit is passed, and the books are right after every step.
func TestWhateverHappens(t *testing.T) {
	from, to := uint64(1), *seeds
	if *seed != 0 {
		from, to = *seed, *seed
	}
	granted, refused, cold := 0, 0, 0
	for n := from; n <= to; n++ {
		w := newWorld(n)
		if err := w.run(400); err != nil {
			t.Fatalf("%v; rerun with -seed=%d", err, n)
		}
		granted, refused, cold = granted+w.granted, refused+w.refused, cold+w.cold
	}
	if *seed == 0 && (granted < 1000 || refused < 100 || cold < 100) {
		t.Errorf("the worlds are too quiet: %d granted, %d refused, %d cold", granted, refused, cold)
	}
}

// A world is one scheduler with hosts and frontends that answer late, twice or never.
type world struct {
	rng     *rand.Rand
	s       *Scheduler
	now     time.Time
	hosts   map[starling.NodeID]*fakeHost
	pending []func() error // things on their way, delivered in random order
	open    map[callKey]starling.VersionID
	leases  map[starling.LeaseID]starling.Lease // live ones, by their own clock
	ends    map[starling.LeaseID]time.Time
	holder  map[starling.LeaseID]starling.NodeID
	slots   map[starling.VersionID]int
	most    map[starling.VersionID]int
	account int
	calls   uint64
	faults  bool

	granted, refused, cold int
}

type fakeHost struct {
	id   starling.NodeID
	room int
	runs map[starling.InstanceID]*wire.InstanceReport
}

func newWorld(n uint64) *world {
	rng := rand.New(rand.NewPCG(n, n))
	cfg := DefaultConfig()
	cfg.Bounds.Function, cfg.Bounds.Age = 5+rng.IntN(30), time.Second+time.Duration(rng.IntN(5))*time.Second
	if keep := time.Duration(1+rng.IntN(5)) * time.Second; n%2 == 0 {
		cfg.Policy = scale.Fixed{KeepAlive: keep}
	}
	cfg.Audit = time.Second
	w := &world{rng: rng, s: New(cfg, rng), now: time.Unix(1_700_000_000, 0), hosts: map[starling.NodeID]*fakeHost{}, open: map[callKey]starling.VersionID{},
		leases: map[starling.LeaseID]starling.Lease{}, ends: map[starling.LeaseID]time.Time{}, holder: map[starling.LeaseID]starling.NodeID{},
		slots: map[starling.VersionID]int{}, most: map[starling.VersionID]int{}, account: 1 + rng.IntN(20), faults: n%3 != 0}
	var ids []starling.NodeID
	for h := starling.NodeID(1); h <= starling.NodeID(1+rng.IntN(4)); h++ {
		w.hosts[h] = &fakeHost{id: h, room: 128 * (1 + rng.IntN(8)), runs: map[starling.InstanceID]*wire.InstanceReport{}}
		ids = append(ids, h)
	}
	for v := starling.VersionID(1); v <= 4; v++ {
		w.slots[v], w.most[v] = 1+rng.IntN(3), rng.IntN(5)
	}
	w.adopt(ids)
	w.step(Activate{Partition: 1, Epoch: 2, Hosts: ids})
	w.step(LeaseUntil{w.now.Add(time.Hour)})
	return w
}

// adopt gives the hosts instances of an older epoch, some at work.
func (w *world) adopt(ids []starling.NodeID) {
	for k := range w.rng.IntN(4) {
		h := w.hosts[ids[w.rng.IntN(len(ids))]]
		id := starling.InstanceID{Partition: 1, Epoch: 1, Seq: uint64(k)}
		r := &wire.InstanceReport{Instance: id, Version: starling.VersionID(1 + w.rng.IntN(4)), Ready: true}
		if w.rng.IntN(2) == 0 {
			r.Busy, r.Leases = 1, []starling.Lease{{ID: starling.LeaseID(1000 + k), Epoch: 1, Instance: id, Slots: 1}}
		}
		h.runs[id] = r
		h.room -= 128
	}
}

// someSteps lets something happen, and some of what is on its way arrive.
func (w *world) someSteps() error {
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
	return nil
}

func (w *world) run(steps int) error {
	for range steps {
		if err := w.someSteps(); err != nil {
			return err
		}
	}
	// Whatever was asked is answered at last: by a slot, a refusal or the end of its time.
	for range 100 {
		w.now = w.now.Add(100 * time.Millisecond)
		if err := w.step(Tick{}); err != nil {
			return err
		}
	}
	if len(w.open) > 0 {
		return fmt.Errorf("%d calls without an answer", len(w.open))
	}
	return nil
}

func (w *world) anything() error {
	v := starling.VersionID(1 + w.rng.IntN(4))
	fe := starling.NodeID(10 + w.rng.IntN(3))
	switch n := w.rng.IntN(20); {
	case n < 8:
		w.calls++
		w.open[callKey{fe, w.calls}] = v
		ask := Message{fe, &wire.Acquire{Call: w.calls, Partition: 1, Epoch: 1, Version: v, Wait: time.Duration(w.rng.IntN(3000)) * time.Millisecond}}
		if err := w.step(ask); err != nil || w.open[callKey{fe, w.calls}] == 0 || w.rng.IntN(4) > 0 {
			return err
		}
		return w.step(ask) // asked again while it waits
	case n < 13:
		return w.releaseOne(w.rng.IntN(4) == 0)
	case n < 14:
		if k, ok := pick(w.rng, w.open, func(a, b callKey) int { return int(a.call) - int(b.call) }); ok {
			delete(w.open, k)
			return w.step(Message{k.node, &wire.Cancel{Partition: 1, Call: k.call}})
		}
	case n < 16:
		h, _ := pick(w.rng, w.hosts, byNumber[starling.NodeID])
		return w.report(w.hosts[h])
	case n == 16 && w.faults:
		return w.hostFault()
	}
	return w.step(Tick{})
}

// releaseOne gives back, or prolongs, one live lease.
func (w *world) releaseOne(renew bool) error {
	id, ok := pick(w.rng, w.leases, byNumber[starling.LeaseID])
	if !ok {
		return nil
	}
	l, fe := w.leases[id], w.holder[id]
	if renew {
		return w.step(Message{fe, &wire.Renew{Partition: 1, Epoch: l.Epoch, Leases: []starling.LeaseID{id}}})
	}
	delete(w.leases, id)
	return w.step(Message{fe, &wire.Release{Partition: 1, Epoch: l.Epoch, Leases: []starling.LeaseID{id}}})
}

// pick draws one key of m; the same world draws the same.
func pick[K comparable, V any](rng *rand.Rand, m map[K]V, order func(a, b K) int) (k K, ok bool) {
	if len(m) == 0 {
		return k, false
	}
	keys := slices.SortedFunc(maps.Keys(m), order)
	return keys[rng.IntN(len(keys))], true
}

func byNumber[T ~uint64](a, b T) int { return cmp.Compare(a, b) }

func byInstanceID(a, b starling.InstanceID) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq), cmp.Compare(a.Partition, b.Partition))
}

func (w *world) report(h *fakeHost) error {
	return w.step(Message{h.id, &wire.HostReport{Host: h.id, FreeMiB: uint32(max(h.room, 0)), TotalMiB: 1024, Instances: uint32(len(h.runs)), Draining: w.rng.IntN(50) == 0}})
}

// hostFault kills an instance or a host; a host comes back empty.
func (w *world) hostFault() error {
	n, _ := pick(w.rng, w.hosts, byNumber[starling.NodeID])
	h := w.hosts[n]
	if w.rng.IntN(4) == 0 {
		for id := range h.runs {
			w.lose(h, id)
		}
		return w.step(NodeDown{h.id})
	}
	if id, ok := pick(w.rng, h.runs, byInstanceID); ok {
		w.lose(h, id)
		return w.step(Message{h.id, &wire.Exited{Partition: 1, Host: h.id, Instance: id, Reason: starling.ErrExit}})
	}
	return nil
}

// lose ends an instance with its leases.
func (w *world) lose(h *fakeHost, id starling.InstanceID) {
	delete(h.runs, id)
	h.room += 128
	for l, what := range w.leases {
		if what.Instance == id {
			delete(w.leases, l)
		}
	}
}

func (w *world) later(f func() error) {
	if w.faults && w.rng.IntN(20) == 0 {
		return // lost on the way
	}
	w.pending = append(w.pending, f)
	if w.faults && w.rng.IntN(20) == 0 {
		w.pending = append(w.pending, f) // twice
	}
}

// step gives one event to the scheduler and plays all others' part in the effects.
func (w *world) step(ev Event) error {
	for _, e := range w.s.Step(w.now, ev) {
		if err := w.effect(e); err != nil {
			return err
		}
	}
	if err := w.s.Check(); err != nil {
		return fmt.Errorf("after %T: %w", ev, err)
	}
	return nil
}

func (w *world) effect(e Effect) error {
	switch m := e.Body.(type) {
	case nil:
		v := e.Version
		w.later(func() error {
			c := starling.Config{Runtime: starling.Provided, Concurrency: w.slots[v], InstanceMax: w.most[v]}.WithDefaults()
			ref := starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", v%2))}
			return w.step(VersionKnown{&starling.Version{ID: v, Function: ref, Config: c}, w.account})
		})
	case *wire.Grant:
		return w.grant(e.To, m)
	case *wire.Reject:
		w.refused++
		return w.answer(e.To, m.Call)
	case *wire.Renewed:
		for _, id := range m.Leases {
			w.ends[id] = w.now.Add(m.TTL)
		}
	case *wire.Start:
		w.start(w.hosts[e.To], *m)
	case *wire.Stop:
		h, id := w.hosts[e.To], m.Instance
		w.later(func() error {
			if h.runs[id] == nil {
				return nil
			}
			w.lose(h, id)
			return w.step(Message{h.id, &wire.Exited{Partition: 1, Host: h.id, Instance: id, Reason: "stopped"}})
		})
	case *wire.Fence:
		h, epoch := w.hosts[e.To], m.Epoch
		w.later(func() error {
			f := &wire.Fenced{Partition: 1, Epoch: epoch, Host: h.id}
			for _, id := range slices.SortedFunc(maps.Keys(h.runs), byInstanceID) {
				f.Instances = append(f.Instances, *h.runs[id])
			}
			return w.step(Message{h.id, f})
		})
	}
	return nil
}

// start is a host that starts, fails, or is full.
func (w *world) start(h *fakeHost, m wire.Start) {
	w.later(func() error {
		if r := h.runs[m.Instance]; r != nil {
			r.Ready = true
			return w.step(Message{h.id, &wire.Started{Partition: 1, Host: h.id, Instance: m.Instance, Start: time.Millisecond, Init: time.Millisecond}})
		}
		failed := &wire.StartFailed{Partition: 1, Host: h.id, Instance: m.Instance, Fault: starling.Overloaded, Reason: "Full", Message: "full"}
		switch n := w.rng.IntN(10); {
		case h.room < 128:
		case n == 0 && w.faults:
			failed.Fault, failed.Reason = starling.Failed, starling.ErrInit
		case n == 1 && w.faults:
			failed.Fault, failed.Reason = starling.Internal, "SandboxFailure"
		default:
			h.room -= 128
			h.runs[m.Instance] = &wire.InstanceReport{Instance: m.Instance, Key: m.Key, Version: m.Version, Ready: true}
			return w.step(Message{h.id, &wire.Started{Partition: 1, Host: h.id, Instance: m.Instance, Start: time.Millisecond, Init: time.Millisecond}})
		}
		return w.step(Message{h.id, failed})
	})
}

func (w *world) answer(fe starling.NodeID, call uint64) error {
	k := callKey{fe, call}
	if _, ok := w.open[k]; !ok {
		return fmt.Errorf("call %d of %s was answered twice, or after its end", call, fe)
	}
	delete(w.open, k)
	return nil
}

// grant checks that the slot was free and the limits leave room for it.
func (w *world) grant(fe starling.NodeID, m *wire.Grant) error {
	if err := w.answer(fe, m.Call); err != nil {
		return err
	}
	l := m.Lease
	if _, live := w.leases[l.ID]; live {
		return fmt.Errorf("lease %d was granted twice", l.ID)
	}
	used, ofVersion, all := 0, 0, 0
	for id, o := range w.leases {
		if w.now.After(w.ends[id]) {
			delete(w.leases, id) // ended without a word
			continue
		}
		all++
		if o.Instance == l.Instance {
			used++
		}
		if o.Version == l.Version {
			ofVersion++
		}
	}
	switch {
	case used >= w.slots[l.Version]:
		return fmt.Errorf("instance %s: a slot beyond its %d was granted", l.Instance, w.slots[l.Version])
	case w.most[l.Version] > 0 && ofVersion >= w.most[l.Version]*w.slots[l.Version]:
		return fmt.Errorf("version %d: a slot beyond its limit was granted", l.Version)
	case all >= w.account:
		return fmt.Errorf("a slot beyond the account's %d was granted", w.account)
	}
	w.leases[l.ID], w.ends[l.ID], w.holder[l.ID] = l, w.now.Add(l.TTL), fe
	w.granted++
	if l.Phases.Cold() {
		w.cold++
	}
	return nil
}
