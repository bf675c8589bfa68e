package node

import (
	"context"
	"log/slog"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/identity"
)

// renew replaces the certificate long before it ends, until ctx does.
func (n *Node) renew(ctx context.Context) {
	for {
		wait := max(time.Until(n.id.RenewAt()), time.Second)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err := n.renewOnce(ctx); err != nil {
			n.log("identity").Warn("the node's certificate could not be renewed", slog.Any("error", err), slog.Time("ends", n.id.NotAfter()))
			select {
			case <-ctx.Done():
				return
			case <-time.After(30 * time.Second):
			}
		}
	}
}

func (n *Node) renewOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	csr, err := n.id.CSR()
	if err != nil {
		return err
	}
	cert, err := n.view.Certify(ctx, csr)
	if err != nil {
		return err
	}
	if err := n.id.Renew(cert); err != nil {
		return err
	}
	return n.id.Save(n.cfg.identityDir())
}

// reissue lets a manager whose certificate has ended, or is about to, sign itself a new one: it holds the CA. A cluster
// that was switched off for longer than a certificate lives could not come back otherwise. That the node is still a
// member is judged by the others, by their list.
func (n *Node) reissue(now time.Time) error {
	if n.member.Replica == 0 || now.Before(n.id.RenewAt()) {
		return nil
	}
	ca, err := identity.LoadCA(n.cfg.identityDir())
	if err != nil {
		return err
	}
	csr, err := n.id.CSR()
	if err != nil {
		return err
	}
	cert, err := ca.Sign(csr, identity.Grant{Node: n.id.ID(), Roles: n.id.Roles()}, now)
	if err != nil {
		return err
	}
	if err := n.id.Renew(cert); err != nil {
		return err
	}
	n.log("identity").Info("the node was off for so long that it signed its certificate itself", slog.Time("ends", n.id.NotAfter()))
	return n.id.Save(n.cfg.identityDir())
}

// disconnect ends the connections of nodes that were removed from the cluster as soon as this node hears of it, until
// ctx ends. New ones are refused by the endpoint; without this, streams that were open would live on.
func (n *Node) disconnect(ctx context.Context) {
	eachRemoved(ctx, n.view, func(id starling.NodeID) {
		n.log("endpoint").Info("a node was removed from the cluster: its connections end", slog.String("node", id.String()))
		n.endpoint.Disconnect(id)
	})
}

// eachRemoved calls gone for each node that ceases to be a member, until ctx ends.
func eachRemoved(ctx context.Context, view topologies, gone func(starling.NodeID)) {
	known := view.Topology()
	for {
		changed := view.Changed()
		now := view.Topology()
		for _, id := range removed(known, now) {
			gone(id)
		}
		known = now
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// A topologies is all that eachRemoved needs of a View.
type topologies interface {
	Topology() *cluster.Topology
	Changed() <-chan struct{}
}

// removed returns the members of before that are none any more.
func removed(before, now *cluster.Topology) []starling.NodeID {
	var gone []starling.NodeID
	for _, n := range before.Nodes {
		if _, member := now.Node(n.ID); !member {
			gone = append(gone, n.ID)
		}
	}
	return gone
}
