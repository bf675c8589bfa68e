package sched

import "starling"

// An index finds versions by id: one look into memory, where Go's map takes two or three. Linear probing in a table at
// most half full; a removal closes its gap, so that probes stay short.
type index struct {
	slots []indexed // a power of two
	n     int
}

type indexed struct {
	id starling.VersionID
	v  *version // nil for an empty slot
}

const indexMin = 64

// home spreads ids, which are counted up or drawn, over the table (Fibonacci hashing: Knuth, The Art of Computer
// Programming 3, 6.4).
func (x *index) home(id starling.VersionID) uint64 {
	return uint64(id) * 0x9E3779B97F4A7C15 >> 20 & uint64(len(x.slots)-1)
}

// find returns the version or nil.
func (x *index) find(id starling.VersionID) *version {
	if x.n == 0 {
		return nil
	}
	for k := x.home(id); ; k = (k + 1) & uint64(len(x.slots)-1) {
		if s := &x.slots[k]; s.v == nil || s.id == id {
			return s.v
		}
	}
}

// add puts in a version that is not there.
func (x *index) add(v *version) {
	if 2*(x.n+1) > len(x.slots) {
		old := x.slots
		x.slots = make([]indexed, max(2*len(old), indexMin))
		x.n = 0
		for _, s := range old {
			if s.v != nil {
				x.add(s.v)
			}
		}
	}
	k := x.home(v.id)
	for x.slots[k].v != nil {
		k = (k + 1) & uint64(len(x.slots)-1)
	}
	x.slots[k] = indexed{v.id, v}
	x.n++
}

// remove takes v out and moves up those that gave way to it.
func (x *index) remove(v *version) {
	mask := uint64(len(x.slots) - 1)
	k := x.home(v.id)
	for x.slots[k].v != v {
		k = (k + 1) & mask
	}
	for j := (k + 1) & mask; x.slots[j].v != nil; j = (j + 1) & mask {
		if home := x.home(x.slots[j].id); (j-home)&mask >= (j-k)&mask {
			x.slots[k] = x.slots[j]
			k = j
		}
	}
	x.slots[k] = indexed{}
	x.n--
}
