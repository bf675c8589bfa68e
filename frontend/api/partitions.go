package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"starling"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

// An Operator carries operators' wishes to the manager that leads; cluster.View is one.
type Operator interface {
	Status(ctx context.Context) (cluster.Status, error)
	Change(ctx context.Context, req cluster.ChangeRequest) error
	Plan(ctx context.Context) (cluster.PlanReport, error)
	History(ctx context.Context, q cluster.HistoryQuery) (cluster.History, error)
}

type changeInput struct {
	Credentials
	ID   uint64 `path:"id" minimum:"1" doc:"partition"`
	Body protocol.PartitionChange
}

type historyInput struct {
	Credentials
	Reign uint64 `query:"reign" doc:"of the answer before; 0 for all"`
	After uint64 `query:"after" doc:"number of the last event that is known"`
}

type drainingInput struct {
	Credentials
	ID   uint64 `path:"id" minimum:"1" doc:"node"`
	Body protocol.Draining
}

type removeInput struct {
	Credentials
	ID    uint64 `path:"id" minimum:"1" doc:"node"`
	Force bool   `query:"force" doc:"also one that is alive and not empty"`
}

func (a *api) balance() {
	register(a, huma.Operation{OperationID: "change-partition", Method: http.MethodPost, Path: "/v1/partitions/{id}/changes", Summary: "Move, split or merge a partition", Tags: []string{"cluster"},
		Description: "Waits until the owner has done it. A merge with a neighbour on another node moves this partition there first."}, adminKey, a.changePartition)
	register(a, huma.Operation{OperationID: "plan-partitions", Method: http.MethodGet, Path: "/v1/partitions/plan", Summary: "Show what the balance plan would change, and why", Tags: []string{"cluster"}}, adminKey, a.planPartitions)
	register(a, huma.Operation{OperationID: "read-partition-history", Method: http.MethodGet, Path: "/v1/partitions/history", Summary: "Read what happened to the partitions", Tags: []string{"cluster"},
		Description: "The leading manager remembers the last 1,024 events of its reign. An answer with another reign than was asked for begins anew."}, adminKey, a.history)
	register(a, huma.Operation{OperationID: "drain-node", Method: http.MethodPut, Path: "/v1/nodes/{id}/draining", Summary: "Empty a node, or let it work again", Tags: []string{"nodes"}}, adminKey, a.drainNode)
	register(a, huma.Operation{OperationID: "remove-node", Method: http.MethodDelete, Path: "/v1/nodes/{id}", Summary: "End a node's membership; its certificate is worthless then", Tags: []string{"nodes"}, DefaultStatus: http.StatusNoContent}, adminKey, a.removeNode)
}

func (a *api) operator() (Operator, error) {
	if a.Operator == nil {
		return nil, starling.Errorf(starling.Unavailable, "ask managers", "this frontend carries no operators' wishes: ask another one")
	}
	return a.Operator, nil
}

func (a *api) changePartition(ctx context.Context, _ auth.Principal, in *changeInput) (*output[protocol.PartitionChange], error) {
	o, err := a.operator()
	if err != nil {
		return nil, err
	}
	req := cluster.ChangeRequest{Partition: starling.PartitionID(in.ID), To: in.Body.Node, Function: in.Body.Function, With: in.Body.With}
	switch in.Body.Change {
	case "move":
		req.Kind = partmap.Move
	case "split":
		req.Kind = partmap.Split
	case "merge":
		req.Kind = partmap.Merge
	default:
		return nil, starling.Errorf(starling.Invalid, "change partition", "%q is no change: use move, split or merge", in.Body.Change)
	}
	if in.Body.At != "" {
		at, err := strconv.ParseUint(in.Body.At, 16, 64)
		if err != nil || at == 0 {
			return nil, starling.Errorf(starling.Invalid, "split partition", "at %q: use a key above 0 of up to 16 hex digits", in.Body.At)
		}
		req.At = starling.Key64(at)
	}
	if err := o.Change(ctx, req); err != nil {
		return nil, outOfTime(err)
	}
	return &output[protocol.PartitionChange]{in.Body}, nil
}

func planned(c cluster.Planned) protocol.PlannedChange {
	p := protocol.PlannedChange{Change: c.Change.Kind.String(), Partition: c.Change.Partition, Epoch: c.Change.Epoch, Owner: c.Owner, Node: c.Change.To, With: c.Change.With, Reason: c.Reason}
	if c.Change.Kind == partmap.Split {
		p.At = hex(c.Change.At)
	}
	return p
}

func (a *api) planPartitions(ctx context.Context, _ auth.Principal, _ *onlyKey) (*output[protocol.Plan], error) {
	o, err := a.operator()
	if err != nil {
		return nil, err
	}
	r, err := o.Plan(ctx)
	if err != nil {
		return nil, outOfTime(err)
	}
	status, err := o.Status(ctx)
	if err != nil {
		return nil, outOfTime(err)
	}
	plan := protocol.Plan{Imbalance: r.Imbalance, Held: r.Held, Changes: []protocol.PlannedChange{}, InFlight: []protocol.PlannedChange{}}
	for _, c := range r.Changes {
		plan.Changes = append(plan.Changes, planned(c))
	}
	for _, c := range status.Orders {
		plan.InFlight = append(plan.InFlight, planned(c))
	}
	return &output[protocol.Plan]{plan}, nil
}

func (a *api) history(ctx context.Context, _ auth.Principal, in *historyInput) (*output[protocol.PartitionHistory], error) {
	o, err := a.operator()
	if err != nil {
		return nil, err
	}
	h, err := o.History(ctx, cluster.HistoryQuery{Claim: in.Reign, After: in.After})
	if err != nil {
		return nil, outOfTime(err)
	}
	out := protocol.PartitionHistory{Reign: h.Claim, Events: []protocol.PartitionEvent{}}
	for _, e := range h.Events {
		out.Events = append(out.Events, protocol.PartitionEvent{Number: e.Number, Time: time.UnixMilli(e.Time).UTC(), What: e.What, Partition: e.Partition,
			Lo: hex(e.Range.Lo), Hi: hex(e.Range.Hi), Epoch: e.Epoch, Owner: e.Owner, From: e.From, Reason: e.Reason})
	}
	return &output[protocol.PartitionHistory]{out}, nil
}

func (a *api) drainNode(ctx context.Context, _ auth.Principal, in *drainingInput) (*output[protocol.Draining], error) {
	if _, err := a.propose(ctx, cluster.SetDraining{ID: starling.NodeID(in.ID), Draining: in.Body.Draining}); err != nil {
		return nil, err
	}
	return &output[protocol.Draining]{in.Body}, nil
}

// removeNode refuses to remove what still works, unless it is forced.
func (a *api) removeNode(ctx context.Context, _ auth.Principal, in *removeInput) (*nothing, error) {
	const op = "remove node"
	id := starling.NodeID(in.ID)
	if !in.Force {
		o, err := a.operator()
		if err != nil {
			return nil, err
		}
		s, err := o.Status(ctx)
		if err != nil {
			return nil, outOfTime(err)
		}
		for _, n := range s.Nodes {
			if n.Node.ID == id && n.Alive && !n.Node.Draining {
				return nil, starling.Errorf(starling.Conflict, op, "%s is alive and not drained: drain it first, or force it", id).With("NodeAlive")
			}
			if left := leftOn(n); n.Node.ID == id && n.Alive && left != "" {
				return nil, starling.Errorf(starling.Conflict, op, "%s still has %s: wait until it is empty, or force it", id, left).With("NodeNotEmpty")
			}
		}
	}
	_, err := a.propose(ctx, cluster.RemoveNode{ID: id})
	return nil, err
}

// leftOn says what a node still has; "" for nothing.
func leftOn(n cluster.NodeStatus) string {
	if n.Load.Partitions == 0 && n.Load.Instances == 0 && n.Load.Flows == 0 {
		return ""
	}
	return fmt.Sprintf("%d partitions, %d instances and %d flows", n.Load.Partitions, n.Load.Instances, n.Load.Flows)
}

// observed adds what the leading manager hears of the nodes to a list of them. Without an answer the list stays as it is.
func givenBy(n cluster.NodeStatus) string {
	if !n.Node.Roles.Has(starling.RoleHost) {
		return ""
	}
	if n.Load.Isolations == 0 { // of an older release
		return starling.OnlyProcess.String()
	}
	return n.Load.Isolations.String()
}

func (a *api) observed(ctx context.Context, nodes []protocol.Node) {
	if a.Operator == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := a.Operator.Status(ctx)
	if err != nil {
		return // who is alive is known here; loads are not
	}
	for i := range nodes {
		for _, n := range s.Nodes {
			if n.Node.ID == nodes[i].ID {
				nodes[i].Load = &protocol.NodeLoad{Partitions: n.Load.Partitions, Acquires: n.Load.Acquires, Instances: n.Load.Instances, FreeMiB: n.Load.FreeMiB, TotalMiB: n.Load.TotalMiB, Isolations: givenBy(n), Flows: n.Load.Flows}
				nodes[i].Level = int(n.Level)
			}
		}
	}
}
