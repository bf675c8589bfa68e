package handover

import (
	"time"

	"starling"
	"starling/cluster/partmap"
)

// bordersKept is how long a border counts as a new one: twice the time for which leases from before a cut can be in use.
const bordersKept = 2 * (starling.LeaseTTL + 100*time.Millisecond)

// Borders remembers since when this node has known the borders between partitions. A partition keeps its lower key as long as it
// is, and ids rise and are never used again: a border is as old as the id of the partition above it.
type Borders struct {
	seen []lastID // rising
}

// A lastID is the highest id that was ever given in the maps of this node up to an instant.
type lastID struct {
	id starling.PartitionID
	at time.Time
}

// Note takes a map that this node heard of at the instant now.
func (b *Borders) Note(now time.Time, m *partmap.Map) {
	if n := len(b.seen); n == 0 || m.Last > b.seen[n-1].id {
		b.seen = append(b.seen, lastID{m.Last, now})
	}
	for len(b.seen) > 1 && now.Sub(b.seen[1].at) > bordersKept {
		b.seen = b.seen[1:]
	}
}

// Drawn returns when this node heard first of the later of p's borders, or a later instant of before bordersKept. m is the map of the
// last Note, and p is in it.
func (b *Borders) Drawn(m *partmap.Map, p partmap.Partition) time.Time {
	id := p.ID
	if p.Range.Hi != 0 {
		if above, ok := m.Lookup(p.Range.Hi); ok {
			id = max(id, above.ID)
		}
	}
	for _, l := range b.seen {
		if id <= l.id {
			return l.at
		}
	}
	return b.seen[len(b.seen)-1].at
}
