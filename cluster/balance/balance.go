// Package balance decides which node should own which partition. It is pure: it sees one picture of the
// cluster and answers with changes of the map, each of which is refused when its epoch has passed. A plan from
// a stale picture costs a retry, never a partition.
package balance

import (
	"cmp"
	"slices"

	"starling"
	"starling/cluster/partmap"
)

// A Node is one that may own partitions: alive, a scheduler, not leaving.
type Node struct {
	ID       starling.NodeID
	Zone     starling.Zone
	Acquires uint32 // per second; breaks ties
	Draining bool   // it gives all away and gets nothing
	Stopping bool   // the same, and it will leave soon: what no order moves is better recovered when it has left
}

// A Claim on a partition is what its present owner may still do with it.
type Claim uint8

const (
	Held    Claim = iota // its owner acts for it
	Waiting              // nobody should act for it, but its last owner may not know yet
	Vacant               // nobody acts for it, for certain
)

// A Picture is the cluster at one instant.
type Picture struct {
	Map    *partmap.Map
	Claims []Claim // of each partition of Map, in its order
	Nodes  []Node
	Loads  map[starling.PartitionID]partmap.Load    // of those that their owners named among the busiest
	Busy   map[starling.PartitionID]starling.NodeID // those with a change in flight, and to whom they move; 0 for no move
}

// Plan is the part of balancing that needs no owner's help. It assigns every vacant partition to the node with the fewest; between equals to the zone with the fewest
// for each of its nodes, then to the node with the least work, then to the lowest id. When nothing is vacant or
// waiting it takes at most moves partitions from nodes that drain or have two more than another, and gives them to
// nobody: they come back as vacant once their owner has let go. A Planner moves them without a pause; it needs owners
// that take orders.
func Plan(p Picture, moves int) []partmap.Change {
	t := newTally(p)
	if len(t.nodes) == 0 {
		return nil
	}
	var changes []partmap.Change
	calm := true
	for i, part := range p.Map.Partitions {
		calm = calm && p.Claims[i] == Held
		if p.Claims[i] == Vacant {
			n := t.least()
			t.add(n, 1)
			changes = append(changes, partmap.Change{Kind: partmap.Assign, Partition: part.ID, Epoch: part.Epoch, To: n.ID})
		}
	}
	if calm {
		return t.even(p.Map, moves)
	}
	return changes
}

// A tally counts what each node and zone has.
type tally struct {
	nodes    []*count // by id, without those that drain
	draining []starling.NodeID
	zones    map[starling.Zone]*zone
}

type count struct {
	Node
	partitions int
}

type zone struct{ partitions, nodes int }

func newTally(p Picture) *tally {
	t := &tally{zones: map[starling.Zone]*zone{}}
	byID := map[starling.NodeID]*count{}
	all := !slices.ContainsFunc(p.Nodes, func(n Node) bool { return !n.Draining })
	for _, n := range p.Nodes {
		if n.Draining && !all { // where all drain, a partition without an owner is worse than a node that is not empty
			if !n.Stopping {
				t.draining = append(t.draining, n.ID)
			}
			continue
		}
		c := &count{Node: n}
		t.nodes = append(t.nodes, c)
		byID[n.ID] = c
		if t.zones[n.Zone] == nil {
			t.zones[n.Zone] = &zone{}
		}
		t.zones[n.Zone].nodes++
	}
	slices.SortFunc(t.nodes, func(a, b *count) int { return cmp.Compare(a.ID, b.ID) })
	for i, part := range p.Map.Partitions {
		if c := byID[part.Owner]; c != nil && p.Claims[i] == Held {
			t.add(c, 1)
		}
	}
	return t
}

func (t *tally) add(c *count, n int) {
	c.partitions += n
	t.zones[c.Zone].partitions += n
}

// least returns the node that should get the next partition.
func (t *tally) least() *count {
	return slices.MinFunc(t.nodes, func(a, b *count) int {
		za, zb := t.zones[a.Zone], t.zones[b.Zone]
		return cmp.Or(cmp.Compare(a.partitions, b.partitions),
			cmp.Compare(za.partitions*zb.nodes, zb.partitions*za.nodes), // fewest for each node of the zone
			cmp.Compare(a.Acquires, b.Acquires), cmp.Compare(a.ID, b.ID))
	})
}

// most returns the node that should give one away.
func (t *tally) most() *count {
	return slices.MinFunc(t.nodes, func(a, b *count) int {
		return cmp.Or(cmp.Compare(b.partitions, a.partitions), cmp.Compare(b.Acquires, a.Acquires), cmp.Compare(a.ID, b.ID))
	})
}

// even releases partitions until no node has two more than another, at most limit of them.
func (t *tally) even(m *partmap.Map, limit int) []partmap.Change {
	var changes []partmap.Change
	for _, id := range t.draining {
		for _, part := range m.OwnedBy(id) {
			if len(changes) == limit {
				return changes
			}
			changes = append(changes, partmap.Change{Kind: partmap.Assign, Partition: part.ID, Epoch: part.Epoch})
		}
	}
	owned := map[starling.NodeID][]partmap.Partition{}
	for len(changes) < limit {
		from, to := t.most(), t.least()
		if from.partitions-to.partitions < 2 {
			break
		}
		if owned[from.ID] == nil {
			owned[from.ID] = m.OwnedBy(from.ID)
		}
		list := owned[from.ID]
		if len(list) == 0 {
			break // all that it has was planned for it just now
		}
		part := list[len(list)-1]
		owned[from.ID] = list[:len(list)-1]
		t.add(from, -1)
		t.add(to, 1)
		changes = append(changes, partmap.Change{Kind: partmap.Assign, Partition: part.ID, Epoch: part.Epoch})
	}
	return changes
}
