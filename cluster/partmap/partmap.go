// Package partmap is the partition map: which range of the key space is which partition, who owns it, in
// which epoch. It is pure. Ranges tile the key space exactly once; epochs only rise.
//
// A Map that was published (stored in a topology, handed to a reader) is never edited: Clone it, apply the
// changes to the clone, publish the clone.
package partmap

import (
	"slices"
	"sort"

	"starling"
)

// A Partition is one entry of the map.
type Partition struct {
	ID    starling.PartitionID `cbor:"1,keyasint" json:"id"`
	Range starling.Range       `cbor:"2,keyasint" json:"range"`
	Epoch starling.Epoch       `cbor:"3,keyasint" json:"epoch"` // 0 until it is first owned
	Owner starling.NodeID      `cbor:"4,keyasint" json:"owner"` // 0 while nobody owns it
}

// A Map holds every partition, ordered by range.
type Map struct {
	Partitions []Partition `cbor:"1,keyasint" json:"partitions"`
}

// A Change is one proposed change of the map. It is refused as Moved unless Epoch is the partition's epoch
// when it is applied.
type Change struct {
	Kind      ChangeKind           `cbor:"1,keyasint"`
	Partition starling.PartitionID `cbor:"2,keyasint"`
	Epoch     starling.Epoch       `cbor:"3,keyasint"`
	To        starling.NodeID      `cbor:"4,keyasint"`
}

// A ChangeKind names a change; numbers are fixed for ever.
type ChangeKind uint8

// Assign gives a partition to a node and raises its epoch. A To of 0 takes it from its owner and gives it
// to nobody: the first half of taking it from an owner that lives.
const Assign ChangeKind = 1

// Initial cuts the key space into n partitions of equal size, owned by nobody, with ids from 1 in the order
// of their ranges. n is 1 to starling.PartitionMax.
func Initial(n int) (*Map, error) {
	if n < 1 || n > starling.PartitionMax {
		return nil, starling.Errorf(starling.Invalid, "cut key space", "%d partitions: use 1-%d", n, starling.PartitionMax)
	}
	m := &Map{Partitions: make([]Partition, n)}
	for i := range m.Partitions {
		m.Partitions[i] = Partition{ID: starling.PartitionID(i + 1), Range: starling.Range{Lo: cut(i, n), Hi: cut((i+1)%n, n)}}
	}
	return m, nil
}

// cut returns the lowest key of slice i of n. It lies on the border between two functions' spans, so that no
// function starts its life split.
func cut(i, n int) starling.Key64 {
	return starling.Key64(uint64(i) * (1 << 32) / uint64(n) << 32)
}

// Clone returns a map that may be edited.
func (m *Map) Clone() *Map { return &Map{Partitions: slices.Clone(m.Partitions)} }

// Apply carries out one change, or refuses it and leaves the map as it was: NotFound when there is no such
// partition, Moved when its epoch has passed, Invalid when the kind is unknown.
func (m *Map) Apply(c Change) error {
	const op = "change partition"
	i := m.index(c.Partition)
	if i < 0 {
		return starling.Errorf(starling.NotFound, op, "there is no partition %s", c.Partition)
	}
	p := &m.Partitions[i]
	if p.Epoch != c.Epoch {
		return starling.Errorf(starling.Moved, op, "%s is at epoch %d and the plan saw %d: plan again", p.ID, p.Epoch, c.Epoch)
	}
	if c.Kind != Assign {
		return starling.Errorf(starling.Invalid, op, "this node does not know change kind %d: upgrade it", c.Kind)
	}
	p.Owner, p.Epoch = c.To, p.Epoch+1
	return nil
}

// Lookup returns the partition that holds k, in O(log n). ok is false only for an empty map.
func (m *Map) Lookup(k starling.Key64) (p Partition, ok bool) {
	i := sort.Search(len(m.Partitions), func(i int) bool { return m.Partitions[i].Range.Lo > k })
	if i == 0 {
		return Partition{}, false
	}
	return m.Partitions[i-1], true
}

// Overlapping returns the partitions with keys in r, in the order of their ranges. The result is part of the map.
func (m *Map) Overlapping(r starling.Range) []Partition {
	from := sort.Search(len(m.Partitions), func(i int) bool { p := m.Partitions[i].Range; return p.Hi == 0 || p.Hi > r.Lo })
	to := len(m.Partitions)
	if r.Hi != 0 {
		to = sort.Search(len(m.Partitions), func(i int) bool { return m.Partitions[i].Range.Lo >= r.Hi })
	}
	return m.Partitions[from:max(from, to)]
}

// ByID returns the partition with this id.
func (m *Map) ByID(id starling.PartitionID) (p Partition, ok bool) {
	i := m.index(id)
	if i < 0 {
		return Partition{}, false
	}
	return m.Partitions[i], true
}

// index returns where the partition lies. In a map that was never split it lies where Initial put it, so
// that place is tried before all others.
func (m *Map) index(id starling.PartitionID) int {
	if i := uint64(id) - 1; i < uint64(len(m.Partitions)) && m.Partitions[i].ID == id {
		return int(i)
	}
	return slices.IndexFunc(m.Partitions, func(p Partition) bool { return p.ID == id })
}

// OwnedBy returns the partitions that the node owns, in the order of their ranges.
func (m *Map) OwnedBy(n starling.NodeID) []Partition {
	var owned []Partition
	for _, p := range m.Partitions {
		if p.Owner == n {
			owned = append(owned, p)
		}
	}
	return owned
}

// Check reports the first broken invariant: the ranges tile the key space exactly once, ids are unique and
// not 0, and an owned partition has been given an epoch. An empty map, before the cluster is made, is whole.
func (m *Map) Check() error {
	const op = "check partition map"
	if len(m.Partitions) > starling.PartitionMax {
		return starling.Errorf(starling.Internal, op, "%d partitions, at most %d are allowed", len(m.Partitions), starling.PartitionMax)
	}
	seen := make(map[starling.PartitionID]bool, len(m.Partitions))
	want := starling.Key64(0)
	for i, p := range m.Partitions {
		last := i == len(m.Partitions)-1
		switch {
		case p.ID == 0 || seen[p.ID]:
			return starling.Errorf(starling.Internal, op, "partition id %d is 0 or used twice", uint64(p.ID))
		case p.Range.Lo != want:
			return starling.Errorf(starling.Internal, op, "%s starts at %016x, the one before ends at %016x", p.ID, uint64(p.Range.Lo), uint64(want))
		case last != (p.Range.Hi == 0), !last && p.Range.Hi <= p.Range.Lo:
			return starling.Errorf(starling.Internal, op, "%s has the range %s, which is empty or ends in the wrong place", p.ID, p.Range)
		case p.Owner != 0 && p.Epoch == 0:
			return starling.Errorf(starling.Internal, op, "%s is owned by %s in no epoch", p.ID, p.Owner)
		}
		seen[p.ID] = true
		want = p.Range.Hi
	}
	return nil
}
