package cluster

import (
	"context"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// A ChangeRequest is an operator's wish to move, split or merge. The leader fills in the epochs of its newest map.
type ChangeRequest struct {
	Kind      partmap.ChangeKind   `cbor:"1,keyasint"` // Move, Split or Merge
	Partition starling.PartitionID `cbor:"2,keyasint"`
	To        starling.NodeID      `cbor:"3,keyasint,omitempty"` // of Move
	At        starling.Key64       `cbor:"4,keyasint,omitempty"` // of Split; 0 to cut where it parts the load best
	Function  starling.FunctionRef `cbor:"5,keyasint,omitempty"` // of Split, instead of At: cut this function's keys in half
	With      starling.PartitionID `cbor:"6,keyasint,omitempty"` // of Merge: a neighbour; on another node, Partition is moved there first
}

// Planned is one change with its reason.
type Planned struct {
	Change partmap.Change  `cbor:"1,keyasint" json:"-"`
	Owner  starling.NodeID `cbor:"2,keyasint" json:"owner"` // who carries it out
	Reason string          `cbor:"3,keyasint" json:"reason"`
}

// A PlanReport is the dry run of the leader's plan.
type PlanReport struct {
	Imbalance float64   `cbor:"1,keyasint"`           // load of the most loaded scheduler node over the mean
	Held      string    `cbor:"2,keyasint,omitempty"` // why nothing of it will be done now; empty when it will
	Changes   []Planned `cbor:"3,keyasint"`
}

// A HistoryQuery asks what happened to the map in a reign after an event.
type HistoryQuery struct {
	Claim uint64 `cbor:"1,keyasint"` // of the reign that After is of
	After uint64 `cbor:"2,keyasint"`
}

// A History is what a leader saw happen to the map in its reign, oldest first, at most HistoryMax events.
type History struct {
	Claim  uint64  `cbor:"1,keyasint"` // another one than was asked for: numbers began anew
	Events []Event `cbor:"2,keyasint"`
}

// HistoryMax is how many events a leader remembers.
const HistoryMax = 1024

// An Event is one change of one partition, as the leader saw it.
type Event struct {
	Number    uint64               `cbor:"1,keyasint"` // from 1 in each reign
	Time      int64                `cbor:"2,keyasint"` // Unix milliseconds of the leader's wall clock
	What      string               `cbor:"3,keyasint"` // "assigned", "released", "moved", "split", "merged" or "gone"
	Partition starling.PartitionID `cbor:"4,keyasint"`
	Range     starling.Range       `cbor:"5,keyasint"`
	Epoch     starling.Epoch       `cbor:"6,keyasint"`
	Owner     starling.NodeID      `cbor:"7,keyasint"`
	From      starling.NodeID      `cbor:"8,keyasint"` // the owner before
	Reason    string               `cbor:"9,keyasint"` // empty when the leader does not know it
}

// changeTimeMax bounds one operator's change: a merge across nodes is two orders.
const changeTimeMax = 2*OrderTime + 2*time.Second

// Change has the leader order a change of the map and waits until it is done, refused, or ctx ends (or 12 s when it has
// no end). It is asked once only: Unavailable after it was sent means that it may still be done.
func (v *View) Change(ctx context.Context, req ChangeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeMax)
	defer cancel()
	for {
		l, _, found := v.leading()
		if l != (leader{}) {
			err := v.change(ctx, l, req)
			if starling.ReasonOf(err) != reasonNotLeader {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return starling.Errorf(starling.Unavailable, "change partition", "no manager leads: nothing was ordered, try again")
		case <-v.group.Context().Done():
			return starling.Errorf(starling.Unavailable, "change partition", "this node is stopping")
		case <-found:
		case <-time.After(backOffMax):
		}
	}
}

func (v *View) change(ctx context.Context, l leader, req ChangeRequest) error {
	stream, err := v.dial(ctx, l)
	if err != nil {
		return starling.Errorf(starling.Unavailable, "dial manager", "%w", err).With(reasonNotLeader)
	}
	_, err = exchange(ctx, stream, MessageChange, req)
	return err
}

// Plan returns the dry run of the leader's balance plan.
func (v *View) Plan(ctx context.Context) (PlanReport, error) {
	var p PlanReport
	a, _, err := v.retry(ctx, MessagePlan, always{struct{}{}})
	if err != nil {
		return p, err
	}
	err = DecodeMessage(a.body, &p)
	return p, err
}

// History returns what happened to the map.
func (v *View) History(ctx context.Context, q HistoryQuery) (History, error) {
	var h History
	a, _, err := v.retry(ctx, MessageHistory, always{q})
	if err != nil {
		return h, err
	}
	err = DecodeMessage(a.body, &h)
	return h, err
}

// Empty tells the leader that this node will stop soon, and waits until all its partitions have moved away, or ctx ends. It
// returns at once when nobody here takes orders, or nobody could own what this node does.
func (v *View) Empty(ctx context.Context) {
	v.stopping.Store(true)
	v.beat()
	for {
		changed := v.Changed()
		if !v.orders.taken.Load() || v.Map().Count(v.cfg.Node.ID) == 0 || !v.succeeded() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// succeeded reports whether another living node could own what this one does.
func (v *View) succeeded() bool {
	for _, n := range v.Alive() {
		if n.ID != v.cfg.Node.ID && n.Roles.Has(starling.RoleScheduler) && !n.Draining {
			return true
		}
	}
	return false
}

// Stopping reports whether this node should take no new work: it will stop soon, or the operator empties it.
func (v *View) Stopping() bool {
	n, _ := v.Node(v.cfg.Node.ID)
	return n.Draining || v.stopping.Load()
}
