package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	vm "github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/actors"
	"starling/actors/host"
	"starling/actors/partition"
	"starling/cluster"
	"starling/cluster/dragonboat"
	"starling/cluster/identity"
	"starling/cluster/manager"
	"starling/frontend"
	"starling/internal/audit"
	"starling/internal/run"
	"starling/metrics"
	"starling/store/code"
	"starling/store/logs"
	"starling/transport"
	"starling/transport/quic"
	"starling/vpcproxy/desk"
	"starling/vpcproxy/gateway"
)

// A Node is one running node. Open starts its parts, Close ends them in reverse; what runs between is theirs, and
// three goroutines: one renews the certificate, one ends the connections of removed nodes, one remembers the managers. A fourth
// may tell the cluster what could not be told at once (permitLater).
type Node struct {
	cfg      Config
	member   membership
	id       *identity.Node
	registry metrics.Registry
	group    *run.Group
	running  atomic.Bool // Open is through: the parts below may be read by any goroutine
	closers  []closer

	endpoint *quic.Endpoint
	machine  *cluster.Machine
	replica  *dragonboat.Host
	manager  *manager.Manager
	view     *cluster.View
	hub      *actors.Hub
	code     *code.Store
	logs     *logs.Store
	desk     *desk.Client // where grants of networks are asked for
	host     *host.Host
	parts    actors.Parts
	audit    *audit.Log // nil for none
	server   *frontend.Server
	admin    *frontend.Admin
	working  atomic.Pointer[host.Host]        // the same
	keeper   atomic.Pointer[partition.Keeper] // of the partitions; the admin server opens before it
	gateway  atomic.Pointer[gateway.Gateway]  // nil for none; the same
	refused  atomic.Pointer[string]           // why the last reload of uplinks was refused; nil before the first
}

// A closer ends one part.
type closer struct {
	part  string
	close func() error
}

// Open starts the node of cfg.Dir and returns when its parts run; Ready tells when it serves.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir) // sandboxes mount what lies in it, and take no relative path
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "open node", "--data %s: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	n := &Node{cfg: cfg, group: run.New(context.Background())}
	for _, open := range []func(context.Context) error{n.openAdmin, n.openIdentity, n.openAudit, n.openEndpoint, n.openControl, n.openStores,
		n.openDesk, n.openGateway, n.openHost, n.openView, n.openPartitions, n.openFrontend, n.listen} {
		if err := open(ctx); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	n.describe()
	n.group.Go(n.renew)
	n.group.Go(n.disconnect)
	n.group.Go(n.remember)
	n.running.Store(true)
	return n, nil
}

// opened remembers how to close a part and shows its numbers.
func (n *Node) opened(part string, set *vm.Set, close func() error) {
	n.registry.Add(set)
	n.closers = append(n.closers, closer{part, close})
}

// Close ends the node: no new calls, those in flight finish within the drain time, then every part in reverse.
func (n *Node) Close() error {
	n.running.Store(false)
	n.group.Stop()
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		if err := n.closers[i].close(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", n.closers[i].part, err))
		}
	}
	n.closers = nil
	return errors.Join(errs...)
}

// Ready returns nil when this node serves, and otherwise what is missing.
func (n *Node) Ready() error {
	const op = "check readiness"
	switch {
	case !n.running.Load():
		return starling.Errorf(starling.Unavailable, op, "the node is starting")
	case !n.view.Ready():
		return starling.Errorf(starling.Unavailable, op, "no manager leads, or it does not hear this node yet")
	}
	m := n.view.Map()
	if len(m.Partitions) == 0 {
		return starling.Errorf(starling.Unavailable, op, "the cluster has no partitions yet")
	}
	for _, p := range m.Partitions {
		if _, alive := n.view.Node(p.Owner); !alive {
			return starling.Errorf(starling.Unavailable, op, "partition %s has no living owner yet", p.ID)
		}
	}
	return nil
}

// ID is this node's name in the cluster.
func (n *Node) ID() starling.NodeID { return n.id.ID() }

// Fingerprint names the cluster's CA; QUIC clients pin it.
func (n *Node) Fingerprint() string { return fingerprint(n.id.CA()) }

func (n *Node) openIdentity(context.Context) error {
	var err error
	if n.member, err = n.cfg.member(); err != nil {
		return err
	}
	n.id, err = identity.Load(n.cfg.identityDir())
	if err != nil {
		return err
	}
	if err := n.reissue(time.Now()); err != nil {
		return err
	}
	if n.id.Roles() != n.cfg.Roles {
		return starling.Errorf(starling.Invalid, "open node", "--roles %s, but the node joined as %s: use those, or join anew with an empty --data", n.cfg.Roles, n.id.Roles())
	}
	return nil
}

// openEndpoint makes the port; listen binds it when all handlers are there.
func (n *Node) openEndpoint(context.Context) error {
	n.endpoint = quic.New(quic.Config{Addr: n.cfg.Listen, Identity: n.id, Allow: allow, Flows: n.cfg.Roles.Has(starling.RoleGateway), Log: n.log("endpoint"),
		Revoked: func(id starling.NodeID) bool { return n.view.Revoked(id) }})
	n.opened("endpoint", n.endpoint.Metrics(), n.endpoint.Close)
	return nil
}

// allow says which roles may open which channel at a node. What is inside is checked by its handler.
func allow(p transport.Peer, ch transport.Channel) bool {
	switch ch {
	case transport.ChannelRaft:
		return p.Roles.Has(starling.RoleManager)
	case transport.ChannelState:
		return p.Roles.Has(starling.RoleScheduler)
	case transport.ChannelInvoke:
		return p.Roles.Has(starling.RoleFrontend)
	case transport.ChannelTunnel:
		return p.Roles.Has(starling.RoleHost)
	case transport.ChannelGrant:
		return p.Roles&(starling.RoleHost|starling.RoleGateway) != 0
	case transport.ChannelProbe:
		return p.Roles.Has(starling.RoleFrontend)
	case transport.ChannelLogs:
		return p.Roles.Has(starling.RoleFrontend)
	case transport.ChannelControl, transport.ChannelActor, transport.ChannelCode:
		return true
	}
	return ch == transport.ChannelJoin || ch == transport.ChannelClient
}

func (n *Node) log(part string) *slog.Logger { return n.cfg.Log.With(slog.String("part", part)) }

// addr returns where a node's endpoint is, "" when nobody knows.
func (n *Node) addr(id starling.NodeID) string {
	node, _ := n.view.Node(id)
	return node.Addr
}

// listen opens the port to the other nodes and to clients.
func (n *Node) listen(context.Context) error {
	if err := n.endpoint.Listen(); err != nil {
		return err
	}
	n.cfg.Log.Info("node runs", slog.String("node", n.ID().String()), slog.String("roles", n.cfg.Roles.String()), slog.String("quic", n.cfg.advertise()),
		slog.String("http", n.cfg.HTTP), slog.String("admin", n.cfg.Admin))
	return nil
}
