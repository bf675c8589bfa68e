package balance

import (
	"starling/cluster/partmap"
)

// merge joins one pair of neighbours that both have been cold for long: where a function's keys were cut, always; elsewhere
// while there are more partitions than the nodes need. Neighbours on two nodes are brought together first.
func (r *round) merge() {
	parts := r.pic.Map.Partitions
	many := len(parts) > r.cfg.PerNode*max(len(r.nodes), 1)
	for i := 0; i+1 < len(parts) && r.room > 0; i++ {
		cutInside := parts[i+1].Range.Lo%span != 0
		if !many && !cutInside || !r.free(i) || !r.free(i+1) || !r.cold(i) || !r.cold(i+1) {
			continue
		}
		why := "its border lies inside one function's keys"
		if !cutInside {
			why = "there are more partitions than the nodes need"
		}
		low, high := parts[i], parts[i+1]
		r.taken[i+1] = true
		if low.Owner == high.Owner {
			r.propose(i, partmap.Change{Kind: partmap.Merge, With: high.ID, WithEpoch: high.Epoch}, "%s and %s have been cold for %s; %s", low.ID, high.ID, r.cfg.ColdFor, why)
			return
		}
		if r.mayOwn(high) {
			r.propose(i, partmap.Change{Kind: partmap.Move, To: high.Owner}, "%s and %s have been cold for %s and are to be merged; %s", low.ID, high.ID, r.cfg.ColdFor, why)
			return
		}
	}
}

func (r *round) cold(i int) bool {
	e := r.entries[r.pic.Map.Partitions[i].ID]
	return r.now.Sub(e.warm) >= r.cfg.ColdFor
}

// mayOwn reports whether the partition's owner may get more.
func (r *round) mayOwn(p partmap.Partition) bool {
	for _, s := range r.nodes {
		if s.ID == p.Owner {
			return true
		}
	}
	return false
}
