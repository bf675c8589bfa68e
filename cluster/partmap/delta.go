package partmap

import (
	"slices"

	"starling"
)

// A Delta is what makes a newer map of an older one. It is as large as what changed between them, not as the map.
type Delta struct {
	Set  []Partition            `cbor:"1,keyasint,omitempty"` // changed or new, in the order of their ranges
	Gone []starling.PartitionID `cbor:"2,keyasint,omitempty"` // ended, in order
	Last starling.PartitionID   `cbor:"3,keyasint"`           // of the newer map
	Sum  uint64                 `cbor:"4,keyasint"`           // of the newer map: Patch refuses to make another one
}

// Since returns what makes m of old, in O(partitions).
func (m *Map) Since(old *Map) Delta {
	d := Delta{Last: m.Last, Sum: m.Sum()}
	var lost []starling.PartitionID // entries of old that are not in m as they were
	i := 0
	for _, p := range m.Partitions {
		for ; i < len(old.Partitions) && old.Partitions[i].Range.Lo < p.Range.Lo; i++ {
			lost = append(lost, old.Partitions[i].ID)
		}
		if i < len(old.Partitions) && old.Partitions[i] == p {
			i++
			continue
		}
		d.Set = append(d.Set, p)
	}
	for ; i < len(old.Partitions); i++ {
		lost = append(lost, old.Partitions[i].ID)
	}
	set := d.ids()
	for _, id := range lost {
		if !set[id] {
			d.Gone = append(d.Gone, id)
		}
	}
	slices.Sort(d.Gone)
	return d
}

func (d Delta) ids() map[starling.PartitionID]bool {
	set := make(map[starling.PartitionID]bool, len(d.Set))
	for _, p := range d.Set {
		set[p.ID] = true
	}
	return set
}

// Patch returns the map that d makes of m, which stays as it is. It is refused as Conflict when the result is not the map
// that d was made for: m is not the map it counts from.
func (m *Map) Patch(d Delta) (*Map, error) {
	out := &Map{Last: d.Last, Partitions: make([]Partition, 0, min(len(m.Partitions)+len(d.Set), starling.PartitionMax))}
	dropped := d.ids()
	for _, id := range d.Gone {
		dropped[id] = true
	}
	set := d.Set
	for _, p := range m.Partitions {
		if dropped[p.ID] {
			continue
		}
		for len(set) > 0 && set[0].Range.Lo < p.Range.Lo {
			out.Partitions, set = append(out.Partitions, set[0]), set[1:]
		}
		out.Partitions = append(out.Partitions, p)
	}
	out.Partitions = append(out.Partitions, set...)
	if got := out.Sum(); got != d.Sum {
		return nil, starling.Errorf(starling.Conflict, "patch partition map", "%d changed and %d ended partitions make another map than the one they were taken from", len(d.Set), len(d.Gone))
	}
	return out, nil
}

// Sum returns a number that two maps share by accident only once in 2^64. It is no defence against who wants to deceive.
func (m *Map) Sum() uint64 {
	const prime = 0x9e3779b97f4a7c15 // odd, and no simple pattern
	h := uint64(len(m.Partitions))
	mix := func(word uint64) {
		h = (h ^ word) * prime
		h ^= h >> 29
	}
	mix(uint64(m.Last))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		mix(uint64(p.ID))
		mix(uint64(p.Range.Lo))
		mix(uint64(p.Range.Hi))
		mix(uint64(p.Epoch))
		mix(uint64(p.Owner))
		mix(uint64(p.Since))
	}
	return h
}
