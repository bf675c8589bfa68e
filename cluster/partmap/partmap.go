// Package partmap is the partition map: which range of the key space is which partition, who owns it, in
// which epoch. It is pure. Ranges tile the key space exactly once; epochs only rise.
package partmap

import "starling"

// A Partition is one entry of the map.
type Partition struct {
	ID    starling.PartitionID `cbor:"1,keyasint" json:"id"`
	Range starling.Range       `cbor:"2,keyasint" json:"range"`
	Epoch starling.Epoch       `cbor:"3,keyasint" json:"epoch"`
	Owner starling.NodeID      `cbor:"4,keyasint" json:"owner"` // 0 while nobody owns it
}

// A Map holds every partition, ordered by range.
type Map struct {
	Partitions []Partition `cbor:"1,keyasint" json:"partitions"`
}

// A Change is one proposed change of the map. It is refused as Moved unless Epoch is the partition's epoch
// when it is applied.
type Change struct {
	Kind      ChangeKind           `cbor:"1,keyasint"`
	Partition starling.PartitionID `cbor:"2,keyasint"`
	Epoch     starling.Epoch       `cbor:"3,keyasint"`
	To        starling.NodeID      `cbor:"4,keyasint"`
}

// A ChangeKind names a change; numbers are fixed for ever.
type ChangeKind uint8

// Assign gives a partition to a node and raises its epoch.
const Assign ChangeKind = 1
