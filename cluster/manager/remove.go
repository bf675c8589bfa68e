package manager

import (
	"context"
	"slices"
	"time"

	"starling"
	"starling/cluster"
)

// mayRemove refuses to remove a node whose replica the others cannot do without: were too few of them alive, the cluster
// would stand still, and could not even take the removal back.
func (g *reign) mayRemove(ctx context.Context, id starling.NodeID) error {
	voters, err := g.replica.Members(ctx)
	if err != nil {
		return starling.Errorf(starling.Unavailable, "remove node", "the voting replicas cannot be read: %w", err)
	}
	now := g.manager.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	return removable(g.manager.cfg.Machine.Topology(), voters, id, g.self, func(id starling.NodeID) bool { return g.ledger.hears(id, now) })
}

// removable returns Conflict when the voters that would be left have no majority of living ones. self is the replica
// that leads, and so lives.
func removable(t *cluster.Topology, voters []uint64, id starling.NodeID, self uint64, up func(starling.NodeID) bool) error {
	const op = "remove node"
	leaving, ok := t.Node(id)
	if !ok || leaving.Replica == 0 || !slices.Contains(voters, leaving.Replica) {
		return nil
	}
	rest, alive := 0, 0
	for _, v := range voters {
		if v == leaving.Replica {
			continue
		}
		rest++
		at := slices.IndexFunc(t.Nodes, func(n starling.Node) bool { return n.Replica == v })
		if v == self || at >= 0 && up(t.Nodes[at].ID) {
			alive++
		}
	}
	if alive <= rest/2 {
		return starling.Errorf(starling.Conflict, op, "without node %s only %d of %d voting replicas would be alive, no majority: start the others, or remove a dead one first", id, alive, rest).
			With("NoMajority").RetryAfter(time.Second)
	}
	return nil
}
