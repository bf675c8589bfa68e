package cluster

import "starling"

// A Change names what one applied command made stale. The feed of changes is how every node's cache stays
// true: what is named is dropped, and read again when it is next needed.
type Change struct {
	Index    uint64               `cbor:"1,keyasint"` // Raft index of the command
	Function starling.FunctionRef `cbor:"2,keyasint,omitempty"`
	Versions []starling.VersionID `cbor:"3,keyasint,omitempty"` // gone
	Keys     [][32]byte           `cbor:"4,keyasint,omitempty"` // made or gone
	Account  starling.AccountID   `cbor:"5,keyasint,omitempty"` // and its networks
	Network  starling.NetworkRef  `cbor:"6,keyasint,omitempty"`
}

// feedMax is how many changes are remembered. A node that missed more drops its whole cache.
const feedMax = 4096

// A feed is the bounded memory of the last changes.
type feed struct {
	ring  []Change // in order of index, wrapping at next once it is full
	next  int
	floor uint64 // every change after this index is in the ring
}

// add remembers a change and forgets the oldest when there are too many.
func (f *feed) add(c Change) {
	if len(f.ring) < feedMax {
		f.ring = append(f.ring, c)
		return
	}
	f.floor = f.ring[f.next].Index
	f.ring[f.next] = c
	f.next = (f.next + 1) % feedMax
}

// after returns the changes after index, oldest first; ok is false when some of them are forgotten.
func (f *feed) after(index uint64) (changes []Change, ok bool) {
	if index < f.floor {
		return nil, false
	}
	for i := len(f.ring) - 1; i >= 0; i-- {
		c := f.ring[(f.next+i)%len(f.ring)]
		if c.Index <= index {
			break
		}
		changes = append(changes, c)
	}
	for i, j := 0, len(changes)-1; i < j; i, j = i+1, j-1 {
		changes[i], changes[j] = changes[j], changes[i]
	}
	return changes, true
}
