package manager

import (
	"log/slog"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
)

// lookInterval is the time between two looks of the planner at the loads.
const lookInterval = 500 * time.Millisecond

// held says why the plan may not move, split and merge by orders; "" when it may, because all replicas and living nodes know these
// changes and every living scheduler takes orders. The caller holds the lock.
func (g *reign) held(t *cluster.Topology, now time.Time) string {
	if n := g.ledger.behind(t, cluster.LevelOrders, now); n != 0 {
		return "the node " + n.String() + " is of an older release, or was not heard in this reign"
	}
	for _, n := range t.Nodes {
		if n.Roles.Has(starling.RoleScheduler) && g.ledger.hears(n.ID, now) && !g.ledger.nodes[n.ID].takes {
			return "the node " + n.ID.String() + " takes no orders"
		}
	}
	return ""
}

// command looks at the loads, when it is time to, and orders what the planner wants. The caller holds the lock.
func (g *reign) command(pic balance.Picture, now time.Time) {
	var proposals []balance.Proposal
	if now.Sub(g.looked) >= lookInterval {
		g.looked = now
		began := g.manager.cfg.Now()
		proposals = g.planner.Look(now, pic)
		g.manager.metrics.looks.UpdateDuration(began)
		g.manager.metrics.imbalance.Set(g.planner.Imbalance())
	} else {
		proposals = g.planner.GoOn(now, pic)
	}
	for _, p := range proposals {
		if _, err := g.order(p, now); err == nil {
			g.manager.cfg.Log.Info("change of a partition ordered", slog.String("partition", p.Change.Partition.String()), slog.String("change", p.Change.Kind.String()),
				slog.String("owner", p.Owner.String()), slog.String("reason", p.Reason))
		}
	}
}

// order gives an order to the owner's session. The caller holds the lock.
func (g *reign) order(p balance.Proposal, now time.Time) (*ticket, error) {
	t, err := g.desk.order(p, now)
	if err != nil {
		return nil, err
	}
	if n := g.nodes[p.Owner]; n != nil {
		n.poke()
	}
	return t, nil
}

// heard takes what a node says of its orders. The caller holds the lock.
func (g *reign) heard(node starling.NodeID, done []cluster.OrderDone, now time.Time) {
	for _, d := range done {
		err := d.Err()
		if t := g.desk.close(d.ID, node, err); t != nil {
			g.settle(t, err, now)
		}
	}
}

// expire forgets orders that were not answered. The caller holds the lock.
func (g *reign) expire(t *cluster.Topology, now time.Time) {
	late, outcomes := g.desk.expire(t.Map, now)
	for i, t := range late {
		g.settle(t, outcomes[i], now)
	}
}

// settle counts and tells what came of an order. The caller holds the lock.
func (g *reign) settle(t *ticket, err error, now time.Time) {
	outcome := "done"
	if err != nil {
		if starling.KindOf(err) != starling.Moved { // the epoch has passed, and with it what was wrong
			g.planner.Refused(now, t.order.Partition)
		}
		outcome = starling.KindOf(err).String()
	}
	m := g.manager
	m.metrics.ordered(t.order.Kind, outcome)
	log := m.cfg.Log.With(slog.String("partition", t.order.Partition.String()), slog.String("change", t.order.Kind.String()), slog.String("owner", t.node.String()),
		slog.Duration("took", now.Sub(t.began)))
	if err != nil {
		log.Warn("an ordered change of a partition was not made", slog.Any("error", err))
	} else {
		log.Info("an ordered change of a partition was made")
	}
}
