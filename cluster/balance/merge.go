package balance

import (
	"starling"
	"starling/cluster/partmap"
)

// merge joins one pair of neighbours that both have been cold for long, where a cut is no longer worth its partition. Neighbours
// on two nodes are brought together first.
func (r *round) merge() {
	parts, first := r.pic.Map.Partitions, r.pic.Map.First()
	for i := 0; i+1 < len(parts) && r.room > 0; i++ {
		why := r.idleBorder(parts[i+1], first)
		if why == "" || !r.free(i) || !r.free(i+1) || !r.cold(i) || !r.cold(i+1) {
			continue
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

// idleBorder says why the border below a partition need not be there when it is cold on both sides; "" when it stays. Where a
// function's keys were cut it goes always, elsewhere while there are more partitions than the nodes need. The partitions that
// the cluster was made with are what its operator asked for: they are joined only to make room for a cut, and the last of them
// never, by which they are known.
func (r *round) idleBorder(above partmap.Partition, first int) string {
	n := len(r.pic.Map.Partitions)
	switch id := int(above.ID); {
	case above.Range.Lo%span != 0:
		return "its border lies inside one function's keys"
	case r.crowded && id != first:
		return "there may be no more partitions, and one is to be cut"
	case id > first && n > r.cfg.PerNode*max(len(r.nodes), 1):
		return "there are more partitions than the nodes need"
	}
	return ""
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

// full reports whether there may be no more partitions.
func (r *round) full() bool { return len(r.pic.Map.Partitions) >= starling.PartitionMax }
