package sched

import (
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
)

func TestBusiestComeFirst(t *testing.T) {
	s, now := warmed(t, 50)
	for _, v := range []starling.VersionID{7, 9, 9, 9, 30} {
		s.Step(now, Message{200, &wire.Acquire{Call: uint64(v), Partition: 1, Epoch: 1, Version: v, Wait: time.Second}})
		s.Step(now, Message{200, &wire.Release{Partition: 1, Epoch: 1, Demand: []wire.Demand{{Version: v, Arrivals: 1}}}})
	}
	for n, want := range map[int][]starling.VersionID{0: nil, 1: {9}, 4: {9, 7, 30, 1}} {
		got := s.Busiest(n)
		if len(got) != len(want) {
			t.Fatalf("asked for %d, got %d", n, len(got))
		}
		for k, id := range want {
			if got[k].Version != id {
				t.Errorf("place %d of %d: version %d, want %d", k, n, got[k].Version, id)
			}
		}
	}
	if n := len(s.Busiest(1000)); n != 50 {
		t.Errorf("%d versions, want all 50", n)
	}
}
