package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"starling"
	"starling/frontend/protocol"
)

// ringWidth is how many columns show the key space.
const ringWidth = 64

// A slice is one partition of the ring.
type slice struct {
	Partition starling.PartitionID `json:"partition"`
	Owner     starling.NodeID      `json:"owner"`
	Epoch     starling.Epoch       `json:"epoch"`
	Changed   bool                 `json:"changed"` // since the look before
	from      uint64               // first key
}

// slicesOf tells which partitions changed between two looks, by range.
func slicesOf(last, next []protocol.Partition) []slice {
	before := map[starling.PartitionID]starling.Epoch{}
	for _, p := range last {
		before[p.ID] = p.Epoch
	}
	out := []slice{}
	for _, p := range next {
		from, err := strconv.ParseUint(p.Lo, 16, 64)
		if err != nil {
			continue // no key: a frontend of another release
		}
		epoch, known := before[p.ID]
		out = append(out, slice{Partition: p.ID, Owner: p.Owner, Epoch: p.Epoch, Changed: !known || epoch != p.Epoch, from: from})
	}
	return out
}

// drawRing shows the key space from its first key to its last, one column for a 64th of it, with its owner; and under it
// where a partition that begins there changed.
func drawRing(w io.Writer, ring []slice) {
	if len(ring) == 0 {
		return
	}
	const names = "123456789abcdefghijklmnopqrstuvwxyz"
	owners, marks := strings.Builder{}, []byte(strings.Repeat(" ", ringWidth))
	at, changed := 0, 0
	for column := range uint64(ringWidth) {
		for at+1 < len(ring) && ring[at+1].from <= column<<58 {
			at++
		}
		switch o := ring[at].Owner; {
		case o == 0:
			owners.WriteByte('-')
		default:
			owners.WriteByte(names[(uint64(o)-1)%uint64(len(names))])
		}
	}
	for _, s := range ring {
		if s.Changed {
			changed++
			marks[s.from>>58] = '^'
		}
	}
	fmt.Fprintf(w, "ring   %s  %d partitions, %d changed\n", owners.String(), len(ring), changed)
	fmt.Fprintf(w, "       %s\n\n", strings.TrimRight(string(marks), " "))
}
