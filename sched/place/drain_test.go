package place

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"starling"
)

func TestDrainEmptiesTheThinnest(t *testing.T) {
	hosts := []Loaded{{Node: 1, FreeMiB: 256, TotalMiB: 1024, Movable: []int{512, 256}}, {Node: 2, FreeMiB: 768, TotalMiB: 1024, Movable: []int{128, 128}},
		{Node: 3, FreeMiB: 128, TotalMiB: 1024, Movable: []int{896}}}
	want := []Move{{2, 3, 128}, {2, 1, 128}}
	if got := Drain(hosts, 300, 10); !slices.Equal(got, want) {
		t.Errorf("moves %v, want %v", got, want)
	}
	if got := Drain(hosts, 200, 10); got != nil {
		t.Errorf("no host is that thin, yet %v", got)
	}
	if got := Drain(hosts, 300, 1); got != nil {
		t.Errorf("more moves than allowed: %v", got)
	}
	hosts[1].Fixed = 1
	if got := Drain(hosts, 300, 10); got != nil {
		t.Errorf("a host that cannot be emptied is drained: %v", got)
	}
}

// TestDrainFits: what is moved fits, comes from one host, and is all of it.
func TestDrainFits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hosts := make([]Loaded, rapid.IntRange(0, 8).Draw(t, "hosts"))
		for i := range hosts {
			h := &hosts[i]
			h.Node, h.TotalMiB = starling.NodeID(i+1), 2048
			h.Movable = rapid.SliceOfN(rapid.IntRange(128, 400), 0, 5).Draw(t, "instances")
			h.FreeMiB = h.TotalMiB
			for _, m := range h.Movable {
				h.FreeMiB -= m
			}
		}
		moves := Drain(hosts, rapid.IntRange(0, 1000).Draw(t, "thin"), rapid.IntRange(0, 6).Draw(t, "limit"))
		if len(moves) == 0 {
			return
		}
		from := &hosts[moves[0].From-1]
		var sizes []int
		for _, m := range moves {
			to := &hosts[m.To-1]
			if to.FreeMiB -= m.MiB; to.FreeMiB < 0 || m.From != from.Node || m.To == from.Node {
				t.Fatalf("move %+v of %+v", m, moves)
			}
			sizes = append(sizes, m.MiB)
		}
		all := slices.Clone(from.Movable)
		slices.Sort(all)
		slices.Sort(sizes)
		if !slices.Equal(all, sizes) {
			t.Fatalf("host %+v is not emptied by %+v", from, moves)
		}
	})
}
