package place

import (
	"slices"

	"starling"
)

// A Loaded host is one as defragmentation sees it.
type Loaded struct {
	Node     starling.NodeID
	FreeMiB  int
	TotalMiB int
	Movable  []int // MiB of each instance that could be started elsewhere and stopped here
	Fixed    int   // instances that cannot: busy beyond the wait, or another partition's
}

// A Move says that an instance of MiB on From fits on To.
type Move struct {
	From, To starling.NodeID
	MiB      int
}

// Drain chooses at most one thin host, one that uses at most thin per mille of its memory, whose instances all fit on
// other hosts that are fuller than it, and returns the moves that empty it, largest instance first, at most limit;
// none when no host can be emptied, for a host half drained helps nobody. Hosts are tried from the emptiest, and an
// instance goes where it fits most tightly (best-fit decreasing). Equal hosts are taken in the order of their nodes.
func Drain(hosts []Loaded, thin, limit int) []Move {
	order := slices.Clone(hosts)
	slices.SortStableFunc(order, func(a, b Loaded) int {
		if d := a.used()*max(b.TotalMiB, 1) - b.used()*max(a.TotalMiB, 1); d != 0 {
			return d
		}
		return int(a.Node) - int(b.Node)
	})
	for k := range order {
		h := &order[k]
		if h.used() == 0 || h.Fixed > 0 || len(h.Movable) > limit || h.used()*1000 > thin*h.TotalMiB {
			continue
		}
		if moves := empty(h, order[k+1:]); moves != nil {
			return moves
		}
	}
	return nil
}

func (h *Loaded) used() int { return h.TotalMiB - h.FreeMiB }

// empty finds a place for every instance of h, or returns nil.
func empty(h *Loaded, others []Loaded) []Move {
	free := make([]int, len(others))
	for i := range others {
		free[i] = others[i].FreeMiB
	}
	sizes := slices.Clone(h.Movable)
	slices.SortFunc(sizes, func(a, b int) int { return b - a })
	var moves []Move
	for _, mib := range sizes {
		best := -1
		for i := range free {
			if free[i] >= mib && (best < 0 || free[i] < free[best]) {
				best = i
			}
		}
		if best < 0 {
			return nil
		}
		free[best] -= mib
		moves = append(moves, Move{h.Node, others[best].Node, mib})
	}
	return moves
}
