package sched

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
)

func TestRestoredSchedulerGoesOn(t *testing.T) {
	s, now := warmed(t, 3)
	var leases []starling.LeaseID
	for v := starling.VersionID(1); v <= 2; v++ {
		out := s.Step(now, Message{200, &wire.Acquire{Call: uint64(v), Partition: 1, Epoch: 1, Version: v, Wait: time.Second}})
		leases = append(leases, out[0].Body.(*wire.Grant).Lease.ID)
	}
	now = now.Add(300 * time.Millisecond)
	snap := s.Snapshot(now)
	r := Restore(DefaultConfig(), rand.New(rand.NewPCG(1, 1)), now, snap)
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	if again := r.Snapshot(now); !reflect.DeepEqual(again, snap) {
		t.Errorf("restored state differs:\n%+v\n%+v", again, snap)
	}
	r.Step(now, LeaseUntil{now.Add(time.Hour)})
	ask := func(call uint64, v starling.VersionID) *wire.Grant {
		for _, e := range r.Step(now, Message{200, &wire.Acquire{Call: call, Partition: 1, Epoch: 1, Version: v, Wait: time.Second}}) {
			if g, ok := e.Body.(*wire.Grant); ok {
				return g
			}
		}
		return nil
	}
	if g := ask(10, 1); g != nil {
		t.Errorf("a slot in use was granted: %+v", g)
	}
	if g := ask(11, 3); g == nil || g.Lease.ID == leases[0] || g.Lease.ID == leases[1] {
		t.Errorf("an idle instance is not granted, or under a name that lives: %+v", g)
	}
	out := r.Step(now, Message{200, &wire.Release{Partition: 1, Epoch: 1, Leases: leases[:1]}})
	if len(out) == 0 || out[0].Body.(*wire.Grant).Call != 10 {
		t.Errorf("the release of an old lease does not serve the waiting call: %v", out)
	}
	now = now.Add(time.Second) // lease 2 had 800 ms left
	r.Step(now, Tick{})
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	if g := ask(12, 2); g == nil {
		t.Error("an old lease does not end")
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
