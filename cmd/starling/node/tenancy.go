package node

import (
	"context"
	"log/slog"
	"time"

	"starling"
	"starling/cluster"
)

// Tenancy refuses to go on as a host whose functions would share its kernel with another account's although nobody said in
// words that they may. With --allow-shared-kernel it says so to the cluster. Call it when the node serves.
func (n *Node) Tenancy(ctx context.Context) error {
	if !n.cfg.Roles.Has(starling.RoleHost) || !n.cfg.isolations().Has(starling.IsolationProcess) {
		return nil
	}
	if n.cfg.SharedKernel {
		if err := n.permitSharing(ctx); err != nil {
			n.log("host").Info("that accounts may share a kernel is told to the cluster later", slog.Any("error", err))
			n.group.Go(n.permitLater)
		}
		return nil
	}
	r, err := n.view.Read(ctx, cluster.Query{What: cluster.QueryIsolation})
	if err != nil || r.Isolation == nil { // a leader of an older release, which mixes as it always did
		n.log("host").Warn("whether accounts may share a kernel could not be asked", slog.Any("error", err))
		return nil
	}
	if !r.Isolation.Mixes {
		return nil
	}
	return starling.Errorf(starling.Denied, "open host", "this cluster has %d accounts, and functions of several would share this host's kernel (isolation process): "+
		"permit that with --allow-shared-kernel, or give the host --isolation gvisor alone and demand it with \"starling cluster isolation --least gvisor\"", r.Isolation.Accounts).With("SharedKernel")
}

// permitSharing says to the cluster that accounts may share a kernel, unless it knows.
func (n *Node) permitSharing(ctx context.Context) error {
	r, err := n.view.Read(ctx, cluster.Query{What: cluster.QueryIsolation})
	if err != nil || r.Isolation.SharedKernel {
		return err
	}
	_, err = n.view.Propose(ctx, cluster.SetIsolation{Policy: r.Isolation.Policy, SharedKernel: true})
	return err
}

// permitPause is how long a node waits before it says again what could not be said: while others are of an older release
// nobody can.
const permitPause = 2 * time.Second

// permitLater says it until it was heard, or until the node is no member that may say it.
func (n *Node) permitLater(ctx context.Context) {
	t := time.NewTicker(permitPause)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := n.permitSharing(ctx); err == nil || starling.KindOf(err) == starling.Denied {
			return
		}
	}
}
