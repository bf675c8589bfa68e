package protocol

import (
	"time"

	"starling"
)

// A PartitionChange is what an operator wants of one partition.
type PartitionChange struct {
	Change   string               `json:"change" enum:"move,split,merge" doc:"move, split or merge"`
	Node     starling.NodeID      `json:"node,omitempty" doc:"move: the new owner"`
	At       string               `json:"at,omitempty" doc:"split: first key of the upper part, up to 16 hex digits; chosen by load when absent"`
	Function starling.FunctionRef `json:"function,omitempty" doc:"split, instead of at: cut this function's keys in half"`
	With     starling.PartitionID `json:"with,omitempty" doc:"merge: a neighbour"`
}

// A PlannedChange is one change of the plan, or one in flight, with its reason.
type PlannedChange struct {
	Change    string               `json:"change"`
	Partition starling.PartitionID `json:"partition"`
	Epoch     starling.Epoch       `json:"epoch"`
	Owner     starling.NodeID      `json:"owner"`
	Node      starling.NodeID      `json:"node,omitempty"`
	At        string               `json:"at,omitempty"`
	With      starling.PartitionID `json:"with,omitempty"`
	Reason    string               `json:"reason"`
}

// A Plan is what the leading manager would change now if all reasons had lasted long enough.
type Plan struct {
	Imbalance float64         `json:"imbalance"`      // load of the most loaded scheduler node over the mean
	Held      string          `json:"held,omitempty"` // why nothing of it will be done
	Changes   []PlannedChange `json:"changes"`
	InFlight  []PlannedChange `json:"inFlight"`
}

// A PartitionHistory is what the leading manager saw happen to the partitions.
type PartitionHistory struct {
	Reign  uint64           `json:"reign"`
	Events []PartitionEvent `json:"events"`
}

// A PartitionEvent is one change of one partition.
type PartitionEvent struct {
	Number    uint64               `json:"number"`
	Time      time.Time            `json:"time"`
	What      string               `json:"what"`
	Partition starling.PartitionID `json:"partition"`
	Lo        string               `json:"lo"`
	Hi        string               `json:"hi"`
	Epoch     starling.Epoch       `json:"epoch"`
	Owner     starling.NodeID      `json:"owner"`
	From      starling.NodeID      `json:"from"`
	Reason    string               `json:"reason"`
}

// Draining is the operator's word that a node is to be emptied.
type Draining struct {
	Draining bool `json:"draining"`
}
