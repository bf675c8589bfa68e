package frontend

import (
	"context"
	"sync"
	"testing"

	"starling"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/frontend/protocol"
)

// An operator is a leading manager that does what it is asked and remembers it.
type operator struct {
	mu     sync.Mutex // guards asked
	asked  []cluster.ChangeRequest
	status cluster.Status
}

func (o *operator) Status(context.Context) (cluster.Status, error) { return o.status, nil }

func (o *operator) Change(_ context.Context, req cluster.ChangeRequest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, req)
	if req.Partition == 99 {
		return starling.Errorf(starling.NotFound, "change partition", "there is no partition p99").With("NoPartition")
	}
	return nil
}

func (o *operator) Plan(context.Context) (cluster.PlanReport, error) {
	return cluster.PlanReport{Imbalance: 1.5, Changes: []cluster.Planned{{Change: partmap.Change{Kind: partmap.Move, Partition: 1, Epoch: 3, To: 2}, Owner: 1, Reason: "n1 is hot"}}}, nil
}

func (o *operator) History(_ context.Context, q cluster.HistoryQuery) (cluster.History, error) {
	h := cluster.History{Claim: 7}
	if q.After < 1 {
		h.Events = []cluster.Event{{Number: 1, Time: 1000, What: "moved", Partition: 1, Epoch: 4, Owner: 2, From: 1, Reason: "n1 is hot"}}
	}
	return h, nil
}

func TestOperatorsChangePartitions(t *testing.T) {
	w := newWorld(t)
	c := w.client(w.admin)
	for _, change := range []protocol.PartitionChange{{Change: "move", Node: 2}, {Change: "split", At: "ff00"}, {Change: "merge", With: 2}} {
		if err := c.ChangePartition(bg, 1, change); err != nil {
			t.Fatal(err)
		}
	}
	want := []cluster.ChangeRequest{{Kind: partmap.Move, Partition: 1, To: 2}, {Kind: partmap.Split, Partition: 1, At: 0xff00}, {Kind: partmap.Merge, Partition: 1, With: 2}}
	for i, req := range w.operator.asked {
		if req != want[i] {
			t.Errorf("asked for %+v, want %+v", req, want[i])
		}
	}
	if err := c.ChangePartition(bg, 99, protocol.PartitionChange{Change: "split"}); starling.KindOf(err) != starling.NotFound || starling.ReasonOf(err) != "NoPartition" {
		t.Errorf("unknown partition: %v", err)
	}
	for _, bad := range []protocol.PartitionChange{{Change: "burn"}, {Change: "split", At: "xyz"}} {
		if err := c.ChangePartition(bg, 1, bad); starling.KindOf(err) != starling.Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := w.client(w.user).ChangePartition(bg, 1, protocol.PartitionChange{Change: "split"}); starling.KindOf(err) != starling.Denied {
		t.Errorf("a user: %v", err)
	}
	plan, err := c.Plan(bg)
	if err != nil || plan.Imbalance != 1.5 || len(plan.Changes) != 1 || plan.Changes[0].Reason != "n1 is hot" || plan.Changes[0].Node != 2 {
		t.Errorf("%+v, %v", plan, err)
	}
	h, err := c.PartitionHistory(bg, 0, 0)
	if err != nil || h.Reign != 7 || len(h.Events) != 1 || h.Events[0].What != "moved" || h.Events[0].Time.Unix() != 1 {
		t.Errorf("%+v, %v", h, err)
	}
	if h, err = c.PartitionHistory(bg, 7, 1); err != nil || len(h.Events) != 0 {
		t.Errorf("%+v, %v", h, err)
	}
}

// A node that is alive is removed only when it is drained and empty, or by force.
func TestNodeIsRemovedWhenItIsEmpty(t *testing.T) {
	w := newWorld(t)
	c := w.client(w.admin)
	node := func(draining bool, partitions uint32) {
		w.operator.status.Nodes = []cluster.NodeStatus{{Node: starling.Node{ID: 1, Draining: draining}, Alive: true, Load: cluster.Load{Partitions: partitions}}}
	}
	node(false, 0)
	if err := c.RemoveNode(bg, 1, false); starling.ReasonOf(err) != "NodeAlive" {
		t.Fatalf("alive: %v", err)
	}
	node(true, 3)
	if err := c.RemoveNode(bg, 1, false); starling.ReasonOf(err) != "NodeNotEmpty" {
		t.Fatalf("not empty: %v", err)
	}
	nodes, err := c.Nodes(bg)
	if err != nil || nodes[0].Load == nil || nodes[0].Load.Partitions != 3 {
		t.Fatalf("%+v, %v", nodes, err)
	}
	if err := c.RemoveNode(bg, 77, true); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("by force, but not there: %v", err)
	}
	if err := c.DrainNode(bg, 77, true); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("drained, but not there: %v", err)
	}
}
