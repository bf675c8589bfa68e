package manager

import (
	"starling"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/transport"
)

// permitOwner refuses a change of the map that is not the proposer's own, and what not every replica of the state
// understands. The epoch decides the rest: a change by who is no longer the owner is refused by the state.
func (g *reign) permitOwner(peer transport.Peer, cmd cluster.Command) error {
	const op = "propose command"
	switch c := cmd.(type) {
	case *cluster.SetDraining:
		return g.needLevel(op, cluster.LevelOrders)
	case *cluster.PublishLayer, *cluster.DeleteLayer:
		return g.needLevel(op, cluster.LevelLayers)
	case *cluster.PutFunction:
		if len(c.Config.Layers) > 0 || c.Unpacked != 0 {
			return g.needLevel(op, cluster.LevelLayers)
		}
	case *cluster.PutNetwork, *cluster.DeleteNetwork:
		return g.needLevel(op, cluster.LevelNetworks)
	case *cluster.ChangeMap:
		return g.permitChange(peer, c.Changes[0])
	}
	return nil
}

func (g *reign) permitChange(peer transport.Peer, c partmap.Change) error {
	const op = "propose change"
	switch c.Kind {
	case partmap.Assign:
		if c.To != peer.Node {
			return starling.Errorf(starling.Denied, op, "node %s may assign a partition of its own to itself only", peer.Node)
		}
	case partmap.Move, partmap.Split, partmap.Merge:
		if err := g.needLevel(op, cluster.LevelOrders); err != nil {
			return err
		}
	default:
		return starling.Errorf(starling.Invalid, op, "this manager does not know change kind %d: upgrade it", c.Kind)
	}
	p, ok := g.manager.cfg.Machine.Topology().Map.ByID(c.Partition)
	if ok && p.Epoch <= c.Epoch && p.Owner != peer.Node {
		return starling.Errorf(starling.Denied, op, "%s is not owned by %s", c.Partition, peer.Node).With("NotOwner")
	}
	return nil
}

// needLevel refuses while a replica may exist, or a node lives, that would not understand what a level added.
func (g *reign) needLevel(op string, level cluster.Level) error {
	t := g.manager.cfg.Machine.Topology()
	g.mu.Lock()
	defer g.mu.Unlock()
	if behind := g.ledger.behind(t, level, g.manager.cfg.Now()); behind != 0 {
		return starling.Errorf(starling.Conflict, op, "the node %s is of an older release, or a manager that was not heard yet: upgrade all nodes first", behind).With("OlderRelease")
	}
	return nil
}

// nameRequest returns the command of a proposal as the log takes it: under the name of its request when it has one.
func (g *reign) nameRequest(p cluster.Proposal) ([]byte, error) {
	const op = "propose command"
	switch {
	case len(p.Request) == 0:
		return p.Command, nil
	case len(p.Request) != 16:
		return nil, starling.Errorf(starling.Invalid, op, "a request is named by 16 bytes, not by %d", len(p.Request))
	}
	g.mu.Lock()
	names := g.names
	g.mu.Unlock()
	if !names { // a node of an older release came since this one was told that requests may be named
		return nil, starling.Errorf(starling.Unavailable, op, "whether it was done cannot be told beside a node of an older release").With(cluster.ReasonOutcomeUnknown)
	}
	return cluster.EncodeCommand(cluster.Once{Request: [16]byte(p.Request), Since: p.Since, Command: p.Command})
}
