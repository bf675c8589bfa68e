package partition

import (
	"sync"
	"time"

	"starling"
)

const (
	placedTime = 10 * time.Minute // longer than any start, and than a host takes to ask for a key again
	placedMax  = 32 << 10         // placements of one half of that time that are remembered
)

// A placement is a version that was started on a host.
type placement struct {
	version starling.VersionID
	host    starling.NodeID
}

// placements remembers which versions partitions of this node have started where, in two generations. It is asked by who gives
// out keys: a host that was told to start a version may open its code. The zero value is ready.
type placements struct {
	mu      sync.Mutex // a leaf
	now     map[placement]struct{}
	before  map[placement]struct{}
	changed time.Time // when now was empty
}

// note remembers that version is started on host. When there are too many the older half is forgotten early.
func (p *placements) note(version starling.VersionID, host starling.NodeID, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.age(at)
	if p.now == nil || len(p.now) >= placedMax {
		p.before, p.now, p.changed = p.now, map[placement]struct{}{}, at
	}
	p.now[placement{version, host}] = struct{}{}
}

func (p *placements) age(at time.Time) {
	for n := 0; n < 2 && at.Sub(p.changed) > placedTime; n++ {
		p.before, p.now = p.now, nil
		p.changed = p.changed.Add(placedTime)
	}
	if at.Sub(p.changed) > placedTime {
		p.changed = at
	}
}

func (p *placements) has(version starling.VersionID, host starling.NodeID, at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.age(at)
	k := placement{version, host}
	_, now := p.now[k]
	_, before := p.before[k]
	return now || before
}

// Placed reports whether a partition of this node has lately started the version on the host, or was handed over with such an
// instance.
func (k *Keeper) Placed(version starling.VersionID, host starling.NodeID) bool {
	return k.placed.has(version, host, k.cfg.Now())
}
