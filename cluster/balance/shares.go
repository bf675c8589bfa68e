package balance

import (
	"cmp"
	"math"
	"slices"

	"starling"
)

// Shares are who has how much of one thing that is to be even over the nodes.
type shares struct {
	cfg     Config
	weigh   func(i int) float64 // how much of it the partition at an index of the map is
	nodes   []*share            // that may own partitions, by id
	leaving []*share            // draining ones, by id
	byID    map[starling.NodeID]*share
	zones   map[starling.Zone]*zoneShare
	mean    float64 // of all that is, also where nobody may own partitions
}

// A share is one node with what it has.
type share struct {
	Node
	weight float64
	parts  []int // indexes into the map
}

type zoneShare struct {
	weight float64
	nodes  int
}

func newShares(cfg Config, nodes []Node, weigh func(i int) float64) *shares {
	s := &shares{cfg: cfg, weigh: weigh, byID: map[starling.NodeID]*share{}, zones: map[starling.Zone]*zoneShare{}}
	for _, n := range nodes {
		sh := &share{Node: n}
		s.byID[n.ID] = sh
		if n.Draining {
			s.leaving = append(s.leaving, sh)
			continue
		}
		s.nodes = append(s.nodes, sh)
		if s.zones[n.Zone] == nil {
			s.zones[n.Zone] = &zoneShare{}
		}
		s.zones[n.Zone].nodes++
	}
	byName := func(a, b *share) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(s.nodes, byName)
	slices.SortFunc(s.leaving, byName)
	return s
}

// add gives a partition to a node; to one that is not there, it counts for the mean only.
func (s *shares) add(node starling.NodeID, i int) {
	w := s.weigh(i)
	s.mean += w / float64(max(len(s.nodes), 1))
	n := s.byID[node]
	if n == nil {
		return
	}
	n.weight += w
	n.parts = append(n.parts, i)
	if z := s.zones[n.Zone]; z != nil && !n.Draining {
		z.weight += w
	}
}

// drop takes a partition from a node that has it.
func (s *shares) drop(node starling.NodeID, i int) {
	w := s.weigh(i)
	s.mean -= w / float64(max(len(s.nodes), 1))
	n := s.byID[node]
	n.weight -= w
	n.parts = slices.DeleteFunc(n.parts, func(j int) bool { return j == i })
	if z := s.zones[n.Zone]; z != nil && !n.Draining {
		z.weight -= w
	}
}

// least returns the node that should get the next partition: the least loaded; of those about equal the one in the zone
// with the least for each of its nodes; then the lowest id. nil when there is none.
func (s *shares) least() *share {
	if len(s.nodes) == 0 {
		return nil
	}
	step := max(s.mean/20, 1)
	return slices.MinFunc(s.nodes, func(a, b *share) int {
		za, zb := s.zones[a.Zone], s.zones[b.Zone]
		return cmp.Or(cmp.Compare(math.Floor(a.weight/step), math.Floor(b.weight/step)),
			cmp.Compare(za.weight/float64(za.nodes), zb.weight/float64(zb.nodes)), cmp.Compare(a.weight, b.weight), cmp.Compare(a.ID, b.ID))
	})
}

// most returns the node that should give one away; nil when there is none.
func (s *shares) most() *share {
	if len(s.nodes) == 0 {
		return nil
	}
	return slices.MinFunc(s.nodes, func(a, b *share) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.ID, b.ID))
	})
}

// lowest returns the node with the least weight; there must be one.
func (s *shares) lowest() *share {
	return slices.MinFunc(s.nodes, func(a, b *share) int { return cmp.Compare(a.weight, b.weight) })
}

// imbalance returns the weight of the node with the most over the mean; 0 when there is nothing.
func (s *shares) imbalance() float64 {
	if n := s.most(); n != nil && s.mean > 0 {
		return n.weight / s.mean
	}
	return 0
}

// skewed reports whether some node has so much, or so little, that it is worth a change.
func (s *shares) skewed() bool {
	if len(s.nodes) < 2 {
		return false
	}
	return s.imbalance() > s.cfg.Trigger || s.lowest().weight < (2-s.cfg.Trigger)*s.mean
}

// rests reports whether all nodes have so nearly the same that nothing needs to be changed any more.
func (s *shares) rests() bool {
	if len(s.nodes) < 2 {
		return true
	}
	return s.imbalance() <= s.cfg.Rest && s.lowest().weight >= (2-s.cfg.Rest)*s.mean
}

// pick returns the heaviest partition of from, of those that may be taken, that does not bring it below the mean; if there is
// none, the lightest one that still makes the more loaded of the two nodes lighter by a twentieth of the mean.
func (s *shares) pick(from, to *share, may func(int) bool) (best int, ok bool) {
	const slack = 1e-9
	for _, i := range from.parts {
		w := s.weigh(i)
		if may(i) && w <= (from.weight-s.mean)*(1+slack) && to.weight+w < from.weight && (!ok || w > s.weigh(best)) {
			best, ok = i, true
		}
	}
	if ok {
		return best, true
	}
	for _, i := range from.parts {
		w := s.weigh(i)
		if may(i) && max(from.weight-w, to.weight+w) < from.weight-s.mean/20 && (!ok || w < s.weigh(best)) {
			best, ok = i, true
		}
	}
	return best, ok
}
