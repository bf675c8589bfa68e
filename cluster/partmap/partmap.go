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

	// Since is the epoch of the last activation by recovery. Leases granted from it on, under whatever partition their
	// keys were in, are in the owner's books; earlier ones hold only while they are in use. At most Epoch.
	Since starling.Epoch `cbor:"5,keyasint,omitempty" json:"since"`
}

// A Map holds every partition, ordered by range.
type Map struct {
	Partitions []Partition          `cbor:"1,keyasint" json:"partitions"`
	Last       starling.PartitionID `cbor:"2,keyasint,omitempty" json:"last"` // the highest id ever given: none is used again
}

// A Change is one proposed change of the map. It is refused as Moved unless Epoch is the partition's epoch
// when it is applied.
type Change struct {
	Kind      ChangeKind           `cbor:"1,keyasint"`
	Partition starling.PartitionID `cbor:"2,keyasint"`
	Epoch     starling.Epoch       `cbor:"3,keyasint"`
	To        starling.NodeID      `cbor:"4,keyasint,omitempty"` // of Assign and Move
	At        starling.Key64       `cbor:"5,keyasint,omitempty"` // of Split
	With      starling.PartitionID `cbor:"6,keyasint,omitempty"` // of Merge
	WithEpoch starling.Epoch       `cbor:"7,keyasint,omitempty"`
}

// A ChangeKind names a change; numbers are fixed for ever.
type ChangeKind uint8

const (
	// Assign gives a partition to a node that recovers it by asking the hosts. A To of 0 takes it from its owner and
	// gives it to nobody: the first half of taking it from an owner that lives.
	Assign ChangeKind = 1

	// Move gives a partition from its owner to another node, which has the owner's state. Only the owner proposes it,
	// after it stopped granting, and so it is with Split and Merge.
	Move ChangeKind = 2

	// Split cuts a partition at the key At; the upper half becomes a new partition of the same owner.
	Split ChangeKind = 3

	// Merge joins a partition with With, the next one above it, which has the same owner and ends to be.
	Merge ChangeKind = 4
)

var kindNames = [...]string{"", "assign", "move", "split", "merge"}

// String returns the word people see.
func (k ChangeKind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Initial cuts the key space into n partitions of equal size, owned by nobody, with ids from 1 in the order
// of their ranges. n is 1 to starling.PartitionMax.
func Initial(n int) (*Map, error) {
	if n < 1 || n > starling.PartitionMax {
		return nil, starling.Errorf(starling.Invalid, "cut key space", "%d partitions: use 1-%d", n, starling.PartitionMax)
	}
	m := &Map{Partitions: make([]Partition, n), Last: starling.PartitionID(n)}
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

// First returns how many partitions Initial cut, which are those with ids up to it, as far as the map still shows it: the last of
// them keeps its id and its lower key until it is joined with the one below. Then it is 1; 0 for the empty map.
func (m *Map) First() int {
	for _, p := range slices.Backward(m.Partitions) {
		if n := int(p.ID); n > 0 && n <= starling.PartitionMax && p.Range.Lo == cut(n-1, n) {
			return n
		}
	}
	return 0
}

// Count returns how many partitions the node owns.
func (m *Map) Count(n starling.NodeID) (owned int) {
	for i := range m.Partitions {
		if m.Partitions[i].Owner == n {
			owned++
		}
	}
	return owned
}

// Clone returns a map that may be edited.
func (m *Map) Clone() *Map { return &Map{Partitions: slices.Clone(m.Partitions), Last: m.Last} }

// Apply carries out one change, or refuses it and leaves the map as it was: NotFound when there is no such
// partition, Moved when its epoch has passed, Conflict when the map does not allow it, Invalid when it makes no sense
// or the kind is unknown.
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
	switch c.Kind {
	case Assign:
		p.Owner, p.Epoch, p.Since = c.To, p.Epoch+1, p.Epoch+1
		return nil
	case Move:
		return p.move(c)
	case Split:
		return m.split(i, c)
	case Merge:
		return m.merge(i, c)
	}
	return starling.Errorf(starling.Invalid, op, "this node does not know change kind %d: upgrade it", c.Kind)
}

func (p *Partition) move(c Change) error {
	const op = "move partition"
	if p.Owner == 0 {
		return starling.Errorf(starling.Conflict, op, "nobody owns %s: there is no state to hand over", p.ID)
	}
	if c.To == 0 || c.To == p.Owner {
		return starling.Errorf(starling.Invalid, op, "%s is to move from %s to %s: name another node", p.ID, p.Owner, c.To)
	}
	p.Owner, p.Epoch = c.To, p.Epoch+1
	return nil
}

func (m *Map) split(i int, c Change) error {
	const op = "split partition"
	p := m.Partitions[i]
	switch {
	case p.Owner == 0:
		return starling.Errorf(starling.Conflict, op, "nobody owns %s: there is no state to divide", p.ID)
	case c.At <= p.Range.Lo || !p.Range.Contains(c.At):
		return starling.Errorf(starling.Invalid, op, "the key %016x is not inside %s, which has %s", uint64(c.At), p.ID, p.Range)
	case len(m.Partitions) >= starling.PartitionMax:
		return starling.Errorf(starling.Conflict, op, "there are %d partitions, as many as there may be: merge some first", len(m.Partitions))
	}
	p.Epoch++
	upper := p
	m.Last++
	upper.ID, upper.Range.Lo, p.Range.Hi = m.Last, c.At, c.At
	m.Partitions[i] = p
	m.Partitions = slices.Insert(m.Partitions, i+1, upper)
	return nil
}

func (m *Map) merge(i int, c Change) error {
	const op = "merge partitions"
	if i+1 == len(m.Partitions) || m.Partitions[i+1].ID != c.With {
		return starling.Errorf(starling.Conflict, op, "%s is not the next one above %s", c.With, c.Partition)
	}
	low, high := &m.Partitions[i], m.Partitions[i+1]
	switch {
	case high.Epoch != c.WithEpoch:
		return starling.Errorf(starling.Moved, op, "%s is at epoch %d and the plan saw %d: plan again", high.ID, high.Epoch, c.WithEpoch)
	case low.Owner == 0 || low.Owner != high.Owner:
		return starling.Errorf(starling.Conflict, op, "%s owns %s and %s owns %s: move one first", low.Owner, low.ID, high.Owner, high.ID)
	}
	// A lease from before the later recovery is honoured only while in use, also where the other half never failed.
	low.Range.Hi, low.Epoch, low.Since = high.Range.Hi, max(low.Epoch, high.Epoch)+1, max(low.Since, high.Since)
	m.Partitions = slices.Delete(m.Partitions, i+1, i+2)
	return nil
}

// Made reports whether the map shows that a Move, Split or Merge, or an Assign, was carried out and nothing happened to
// its partition since. It cannot tell after a later change.
func (m *Map) Made(c Change) bool {
	i := m.index(c.Partition)
	if i < 0 {
		return false
	}
	p := m.Partitions[i]
	kept := p.Since <= c.Epoch // an Assign would have made it the new epoch
	switch c.Kind {
	case Assign:
		return p.Epoch == c.Epoch+1 && p.Owner == c.To && !kept
	case Move:
		return p.Epoch == c.Epoch+1 && p.Owner == c.To && kept
	case Split:
		return p.Epoch == c.Epoch+1 && p.Range.Hi == c.At
	case Merge:
		return p.Epoch == max(c.Epoch, c.WithEpoch)+1 && m.index(c.With) < 0
	}
	return false
}

// Beaten reports whether the map shows for certain that c was not carried out and never will be: another change of its epoch
// was. Where neither Made nor Beaten holds of an epoch that has passed, c was carried out or not, and more happened since.
func (m *Map) Beaten(c Change) bool {
	p, ok := m.ByID(c.Partition)
	if c.Kind != Merge {
		return ok && p.Epoch == c.Epoch+1 && !m.Made(c)
	}
	with, kept := m.ByID(c.With) // a merge would have ended it, for ever
	return kept && (!ok || p.Epoch != c.Epoch || with.Epoch != c.WithEpoch)
}

// Brief returns the map without what Complete would fill in anyway. A map in which nothing was moved, split or merged is
// then the same bytes as an older release's, and a replica of that release can read it.
func (m *Map) Brief() *Map {
	b := m.Clone()
	last := starling.PartitionID(0)
	for i := range b.Partitions {
		p := &b.Partitions[i]
		last = max(last, p.ID)
		if p.Since == p.Epoch {
			p.Since = 0
		}
	}
	if b.Last == last {
		b.Last = 0
	}
	return b
}

// Complete fills in what a map of an older release, or a brief one, does not say.
func (m *Map) Complete() {
	for i := range m.Partitions {
		p := &m.Partitions[i]
		m.Last = max(m.Last, p.ID)
		if p.Since == 0 {
			p.Since = p.Epoch
		}
	}
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
// not 0, and an owned partition has been given an epoch, not before its last recovery. An empty map, before the cluster is made, is whole.
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
		case p.ID > m.Last:
			return starling.Errorf(starling.Internal, op, "%s was never given out: the last one was %s", p.ID, m.Last)
		case p.Since > p.Epoch:
			return starling.Errorf(starling.Internal, op, "%s is at epoch %d and was recovered at %d", p.ID, p.Epoch, p.Since)
		}
		seen[p.ID] = true
		want = p.Range.Hi
	}
	return nil
}
