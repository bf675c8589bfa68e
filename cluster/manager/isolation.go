package manager

import (
	"context"
	"time"

	"starling"
	"starling/cluster"
)

// permitIsolation refuses a function that no living host could run, and an account whose functions would share a kernel
// with another's although nobody said in words that they may. Both are the leader's to refuse and not the state's: the
// one depends on who is alive, and of the other an older log holds what was permitted then.
func (g *reign) permitIsolation(ctx context.Context, cmd cluster.Command) error {
	const op = "propose command"
	switch c := cmd.(type) {
	case *cluster.SetIsolation:
		return g.needLevel(op, cluster.LevelIsolation)
	case *cluster.CreateAccount:
		return g.permitAccount(ctx, c)
	case *cluster.PutFunction:
		return g.permitFunction(ctx, c)
	}
	return nil
}

func (g *reign) permitAccount(ctx context.Context, c *cluster.CreateAccount) error {
	const op = "create account"
	if c.Account.Isolation != "" || c.Account.IsolationLeast != "" {
		if err := g.needLevel(op, cluster.LevelIsolation); err != nil {
			return err
		}
	} else if g.hearsOlder(cluster.LevelIsolation) {
		return nil // nobody could say the word yet
	}
	r, err := read(ctx, g.replica, cluster.Query{What: cluster.QueryIsolation})
	if err != nil || !r.Isolation.MixesNext {
		return err
	}
	if _, err := read(ctx, g.replica, cluster.Query{What: cluster.QueryAccount, Account: c.Account.ID}); starling.KindOf(err) != starling.NotFound {
		return err // it exists: the state knows whether this is the same question again
	}
	return starling.Errorf(starling.Denied, op, "functions of several accounts would share the kernels of their hosts (isolation process): permit that with "+
		"\"starling cluster isolation --allow-shared-kernel\", or demand more with --least gvisor").With("SharedKernel")
}

func (g *reign) permitFunction(ctx context.Context, c *cluster.PutFunction) error {
	const op = "deploy function"
	r, err := read(ctx, g.replica, cluster.Query{What: cluster.QueryIsolation, Account: c.Function.Account})
	if starling.KindOf(err) == starling.NotFound {
		return nil // the state says so itself
	}
	if err != nil {
		return err
	}
	got, err := r.Isolation.Policy.Resolve(c.Config.Isolation)
	if err != nil {
		return err
	}
	if c.Config.Isolation != "" || got != "" {
		if err := g.needLevel(op, cluster.LevelIsolation); err != nil {
			return err
		}
	}
	if network := c.Config.Network.Stored(); network != starling.NoNetwork {
		if err := g.needLevel(op, cluster.LevelNetworks); err != nil {
			return err
		}
		if got == starling.IsolationGVisor {
			return starling.Errorf(starling.Invalid, op, "network %s with isolation %s: sandboxes of this release have networks with isolation process and kata only", network, got).With("NoNetwork")
		}
	}
	offered, certain := g.offered()
	if offered.Has(got) || !certain {
		return nil
	}
	return starling.Errorf(starling.Conflict, op, "no living host gives isolation %s, they give %s: start a node with --isolation %[1]s, or deploy with another", got.Or(starling.IsolationProcess), offered).With("NoIsolation")
}

// hearsOlder reports whether a living node is known to be below the level.
func (g *reign) hearsOlder(level cluster.Level) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ledger.hearsOlder(g.manager.cfg.Machine.Topology(), level, g.manager.cfg.Now())
}

// hearsOlder reports whether a living node is known to be below the level. One that was not heard is not: who waits for a
// dead manager would permit more than who waits for nobody.
func (l *Ledger) hearsOlder(t *cluster.Topology, level cluster.Level, now time.Time) bool {
	for _, n := range t.Nodes {
		if l.hears(n.ID, now) && l.nodes[n.ID].level < level {
			return true
		}
	}
	return false
}

// offered returns what the living hosts give together; certain is false while a host may be alive that was not heard yet.
func (g *reign) offered() (s starling.Isolations, certain bool) {
	t := g.manager.cfg.Machine.Topology()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ledger.offered(t, g.manager.cfg.Now())
}

// offered returns what the living hosts give together, as far as is known.
func (l *Ledger) offered(t *cluster.Topology, now time.Time) (s starling.Isolations, certain bool) {
	certain = true
	for _, n := range t.Nodes {
		switch m := l.nodes[n.ID]; {
		case !n.Roles.Has(starling.RoleHost):
		case !l.hears(n.ID, now):
			certain = certain && !l.Alive(n.ID, now)
		case m.load.Isolations == 0:
			s |= starling.OnlyProcess // of an older release
		default:
			s |= m.load.Isolations
		}
	}
	return s, certain && s != 0
}
