package sched

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/ledger"
)

// configs are the versions of warmed.
func configs(s *Scheduler) (list []VersionKnown) {
	for _, v := range s.inOrder() {
		list = append(list, VersionKnown{v.config, v.account.max})
	}
	return list
}

// carry freezes s, takes its state through the codec and begins the next life with it.
func carry(tb testing.TB, s *Scheduler, now time.Time, e starling.Epoch) *Scheduler {
	tb.Helper()
	s.Step(now, Freeze{})
	r := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1)))
	r.Step(now, LeaseUntil{now.Add(time.Hour)})
	r.Step(now, Restore{Partition: 1, Epoch: e, Since: 1, Seq: 50, Snapshot: *coded(tb, s.Snapshot(now)), Versions: configs(s)})
	if err := r.Check(); err != nil {
		tb.Fatal(err)
	}
	return r
}

func coded(tb testing.TB, s Snapshot) *Snapshot {
	tb.Helper()
	raw, err := EncodeSnapshot(&s)
	if err != nil {
		tb.Fatal(err)
	}
	out, err := DecodeSnapshot(raw)
	if err != nil {
		tb.Fatal(err)
	}
	if !reflect.DeepEqual(*out, s) {
		tb.Fatalf("decoded state differs:\n%+v\n%+v", *out, s)
	}
	return out
}

func TestRestoredSchedulerGoesOn(t *testing.T) {
	s, now := warmed(t, 3)
	var leases []starling.LeaseID
	for v := starling.VersionID(1); v <= 2; v++ {
		out := s.Step(now, Message{200, &wire.Acquire{Call: uint64(v), Partition: 1, Epoch: 1, Version: v, Wait: time.Second}})
		leases = append(leases, out[0].Body.(*wire.Grant).Lease.ID)
	}
	now = now.Add(300 * time.Millisecond)
	r := carry(t, s, now, 2)
	before, again := s.Snapshot(now), r.Snapshot(now)
	if !reflect.DeepEqual(again.Instances, before.Instances) || !reflect.DeepEqual(again.Leases, before.Leases) || !reflect.DeepEqual(again.Versions, before.Versions) {
		t.Errorf("restored state differs:\n%+v\n%+v", again, before)
	}
	ask := func(call uint64, v starling.VersionID) *wire.Grant {
		for _, e := range r.Step(now, Message{200, &wire.Acquire{Call: call, Partition: 1, Epoch: 2, Version: v, Wait: time.Second}}) {
			if g, ok := e.Body.(*wire.Grant); ok {
				return g
			}
		}
		return nil
	}
	if g := ask(10, 1); g != nil {
		t.Errorf("a slot in use was granted: %+v", g)
	}
	if g := ask(11, 3); g == nil || g.Lease.Epoch != 2 {
		t.Errorf("an idle instance is not granted at once in the new epoch: %+v", g)
	}
	for range 5 { // an old lease lives as long as it is renewed
		now = now.Add(600 * time.Millisecond)
		if m, ok := r.Step(now, Message{200, &wire.Renew{Partition: 1, Epoch: 1, Leases: leases[:1]}})[0].Body.(*wire.Renewed); !ok || m.Epoch != 1 || len(m.Leases) != 1 {
			t.Fatalf("an old lease is not renewed under its name: %+v", m)
		}
		r.Step(now, Tick{})
	}
	ask(12, 1)
	out := r.Step(now, Message{200, &wire.Release{Partition: 1, Epoch: 1, Leases: leases[:1]}})
	if len(out) == 0 || out[0].Body.(*wire.Grant).Call != 12 {
		t.Errorf("the release of an old lease does not serve the waiting call: %v", out)
	}
	if g := ask(13, 2); g == nil {
		t.Error("an old lease that nobody renewed does not end")
	}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
}

// TestFrozenSchedulerDoesNothing: whatever is given to it, and it goes on after Thaw.
func TestFrozenSchedulerDoesNothing(t *testing.T) {
	s, now := warmed(t, 1)
	s.Step(now, Freeze{})
	a := Message{200, &wire.Acquire{Call: 1, Partition: 1, Epoch: 1, Version: 1, Wait: time.Second}}
	for _, ev := range []Event{a, Tick{}, LeaseUntil{now.Add(2 * time.Hour)}, Provisioned{}} {
		if out := s.Step(now, ev); len(out) > 0 || !s.NextTick().IsZero() || s.Phase() != Frozen {
			t.Fatalf("after %T: %v, next tick %v, %v", ev, out, s.NextTick(), s.Phase())
		}
	}
	s.Step(now, Thaw{})
	if out := s.Step(now, a); len(out) == 0 || s.NextTick().IsZero() {
		t.Errorf("after Thaw nothing is granted: %v", out)
	}
}

// TestExpectChangesNothing: what a batch names may be unknown, free already or never given.
func TestExpectChangesNothing(t *testing.T) {
	s, now := warmed(t, 2)
	out := s.Step(now, Message{200, &wire.Acquire{Call: 1, Partition: 1, Epoch: 1, Version: 1, Wait: time.Second}})
	lease := out[0].Body.(*wire.Grant).Lease.ID
	batch := []wire.Message{&wire.Acquire{Version: 1}, &wire.Acquire{Version: 2}, &wire.Acquire{Version: 77}, &wire.Cancel{Call: 1},
		&wire.Release{Leases: []starling.LeaseID{0, lease, lease + 1, 1 << 40, 1<<64 - 1}}}
	for range 2 {
		before := s.Snapshot(now)
		s.Expect(batch)
		if after := s.Snapshot(now); !reflect.DeepEqual(before, after) {
			t.Errorf("the scheduler has changed:\n%+v\n%+v", before, after)
		}
		s.Step(now, Message{200, &wire.Release{Partition: 1, Epoch: 1, Leases: []starling.LeaseID{lease}}})
	}
}

// BenchmarkHandOver measures the steps of a move: ten thousand functions must be handed over within a pause that no caller sees.
func BenchmarkHandOver(b *testing.B) {
	s, now := warmed(b, 10_000)
	for v := starling.VersionID(1); v <= 10_000; v++ {
		s.Step(now, Message{200, &wire.Acquire{Call: uint64(v), Partition: 1, Epoch: 1, Version: v, Wait: time.Second}})
	}
	s.Step(now, Freeze{})
	list := configs(s)
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			s.Snapshot(now)
		}
	})
	snap := s.Snapshot(now)
	raw, _ := EncodeSnapshot(&snap)
	b.Run("code", func(b *testing.B) {
		for b.Loop() {
			out, _ := EncodeSnapshot(&snap)
			if _, err := DecodeSnapshot(out); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(raw)), "B")
	})
	b.Run("divide", func(b *testing.B) {
		for b.Loop() {
			snap.Divide(1 << 63)
		}
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			r := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1)))
			r.Step(now, LeaseUntil{now.Add(time.Hour)})
			r.Step(now, Restore{Partition: 1, Epoch: 2, Since: 1, Snapshot: snap, Versions: list})
		}
	})
}

// TestEqualLeaseIDsMeet: both halves of a cut partition grant a lease of the same number; after they are joined each is renewed and
// given back under the life that granted it.
func TestEqualLeaseIDsMeet(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	grantOf := func(p starling.PartitionID, keys starling.Range) (*Scheduler, starling.Lease) {
		s := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1)))
		s.Step(now, Activate{Partition: p, Epoch: 3, Range: keys, Hosts: []starling.NodeID{1}})
		s.Step(now, LeaseUntil{now.Add(time.Hour)})
		id := starling.InstanceID{Partition: p, Epoch: 2, Seq: 1}
		s.Step(now, Message{1, &wire.Fenced{Partition: p, Epoch: 3, Host: 1, Instances: []wire.InstanceReport{{Instance: id, Key: keys.Lo + 5, Version: 1, Ready: true}}}})
		s.Step(now, VersionKnown{version1(), 100})
		s.Step(now, Message{200, &wire.Acquire{Call: uint64(p), Partition: p, Epoch: 3, Key: keys.Lo + 5, Version: 1, Wait: time.Second}})
		out := s.Step(now.Add(200*time.Millisecond), Message{9, &wire.Lend{Account: "acme", Partition: p, Epoch: 3, Seq: 1 << 40, Number: 1, Permits: 4, Limit: 100}})
		for _, rest := range ledger.Less(starling.Range{}, keys) { // where the ledger is here it must hear of all keys
			out = append(slices.Clone(out), s.Step(now.Add(200*time.Millisecond), Message{9, &wire.Borrow{Account: "acme", Partition: 9, Epoch: 3, Keys: rest, Term: wire.Term{Epoch: 3}, Seq: 1}})...)
		}
		for _, e := range append(slices.Clone(out), s.Step(now.Add(300*time.Millisecond), Tick{})...) {
			if g, ok := e.Body.(*wire.Grant); ok {
				return s, g.Lease
			}
		}
		t.Fatalf("%v grants nothing", p)
		return nil, starling.Lease{}
	}
	mid := version1().Key() + 1<<31
	low, a := grantOf(1, starling.Range{Hi: mid})
	high, b := grantOf(2, starling.Range{Lo: mid})
	if a.ID != b.ID {
		t.Fatalf("the leases are %d and %d: the test wants equal ones", a.ID, b.ID)
	}
	now = now.Add(400 * time.Millisecond)
	s := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1)))
	s.Step(now, LeaseUntil{now.Add(time.Hour)})
	s.Step(now, Restore{Partition: 1, Epoch: 4, Since: 1, Snapshot: Join(low.Snapshot(now), high.Snapshot(now)), Versions: []VersionKnown{{version1(), 100}}})
	if n := s.Leased(1); n != 2 {
		t.Fatalf("%d leases in the books, want both", n)
	}
	for n, l := range []starling.Lease{a, b} {
		m, ok := s.Step(now, Message{200, &wire.Renew{Partition: l.Partition, Epoch: l.Epoch, Leases: []starling.LeaseID{l.ID}}})[0].Body.(*wire.Renewed)
		if !ok || m.Partition != l.Partition || len(m.Leases) != 1 {
			t.Errorf("the lease of %v is not renewed under its name: %+v", l.Partition, m)
		}
		s.Step(now, Message{200, &wire.Release{Partition: l.Partition, Epoch: l.Epoch, Leases: []starling.LeaseID{l.ID}}})
		if got := s.Leased(1); got != 1-n {
			t.Errorf("%d leases after %d were given back", got, n+1)
		}
	}
}

func version1() *starling.Version {
	return &starling.Version{ID: 1, Function: starling.FunctionRef{Account: "acme", Name: "f"}, Config: starling.Config{Runtime: starling.Python311}.WithDefaults()}
}
