package cluster

import (
	"starling"
	"starling/cluster/partmap"
)

// An Order tells the owner of a partition to change it: to move it, to split it or to merge it. The owner freezes, hands
// over or divides, and proposes the change itself (View.ProposeChange). An order whose epoch has passed means nothing, so
// one of a former leader, or one that comes twice, does no harm.
type Order struct {
	ID        uint64               `cbor:"1,keyasint"` // given by the leader
	Kind      partmap.ChangeKind   `cbor:"2,keyasint"` // Move, Split or Merge
	Partition starling.PartitionID `cbor:"3,keyasint"`
	Epoch     starling.Epoch       `cbor:"4,keyasint"`
	To        starling.NodeID      `cbor:"5,keyasint,omitempty"` // of Move
	At        starling.Key64       `cbor:"6,keyasint,omitempty"` // of Split
	With      starling.PartitionID `cbor:"7,keyasint,omitempty"` // of Merge: the next one above, on the same node
	WithEpoch starling.Epoch       `cbor:"8,keyasint,omitempty"`
}

// Change returns the change that the owner proposes when it has done its part.
func (o Order) Change() partmap.Change {
	return partmap.Change{Kind: o.Kind, Partition: o.Partition, Epoch: o.Epoch, To: o.To, At: o.At, With: o.With, WithEpoch: o.WithEpoch}
}

