package balance

import (
	"testing"
	"time"

	"starling"
	"starling/cluster/partmap"
)

func TestColdHalvesOfOneFunctionAreMerged(t *testing.T) {
	m := owned(1, 1)
	key, _ := Middle(m.Partitions[0].Range, partmap.Span(functionIn(m.Partitions[0].Range)))
	if err := m.Apply(partmap.Change{Kind: partmap.Split, Partition: 1, Epoch: 1, At: key}); err != nil {
		t.Fatal(err)
	}
	plan, looks := repeat(NewPlanner(DefaultConfig()), Picture{Map: m, Claims: make([]Claim, 3), Nodes: []Node{{ID: 1}}}, 200)
	if len(plan) != 1 || plan[0].Change.Kind != partmap.Merge || plan[0].Change.Partition != 1 || plan[0].Change.With != 3 || looks < 120 {
		t.Fatalf("got %+v after %d looks", plan, looks)
	}
}

// What the operator asked for stays, however cold and however many; what load cut goes when it is cold and too much.
func TestPartitionsOfTheBeginningStay(t *testing.T) {
	m := owned(make([]starling.NodeID, 200)...)
	for i := range m.Partitions {
		m.Partitions[i].Owner = 1
	}
	pic := Picture{Map: m, Claims: make([]Claim, 201), Nodes: []Node{{ID: 1}}}
	if plan, looks := repeat(NewPlanner(DefaultConfig()), pic, 300); len(plan) > 0 {
		t.Errorf("planned %+v after %d looks", plan, looks)
	}
	p := m.Partitions[50]
	if err := m.Apply(partmap.Change{Kind: partmap.Split, Partition: p.ID, Epoch: p.Epoch, At: (p.Range.Lo/span + 1) * span}); err != nil {
		t.Fatal(err)
	}
	plan, looks := repeat(NewPlanner(DefaultConfig()), pic, 300)
	if len(plan) != 1 || plan[0].Change.Kind != partmap.Merge || plan[0].Change.Partition != p.ID || plan[0].Change.With != 201 {
		t.Errorf("planned %+v after %d looks, want the cut to be undone", plan, looks)
	}
}

// Where there may be no more partitions, two cold ones make room for the cut of a hot one.
func TestColdPartitionsMakeRoomForACut(t *testing.T) {
	m := owned(make([]starling.NodeID, starling.PartitionMax)...)
	loads := map[starling.PartitionID]partmap.Load{}
	for i := range m.Partitions {
		m.Partitions[i].Owner = starling.NodeID(i%2 + 1)
	}
	hot := m.Partitions[1000]
	f := functionIn(hot.Range)
	loads[hot.ID] = partmap.Load{Partition: hot.ID, Epoch: hot.Epoch, Acquires: 5000, Hot: []partmap.Hot{{Function: f, Share: 990}}}
	pic := Picture{Map: m, Claims: make([]Claim, len(m.Partitions)), Nodes: []Node{{ID: 1}, {ID: 2}}, Loads: loads}
	p, now, cut := NewPlanner(DefaultConfig()), time.Unix(1e9, 0), false
	for range 300 {
		now = now.Add(500 * time.Millisecond)
		for _, c := range p.Look(now, pic) {
			if c.Change.Kind == partmap.Merge && c.Change.With == starling.PartitionMax {
				t.Fatalf("%+v: the last partition of the beginning is what tells how many there were", c)
			}
			cut = cut || c.Change.Kind == partmap.Split
			m = m.Clone()
			if err := m.Apply(c.Change); err != nil {
				t.Fatal(err)
			}
			pic.Map = m
		}
	}
	if len(m.Partitions) < starling.PartitionMax-2 || !cut {
		t.Errorf("%d partitions are left, and the hot one was cut: %v", len(m.Partitions), cut)
	}
}
