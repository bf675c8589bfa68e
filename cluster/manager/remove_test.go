package manager

import (
	"slices"
	"testing"

	"starling"
	"starling/cluster"
)

func TestRemovalKeepsAMajority(t *testing.T) {
	top := &cluster.Topology{Nodes: []starling.Node{{ID: 1, Replica: 1}, {ID: 2, Replica: 2}, {ID: 3, Replica: 3}, {ID: 4}}}
	for name, c := range map[string]struct {
		alive []starling.NodeID
		id    starling.NodeID
		want  bool
	}{
		"one of three that live":          {[]starling.NodeID{1, 2, 3, 4}, 3, true},
		"the dead one":                    {[]starling.NodeID{1, 2, 4}, 3, true},
		"a living one beside a dead one":  {[]starling.NodeID{1, 2, 4}, 2, false},
		"the leader beside a dead one":    {[]starling.NodeID{1, 2, 4}, 1, false},
		"a node without a replica":        {[]starling.NodeID{1, 2}, 4, true},
		"nobody":                          {[]starling.NodeID{1, 2}, 9, true},
		"the leader itself, others alive": {[]starling.NodeID{1, 2, 3}, 1, true},
	} {
		err := removable(top, []uint64{1, 2, 3}, c.id, 1, func(id starling.NodeID) bool { return slices.Contains(c.alive, id) })
		if (err == nil) != c.want || err != nil && starling.KindOf(err) != starling.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}
