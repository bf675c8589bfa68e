package manager

import (
	"context"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/partmap"
	"starling/transport"
)

// tryMax is how many changes a dry run shows.
const tryMax = 64

// operator refuses what only operators ask for, which they do through frontends and managers.
func operator(peer transport.Peer) error {
	if peer.Roles&(starling.RoleManager|starling.RoleFrontend) == 0 {
		return starling.Errorf(starling.Denied, "ask manager", "only frontends and managers carry operators' wishes")
	}
	return nil
}

// answerChange orders what an operator wants and waits for the outcome.
func (m *Manager) answerChange(g *reign, peer transport.Peer, body []byte) (cluster.MessageKind, any) {
	var req cluster.ChangeRequest
	err := operator(peer)
	if err == nil {
		err = cluster.DecodeMessage(body, &req)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*cluster.OrderTime+time.Second)
		defer cancel()
		err = g.change(ctx, req)
	}
	return cluster.MessageReply, cluster.ReplyBody{Reply: cluster.EncodeReply(cluster.Reply{}, err)}
}

// change carries out an operator's wish, in two orders when it is a merge across nodes.
func (g *reign) change(ctx context.Context, req cluster.ChangeRequest) error {
	for {
		g.mu.Lock()
		now, t := g.manager.cfg.Now(), g.manager.cfg.Machine.Topology()
		p, last, err := g.wish(t, req, now)
		var order *ticket
		if err == nil {
			order, err = g.order(p, now)
		}
		g.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case err = <-order.done:
		case <-g.ended:
			err = starling.Errorf(starling.Unavailable, "change partition", "another manager leads now: the change may still come, look at the map")
		case <-ctx.Done():
			err = starling.Errorf(starling.Unavailable, "change partition", "no answer in time: the change may still come, look at the map")
		}
		if err != nil || last {
			return err
		}
	}
}

// wish turns an operator's wish into the next order for it; last tells that it is the only one left. The caller holds
// the lock.
func (g *reign) wish(t *cluster.Topology, req cluster.ChangeRequest, now time.Time) (p balance.Proposal, last bool, err error) {
	const op = "change partition"
	part, ok := t.Map.ByID(req.Partition)
	if !ok {
		return p, false, starling.Errorf(starling.NotFound, op, "there is no partition %s", req.Partition).With("NoPartition")
	}
	if n := g.ledger.behind(t, cluster.LevelOrders, g.manager.cfg.Now()); n != 0 {
		return p, false, starling.Errorf(starling.Conflict, op, "the node %s is of an older release, or a manager that was not heard yet: upgrade all nodes first", n).With("OlderRelease")
	}
	p = balance.Proposal{Owner: part.Owner, Reason: "an operator wants it", Change: partmap.Change{Kind: req.Kind, Partition: part.ID, Epoch: part.Epoch}}
	switch req.Kind {
	case partmap.Move:
		p.Change.To = req.To
		last, err = true, g.mayMove(t, part, req.To, now)
	case partmap.Split:
		p.Change.At, err = g.cutAt(t, part, req, now)
		last = true
	case partmap.Merge:
		p, last, err = g.wishMerge(t, part, req.With, now)
	default:
		err = starling.Errorf(starling.Invalid, op, "change kind %d is not known here: use move, split or merge", req.Kind)
	}
	if err == nil {
		err = g.mayOrder(p.Owner, part, now)
	}
	return p, last, err
}

// mayOrder refuses an order that nobody would carry out.
func (g *reign) mayOrder(owner starling.NodeID, part partmap.Partition, now time.Time) error {
	switch {
	case owner == 0:
		return starling.Errorf(starling.Conflict, "change partition", "nobody owns %s now: try again when it has an owner", part.ID).With("Unowned")
	case !g.ledger.hears(owner, now):
		return starling.Errorf(starling.Unavailable, "change partition", "%s, which owns %s, is not heard: its partitions get new owners soon", owner, part.ID).With("OwnerDown")
	case !g.ledger.nodes[owner].takes:
		return starling.Errorf(starling.Conflict, "change partition", "%s, which owns %s, takes no orders: upgrade it", owner, part.ID).With("OlderRelease")
	}
	return nil
}

// mayMove refuses a move to a node that cannot take it.
func (g *reign) mayMove(t *cluster.Topology, part partmap.Partition, to starling.NodeID, now time.Time) error {
	const op = "move partition"
	n, ok := t.Node(to)
	switch {
	case !ok:
		return starling.Errorf(starling.NotFound, op, "there is no node %s", to).With("NoNode")
	case to == part.Owner:
		return starling.Errorf(starling.Conflict, op, "%s is on %s already", part.ID, to).With("SameNode")
	case !n.Roles.Has(starling.RoleScheduler):
		return starling.Errorf(starling.Invalid, op, "%s is no scheduler: it has the roles %s", to, n.Roles).With("NoScheduler")
	case n.Draining || g.ledger.nodes[to] != nil && g.ledger.nodes[to].stopping:
		return starling.Errorf(starling.Conflict, op, "%s is being drained", to).With("Draining")
	case !g.ledger.hears(to, now):
		return starling.Errorf(starling.Unavailable, op, "%s is not heard", to).With("NodeDown")
	case !g.ledger.nodes[to].takes:
		return starling.Errorf(starling.Conflict, op, "%s takes no partitions that are moved: upgrade it", to).With("OlderRelease")
	}
	return nil
}

// cutAt returns the key at which an operator wants a partition cut.
func (g *reign) cutAt(t *cluster.Topology, part partmap.Partition, req cluster.ChangeRequest, now time.Time) (starling.Key64, error) {
	const op = "split partition"
	at := req.At
	switch {
	case req.Function != (starling.FunctionRef{}):
		key, ok := balance.Middle(part.Range, partmap.Span(req.Function))
		if !ok {
			return 0, starling.Errorf(starling.Invalid, op, "%s has no keys of function %s that could be cut", part.ID, req.Function).With("NotInRange")
		}
		at = key
	case at == 0:
		key, ok := balance.Cut(part.Range, g.ledger.Picture(t, now).Loads[part.ID])
		if !ok {
			return 0, starling.Errorf(starling.Conflict, op, "%s is too small to be cut between functions: name a key or a function", part.ID).With("TooSmall")
		}
		at = key
	}
	if at <= part.Range.Lo || !part.Range.Contains(at) {
		return 0, starling.Errorf(starling.Invalid, op, "the key %016x is not inside %s, which has %s", uint64(at), part.ID, part.Range).With("NotInRange")
	}
	if len(t.Map.Partitions) >= starling.PartitionMax {
		return 0, starling.Errorf(starling.Conflict, op, "there are %d partitions, as many as there may be: merge some first", starling.PartitionMax).With("PartitionLimit")
	}
	return at, nil
}

// wishMerge returns the merge of two neighbours, or first the move that brings them together.
func (g *reign) wishMerge(t *cluster.Topology, part partmap.Partition, with starling.PartitionID, now time.Time) (p balance.Proposal, last bool, err error) {
	const op = "merge partitions"
	other, ok := t.Map.ByID(with)
	if !ok {
		return p, false, starling.Errorf(starling.NotFound, op, "there is no partition %s", with).With("NoPartition")
	}
	low, high := part, other
	if other.Range.Lo < part.Range.Lo {
		low, high = other, part
	}
	if part.ID == other.ID || low.Range.Hi != high.Range.Lo || low.Range.Hi == 0 {
		return p, false, starling.Errorf(starling.Conflict, op, "%s and %s are no neighbours: %s and %s", part.ID, with, part.Range, other.Range).With("NotNeighbours")
	}
	if part.Owner != other.Owner {
		p = balance.Proposal{Owner: part.Owner, Reason: "an operator wants it merged with " + other.ID.String(),
			Change: partmap.Change{Kind: partmap.Move, Partition: part.ID, Epoch: part.Epoch, To: other.Owner}}
		return p, false, g.mayMove(t, part, other.Owner, now)
	}
	return balance.Proposal{Owner: low.Owner, Reason: "an operator wants it",
		Change: partmap.Change{Kind: partmap.Merge, Partition: low.ID, Epoch: low.Epoch, With: high.ID, WithEpoch: high.Epoch}}, true, nil
}

// answerPlan shows what the planner would do.
func (m *Manager) answerPlan(g *reign, peer transport.Peer) (cluster.MessageKind, any) {
	if err := operator(peer); err != nil {
		return refuse(err)
	}
	t, now := m.cfg.Machine.Topology(), m.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	pic := g.ledger.Picture(t, now)
	pic.Busy = g.desk.busy()
	r := cluster.PlanReport{Imbalance: g.planner.Imbalance(), Held: g.held(t, now)}
	for _, p := range g.planner.Try(now, pic, tryMax) {
		r.Changes = append(r.Changes, cluster.Planned{Change: p.Change, Owner: p.Owner, Reason: p.Reason})
	}
	return cluster.MessagePlanIs, r
}

func (m *Manager) answerHistory(g *reign, peer transport.Peer, body []byte) (cluster.MessageKind, any) {
	var q cluster.HistoryQuery
	if err := operator(peer); err != nil {
		return refuse(err)
	}
	if err := cluster.DecodeMessage(body, &q); err != nil {
		return refuse(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return cluster.MessageHistoryIs, g.desk.history(q)
}
