package manager

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"starling"
	"starling/cluster"
)

// keepReplicas makes the voting replicas those that the topology names, until ctx ends.
func (g *reign) keepReplicas(ctx context.Context) {
	tick := time.NewTicker(reconcileTime)
	defer tick.Stop()
	for {
		if err := g.reconcile(ctx); err != nil && ctx.Err() == nil {
			g.manager.cfg.Log.Warn("the voting replicas could not be changed", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.joined:
		}
	}
}

// reconcile removes the replicas of removed nodes and adds those of nodes that are up, one change at a time.
func (g *reign) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	voters, err := g.replica.Members(ctx)
	if err != nil {
		return err
	}
	g.manager.metrics.voters.Set(float64(len(voters)))
	t := g.manager.cfg.Machine.Topology()
	now := g.manager.cfg.Now()
	g.mu.Lock()
	add, remove := replicaChanges(t, voters, g.self, func(id starling.NodeID) bool { return g.ledger.hears(id, now) })
	g.mu.Unlock()
	for _, id := range remove {
		g.manager.cfg.Log.Info("removing a replica of the state", slog.Uint64("replica", id))
		if err := g.replica.RemoveReplica(ctx, id); err != nil {
			return err
		}
	}
	for _, n := range add {
		g.manager.cfg.Log.Info("adding a replica of the state", slog.Uint64("replica", n.Replica), slog.String("node", n.ID.String()))
		if err := g.replica.AddReplica(ctx, n.Replica); err != nil {
			return err
		}
	}
	return nil
}

// replicaChanges returns what to add and to remove. Replicas are added only in such numbers that the voters
// become odd: two voters stop when either fails, which is worse than one.
func replicaChanges(t *cluster.Topology, voters []uint64, self uint64, up func(starling.NodeID) bool) (add []starling.Node, remove []uint64) {
	var named []uint64
	for _, n := range t.Nodes {
		if n.Replica == 0 {
			continue
		}
		named = append(named, n.Replica)
		if !slices.Contains(voters, n.Replica) && up(n.ID) {
			add = append(add, n)
		}
	}
	if !slices.Contains(named, self) {
		return nil, nil // the cluster is being made: this replica's own node is not a member yet
	}
	for _, v := range voters {
		if !slices.Contains(named, v) {
			remove = append(remove, v)
		}
	}
	for len(add) > 0 && (len(voters)-len(remove)+len(add))%2 == 0 {
		add = add[:len(add)-1]
	}
	return add, remove
}
