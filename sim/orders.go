package sim

import (
	"slices"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// Planned counts what became of planned changes.
type Planned struct {
	Moves, Splits, Merges, Aborted, Settled int             // Settled: the first proposal had no known outcome
	Gaps                                    []time.Duration // from the freeze until each successor that went on with the state granted
}

// add sums up.
func (p *Planned) add(o *Planned) {
	p.Moves, p.Splits, p.Merges, p.Aborted, p.Settled = p.Moves+o.Moves, p.Splits+o.Splits, p.Merges+o.Merges, p.Aborted+o.Aborted, p.Settled+o.Settled
	p.Gaps = append(p.Gaps, o.Gaps...)
}

// gap returns how long nobody granted in a share of the changes, shortest first.
func (p *Planned) gap(share float64) time.Duration {
	if len(p.Gaps) == 0 {
		return 0
	}
	slices.Sort(p.Gaps)
	return p.Gaps[min(int(share*float64(len(p.Gaps))), len(p.Gaps)-1)]
}

// planned is Planned while the world lives.
type planned struct {
	Planned
	relayed int
}

// orderOne has the leader order some change: of any partition that has an owner, to any node, at any key. Now and then the
// order names an epoch that has passed, or comes twice.
func (w *World) orderOne() {
	lead := w.raft.leader
	if lead == nil || !lead.running() || lead.mgr.reign == nil {
		return
	}
	m := lead.mgr.topology.Map
	c, ok := w.drawChange(m)
	p, _ := m.ByID(c.Partition)
	if !ok || p.Owner == 0 {
		return
	}
	if w.rng.IntN(20) == 0 && c.Epoch > 1 {
		c.Epoch--
	}
	w.order(lead, w.node(p.Owner), c)
	if w.rng.IntN(8) == 0 {
		w.at(w.upTo(time.Second), do(func() { w.order(lead, w.node(p.Owner), c) }))
	}
}

// order gives an order to the owner of a partition; one that is lost is lost.
func (w *World) order(from, to *node, c partmap.Change) {
	if !from.running() {
		return
	}
	w.trace("%v orders %v: %v %v/%d to %v at %016x with %v", from.id, to.id, c.Kind, c.Partition, c.Epoch, c.To, uint64(c.At), c.With)
	from.tell(to, func() { to.parts.obey(c) }, nothing)
}

// drawChange draws a change that the map would allow. Two neighbours are brought to one node before they are merged.
func (w *World) drawChange(m *partmap.Map) (c partmap.Change, ok bool) {
	r := w.rng
	i := r.IntN(len(m.Partitions))
	p := m.Partitions[i]
	move := func(to starling.NodeID) (partmap.Change, bool) {
		return partmap.Change{Kind: partmap.Move, Partition: p.ID, Epoch: p.Epoch, To: to}, to != p.Owner && to != 0
	}
	kind := r.IntN(4)
	if most := w.cfg.Partitions + 4; kind == 2 && len(m.Partitions) >= most {
		kind = 3
	}
	switch kind {
	case 2:
		c = partmap.Change{Kind: partmap.Split, Partition: p.ID, Epoch: p.Epoch, At: w.drawCut(p.Range)}
		return c, c.At > p.Range.Lo && p.Range.Contains(c.At)
	case 3:
		if i+1 == len(m.Partitions) {
			return c, false
		}
		q := m.Partitions[i+1]
		if q.Owner != p.Owner {
			return move(q.Owner)
		}
		return partmap.Change{Kind: partmap.Merge, Partition: p.ID, Epoch: p.Epoch, With: q.ID, WithEpoch: q.Epoch}, true
	}
	return move(w.fronts[r.IntN(len(w.fronts))].id)
}

// drawCut draws the key at which a range is cut: inside a function's span half of the times.
func (w *World) drawCut(over starling.Range) starling.Key64 {
	inside := slices.DeleteFunc(slices.Clone(w.functions), func(f *function) bool { return !over.Contains(f.version.Key()) })
	if len(inside) > 0 && w.rng.IntN(2) == 0 {
		return inside[w.rng.IntN(len(inside))].version.Key()&^0xffff_ffff | starling.Key64(w.rng.Uint32())
	}
	size := uint64(over.Hi) - uint64(over.Lo) // of the whole space it is 0
	if size == 0 {
		return starling.Key64(w.rng.Uint64())
	}
	return over.Lo + starling.Key64(w.rng.Uint64N(size))
}
