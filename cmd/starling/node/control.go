package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"os"
	"slices"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/dragonboat"
	"starling/cluster/identity"
	"starling/cluster/manager"
)

// openControl connects this node to the cluster: the replica and the manager over it, on a node that holds one, and the
// view of the manager that leads. The view is made first because the replica finds its peers by it.
func (n *Node) openControl(ctx context.Context) error {
	cfg := cluster.ViewConfig{
		Node:   starling.Node{ID: n.ID(), Name: n.cfg.name(), Addr: n.cfg.advertise(), Roles: n.cfg.Roles, Zone: n.cfg.Zone, HTTP: n.cfg.HTTP},
		Dialer: n.endpoint, Managers: n.member.Managers, Load: n.load, Report: n.report, Log: n.log("view"),
	}
	if n.member.Replica != 0 {
		ca, err := identity.LoadCA(n.cfg.identityDir())
		if err != nil {
			return err
		}
		n.machine = cluster.NewMachine()
		n.manager = manager.New(manager.Config{Node: n.ID(), Endpoint: n.endpoint, Machine: n.machine, Signer: signer{ca}, Log: n.log("manager")})
		cfg.Local = n.manager
	}
	n.view = cluster.NewView(cfg)
	if n.manager != nil {
		if err := n.openReplica(ctx); err != nil {
			return err
		}
	}
	return nil
}

// openView begins to be a member. It stands between the host and the partitions: closing in reverse, the node first
// stops to decide, then says farewell, so that its partitions have new owners at once and nobody sends calls to its
// host, and only then takes its instances down.
func (n *Node) openView(context.Context) error {
	n.view.Open()
	n.opened("view", n.view.Metrics(), n.closeView)
	return nil
}

// openReplica starts the replica and lets the manager lead when it does.
func (n *Node) openReplica(ctx context.Context) (err error) {
	if err := n.mayVote(ctx); err != nil {
		return err
	}
	cfg := dragonboat.Config{Dir: n.cfg.managerDir(), Cluster: n.id.Cluster(), Shard: 1, Replica: n.member.Replica, Join: n.member.Replica != 1,
		Endpoint: n.endpoint, Resolve: n.resolve, Machine: n.machine,
		OnLeader: func(uint64, uint64) { n.manager.LeaderChanged() }, Fatal: n.fatal, Log: n.log("replica")}
	if n.member.Restore {
		cfg.Join = false
	}
	if !cfg.Join {
		cfg.Members = []uint64{n.member.Replica}
	}
	if n.replica, err = dragonboat.Open(cfg); err != nil {
		return err
	}
	n.opened("replica", nil, n.replica.Close)
	if n.member.Bootstrap != nil {
		if err := n.bootstrap(ctx); err != nil {
			return err
		}
	}
	if n.member.Restore {
		if err := n.restore(ctx); err != nil {
			return err
		}
	}
	n.manager.Open(n.replica, n.ID(), n.member.Replica)
	n.opened("manager", n.manager.Metrics(), n.manager.Close)
	return nil
}

// resolve finds the node of a replica: in the replicated state, in what was pushed here, or where the cluster said at joining.
func (n *Node) resolve(id uint64) (string, bool) {
	for _, m := range n.machine.Topology().Nodes {
		if m.Replica == id {
			return m.Addr, true
		}
	}
	for _, m := range n.view.Topology().Nodes {
		if m.Replica == id {
			return m.Addr, true
		}
	}
	addr, ok := n.member.Replicas[id]
	return addr, ok
}

// fatal ends the process: the replica's store broke under it, and nothing may be acknowledged any more.
func (n *Node) fatal(err error) {
	n.log("replica").Error("the replicated state's store broke: the node ends at once; mend the disk and start it again", slog.Any("error", err))
	os.Exit(exitStore)
}

// exitStore is the exit code of a node whose store broke.
const exitStore = 74

// A signer is the cluster's CA as the manager wants it.
type signer struct{ *identity.CA }

// Sign signs a node's certificate from now on.
func (s signer) Sign(request []byte, node starling.NodeID, roles starling.Roles) ([]byte, error) {
	return s.CA.Sign(request, identity.Grant{Node: node, Roles: roles}, time.Now())
}

// bootstrap gives a new cluster its name, its first node and its first keys. Every command may have been applied by
// an earlier try that was cut off; Conflict and Denied then mean that it is there.
func (n *Node) bootstrap(ctx context.Context) error {
	b := n.member.Bootstrap
	now := time.Now().Unix()
	commands := []cluster.Command{
		cluster.InitCluster{Name: b.Cluster, Partitions: b.Partitions},
		cluster.AddNode{Node: starling.Node{Name: n.cfg.name(), Addr: n.cfg.advertise(), Roles: n.cfg.Roles, Zone: n.cfg.Zone, HTTP: n.cfg.HTTP}, Now: now},
		cluster.CreateAccount{Account: starling.Account{ID: b.Account, ConcurrencyMax: starling.ConcurrencyMax, Created: now}},
	}
	for _, k := range b.Keys {
		k.Key.Hash = [32]byte(k.Hash)
		commands = append(commands, cluster.CreateKey{Key: k.Key})
	}
	if n.cfg.SharedKernel {
		commands = append(commands, cluster.SetIsolation{SharedKernel: true})
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, c := range commands {
		if err := n.proposeUntil(ctx, c); err != nil {
			return err
		}
	}
	n.member.Bootstrap = nil
	return n.cfg.saveMember(n.member)
}

// proposeUntil repeats a proposal while the group has no leader yet.
func (n *Node) proposeUntil(ctx context.Context, c cluster.Command) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		_, err := manager.Propose(attempt, n.replica, c)
		cancel()
		switch k := starling.KindOf(err); {
		case err == nil, k == starling.Conflict, k == starling.Denied:
			return nil
		case k != starling.Unavailable:
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(starling.Errorf(starling.Unavailable, "create cluster", "the first replica did not come up"), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// closeView remembers the managers for the next start.
func (n *Node) closeView() error {
	n.keepManagers()
	return n.view.Close()
}

// remember keeps the managers' addresses as they change, until ctx ends: a node that is killed must find the others
// when its own copy of the state is lost.
func (n *Node) remember(ctx context.Context) {
	for {
		changed := n.view.Changed()
		n.keepManagers()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// keepManagers is called by one goroutine at a time: remember, and after its end closeView.
func (n *Node) keepManagers() {
	m := n.view.Managers()
	if len(m) == 0 || n.member.Bootstrap != nil || slices.Equal(m, n.member.Managers) {
		return
	}
	n.member.Managers = m
	if err := n.cfg.saveMember(n.member); err != nil {
		n.log("view").Warn("the managers' addresses were not kept", slog.Any("error", err))
	}
}

func fingerprint(ca []byte) string { return identity.FormatFingerprint(sha256.Sum256(ca)) }
