package cluster

import (
	"time"

	"starling"
	"starling/cluster/partmap"
)

// LevelNow is what this release understands of the cluster's own commands and messages. A node says its level when it
// opens a session; one that says none is at level 1. What a level added is proposed only when all replicas are at it,
// because a replica that does not know a command refuses what the others carry out.
//
//	1  the first release
//	2  the map changes Move, Split and Merge, and SetDraining
//	3  SetIsolation, what functions and accounts say of isolation, and packages kept as sealed images only
//	4  layers; networks, and the versions that name one; Once, and proposals that name their request
const LevelNow Level = 4

// A Level counts what releases added to the replicated commands. It only rises.
type Level uint8

// LevelOrders is the level from which a replica applies Move, Split, Merge, SetDraining and RenewReplica.
const LevelOrders Level = 2

// LevelIsolation is the level from which a replica keeps what is said of isolation, and a host obeys it.
const LevelIsolation Level = 3

// LevelLayers is the level from which a replica keeps layers, and a host shows them to functions.
const LevelLayers Level = 4

// LevelNetworks is the level from which a replica keeps networks, and a host gives them.
const LevelNetworks Level = 4

// LevelOnce is the level from which a replica remembers the outcomes of requests.
const LevelOnce Level = 4

// LevelImages is the level from which a node runs packages of which there is no zip.
const LevelImages Level = 3

// The limits of orders.
const (
	OrderTime = 5 * time.Second // an order that was not answered in so long is forgotten by the leader
	orderMax  = 64              // orders that wait on a node to be taken
	doneMax   = 256             // outcomes that wait to be told to the leader
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

// An OrderDone tells the leader what came of an order.
type OrderDone struct {
	ID      uint64   `cbor:"1,keyasint"`
	Refusal *refusal `cbor:"2,keyasint,omitempty"` // nil when the map was changed
}

// Err returns why the order was not carried out; nil when it was.
func (d OrderDone) Err() error { return d.Refusal.err() }
