package balance

import (
	"testing"

	"pgregory.net/rapid"

	"starling"
	"starling/cluster/partmap"
)

// apply carries out a plan as the manager does: what it releases is vacant in the next round.
func apply(t interface{ Fatal(...any) }, m *partmap.Map, changes []partmap.Change) {
	for _, c := range changes {
		if err := m.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
}

// picture says who holds what when the given nodes live and owners that do not are long gone.
func picture(m *partmap.Map, nodes []Node) Picture {
	p := Picture{Map: m, Nodes: nodes, Claims: make([]Claim, len(m.Partitions))}
	for i, part := range m.Partitions {
		p.Claims[i] = Vacant
		for _, n := range nodes {
			if n.ID == part.Owner {
				p.Claims[i] = Held
			}
		}
	}
	return p
}

func spread(m *partmap.Map, nodes []Node) (low, high int) {
	low = len(m.Partitions)
	for _, n := range nodes {
		have := len(m.OwnedBy(n.ID))
		low, high = min(low, have), max(high, have)
	}
	return low, high
}

// However nodes come and go, every partition has a living owner after one round, all nodes have equally many
// in the end, no round moves more than allowed, and a balanced cluster is left in peace.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, err := partmap.Initial(rapid.IntRange(1, 100).Draw(t, "partitions"))
		if err != nil {
			t.Fatal(err)
		}
		limit := rapid.IntRange(1, 8).Draw(t, "limit")
		for range rapid.IntRange(1, 5).Draw(t, "stages") {
			var nodes []Node
			for id := starling.NodeID(1); id <= 8; id++ {
				if rapid.Bool().Draw(t, "alive") {
					nodes = append(nodes, Node{ID: id, Zone: starling.Zone(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "zone"))})
				}
			}
			if len(nodes) == 0 {
				if changes := Plan(picture(m, nil), limit); len(changes) > 0 {
					t.Fatalf("%v planned for nobody", changes)
				}
				continue
			}
			before := picture(m, nodes)
			apply(t, m, Plan(before, limit))
			for i, part := range m.Partitions {
				if before.Claims[i] == Vacant && part.Owner == 0 {
					t.Fatal("a partition without an owner was left")
				}
			}
			for round := 0; ; round++ {
				changes := Plan(picture(m, nodes), limit)
				if len(changes) == 0 {
					break
				}
				if round > 2*len(m.Partitions) {
					t.Fatal("the plan never comes to rest")
				}
				if changes[0].To == 0 && len(changes) > limit {
					t.Fatalf("%d moves at once, %d allowed", len(changes), limit)
				}
				apply(t, m, changes)
			}
			if low, high := spread(m, nodes); high-low > 1 {
				t.Fatalf("one node has %d partitions and one has %d", low, high)
			}
		}
	})
}

func TestPlanSpreadsOverZones(t *testing.T) {
	m, _ := partmap.Initial(2)
	nodes := []Node{{ID: 1, Zone: "a"}, {ID: 2, Zone: "a"}, {ID: 3, Zone: "b"}, {ID: 4, Zone: "b"}}
	apply(t, m, Plan(picture(m, nodes), 1))
	if m.Partitions[0].Owner != 1 || m.Partitions[1].Owner != 3 {
		t.Fatalf("two partitions went to %v and %v", m.Partitions[0].Owner, m.Partitions[1].Owner)
	}
}

func TestPlanTouchesNothingThatWaits(t *testing.T) {
	m, _ := partmap.Initial(4)
	nodes := []Node{{ID: 1}, {ID: 2}}
	for i := range m.Partitions {
		m.Partitions[i].Owner, m.Partitions[i].Epoch = 1, 1
	}
	p := picture(m, nodes)
	p.Claims[0] = Waiting
	if changes := Plan(p, 4); len(changes) != 0 {
		t.Fatalf("planned %v while an owner may not know yet that it is none", changes)
	}
}

func TestBusyNodeGetsTheNextOneLast(t *testing.T) {
	m, _ := partmap.Initial(1)
	changes := Plan(picture(m, []Node{{ID: 1, Acquires: 900}, {ID: 2, Acquires: 10}}), 1)
	if len(changes) != 1 || changes[0].To != 2 {
		t.Fatalf("got %v", changes)
	}
}

// A node that drains gets nothing, unless there is no other: a partition without an owner serves nobody.
func TestDrainingNodeGetsNothingWhileThereIsAnother(t *testing.T) {
	m, _ := partmap.Initial(4)
	for _, c := range []struct {
		nodes []Node
		to    starling.NodeID
	}{{[]Node{{ID: 1, Draining: true}, {ID: 2}}, 2}, {[]Node{{ID: 1, Draining: true}}, 1}} {
		changes := Plan(picture(m, c.nodes), 4)
		if len(changes) != 4 {
			t.Fatalf("%d of 4 partitions get an owner", len(changes))
		}
		for _, change := range changes {
			if change.To != c.to {
				t.Fatalf("%v goes to %v", change.Partition, change.To)
			}
		}
	}
}
