package guard

import (
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
)

// Found by the simulator, seed 35: a new lease for each call of a few milliseconds left more than a hundred leases
// that looked used within their time. The answer to a fence could not be decoded, and the partition never began.
func TestFenceReportsNoMoreLeasesThanSlots(t *testing.T) {
	now := time.Unix(0, 0)
	n := Tenure{Partition: 1, Epoch: 1, Since: 1, Slots: 2}
	lease := func(id int) *starling.Lease {
		return &starling.Lease{ID: starling.LeaseID(id), Partition: 1, Epoch: 1, Slots: 1, TTL: time.Second}
	}
	if err := n.Enter(lease(1), now); err != nil {
		t.Fatal(err)
	}
	for id := 2; id < 300; id++ {
		now = now.Add(time.Millisecond)
		if err := n.Enter(lease(id), now); err != nil {
			t.Fatal(err)
		}
		n.Leave(lease(id), now)
	}
	ls := n.Adopt(&wire.Fence{Partition: 1, Epoch: 2, Since: 2}, now)
	if len(ls) != 2 || ls[0].ID != 1 || ls[1].ID != 299 {
		t.Fatalf("got %v, want the lease at work and the one used last", ls)
	}
	if err := n.Enter(lease(298), now); err != ErrOldEpoch {
		t.Errorf("a lease that was not reported: got %v", err)
	}
	if err := n.Enter(lease(299), now); err != nil {
		t.Errorf("a lease that was reported: got %v", err)
	}
	if err := n.Enter(lease(1), now); err != ErrLeaseBusy {
		t.Errorf("a lease at work: got %v", err)
	}
}

// After a hand-over the leases of before are in the new owner's books: idle ones hold, too. After a recovery they do not.
func TestLeasesOutliveAHandOver(t *testing.T) {
	now := time.Unix(0, 0)
	idle := &starling.Lease{ID: 1, Partition: 1, Epoch: 3, Slots: 1, TTL: time.Second}
	n := Tenure{Partition: 1, Epoch: 3, Since: 3, Slots: 2}
	granted := &starling.Lease{ID: 1, Partition: 2, Epoch: 4, Slots: 1, TTL: time.Second}
	if err := n.Enter(granted, now); err != nil {
		t.Errorf("a lease of the half that was split off, before its fence: %v", err)
	}
	n.Adopt(&wire.Fence{Partition: 2, Epoch: 4, Since: 3}, now)
	if !n.Honours(idle, now) {
		t.Error("a lease of before a hand-over is refused")
	}
	n.Adopt(&wire.Fence{Partition: 2, Epoch: 5, Since: 5}, now)
	if n.Honours(idle, now) || !n.Honours(granted, now) {
		t.Error("after a recovery only leases in use hold")
	}
	n.Adopt(&wire.Fence{Partition: 2, Epoch: 6, Since: 1}, now)
	if n.Honours(idle, now) {
		t.Error("a fence brought leases back")
	}
}

func TestFencesOnlyRise(t *testing.T) {
	var f Fences
	whole := starling.Range{}
	low, high := starling.Range{Hi: 100}, starling.Range{Lo: 100}
	for _, c := range []struct {
		m    wire.Fence
		want bool
	}{
		{wire.Fence{Partition: 1, Epoch: 3, Range: whole}, true},
		{wire.Fence{Partition: 1, Epoch: 3, Range: whole}, true}, // once more
		{wire.Fence{Partition: 1, Epoch: 2, Range: whole}, false},
		{wire.Fence{Partition: 2, Epoch: 3, Range: low}, false},
		{wire.Fence{Partition: 2, Epoch: 4, Range: low}, true},
		{wire.Fence{Partition: 1, Epoch: 3, Range: high}, true},
		{wire.Fence{Partition: 1, Epoch: 3, Range: whole}, false}, // its lower half is another's
	} {
		if got := f.Raise(&c.m); got != c.want {
			t.Errorf("fence %+v: got %t", c.m, got)
		}
	}
	if !f.Stale(5, 1, 3) || f.Stale(5, 2, 4) || f.Stale(500, 1, 3) {
		t.Error("a key obeys the wrong epoch")
	}
}
