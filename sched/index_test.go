package sched

import (
	"math/rand/v2"
	"testing"

	"starling"
)

// TestIndexIsAMap compares it with Go's, with ids that meet in few places, too.
func TestIndexIsAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, mask := range []uint64{0xff, 0xfff, 0xff << 56} {
		var x index
		want := map[starling.VersionID]*version{}
		for n := range 20_000 {
			id := starling.VersionID(rng.Uint64() & mask)
			switch v := want[id]; {
			case v == nil && rng.IntN(3) > 0:
				want[id] = &version{id: id}
				x.add(want[id])
			case v != nil && rng.IntN(2) == 0:
				delete(want, id)
				x.remove(v)
			}
			if x.find(id) != want[id] || x.n != len(want) {
				t.Fatalf("step %d: id %x: found %v among %d, want %v among %d", n, id, x.find(id), x.n, want[id], len(want))
			}
		}
		for id, v := range want {
			if x.find(id) != v {
				t.Fatalf("id %x is lost", id)
			}
		}
	}
}
