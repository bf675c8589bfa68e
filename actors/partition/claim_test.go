package partition

import (
	"testing"

	"starling"
	"starling/cluster/partmap"
)

// TestOneChangeOfAPartitionAtATime: a second order is refused before it freezes, thaws or drops anything.
func TestOneChangeOfAPartitionAtATime(t *testing.T) {
	k := New(Config{})
	if err := k.claim([]starling.PartitionID{1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := k.claim([]starling.PartitionID{3, 2}); starling.KindOf(err) != starling.Conflict {
		t.Errorf("a partition that is being changed: %v", err)
	}
	k.unclaim([]starling.PartitionID{1, 2})
	if err := k.claim([]starling.PartitionID{3, 2}); err != nil {
		t.Error(err)
	}
}

// TestALaterStateIsKept: a state whose hand-over was given up comes late, and takes the place of no newer one.
func TestALaterStateIsKept(t *testing.T) {
	k, entry := New(Config{}), partmap.Partition{ID: 1, Epoch: 5, Since: 1}
	early, late := &held{entry: entry, offer: k.nextOffer()}, &held{entry: entry, offer: k.nextOffer()}
	if !k.hold(late) || k.hold(early) {
		t.Error("the earlier state was taken after the later one")
	}
	k.drop(early)
	if k.find(entry) != late {
		t.Error("the later state is gone")
	}
}
