package manager

import (
	"context"
	"log/slog"
	"time"

	"starling"
	"starling/cluster"
)

// transferPause is the time between two tries to hand the lead on.
const transferPause = 2 * time.Second

// transferTimeMax bounds one try; rounds wait for it.
const transferTimeMax = 200 * time.Millisecond

// handOn gives the lead to another replica when this node is to be empty, and its partitions are gone: the orders that
// move them are this reign's.
func (g *reign) handOn(ctx context.Context) {
	m := g.manager
	t, now := m.cfg.Machine.Topology(), m.cfg.Now()
	g.mu.Lock()
	to, replica := g.successor(t, now)
	due := to != 0 && now.Sub(g.stepped) >= transferPause
	if due {
		g.stepped = now
	}
	g.mu.Unlock()
	if !due || ctx.Err() != nil {
		return
	}
	m.cfg.Log.Info("this node is to be empty: another manager is asked to lead", slog.String("node", to.String()))
	bounded, cancel := context.WithTimeout(ctx, transferTimeMax)
	defer cancel()
	if err := g.replica.Transfer(bounded, replica); err != nil {
		m.cfg.Log.Warn("the lead could not be handed on", slog.Any("error", err))
	}
}

// successor returns who should lead instead of this node; 0 when it should go on. The caller holds the lock.
func (g *reign) successor(t *cluster.Topology, now time.Time) (starling.NodeID, uint64) {
	self, _ := t.Node(g.manager.cfg.Node)
	own := g.ledger.nodes[self.ID]
	if !self.Draining && (own == nil || !own.stopping) || len(g.desk.open) > 0 {
		return 0, 0
	}
	for _, n := range t.Nodes {
		if other := g.ledger.nodes[n.ID]; n.ID != self.ID && n.Replica != 0 && !n.Draining && g.ledger.hears(n.ID, now) && !other.stopping && t.Map.Count(self.ID) == 0 {
			return n.ID, n.Replica
		}
	}
	return 0, 0
}
