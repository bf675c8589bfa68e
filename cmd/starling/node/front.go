package node

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"log/slog"

	"starling"
	"starling/actors/host"
	"starling/cluster"
	"starling/frontend"
	"starling/frontend/api"
	"starling/frontend/auth"
	"starling/frontend/dispatch"
	"starling/frontend/protocol"
	"starling/metrics/profile"
	"starling/store/logs"
	"starling/transport"
)

// openAdmin opens the operators' server first, so that a node that cannot start says so there.
func (n *Node) openAdmin(ctx context.Context) error {
	if n.cfg.Admin == "" {
		return nil
	}
	n.admin = frontend.NewAdmin(frontend.AdminDeps{Addr: n.cfg.Admin, Metrics: func(w io.Writer) error { return n.registry.WritePrometheus(w) },
		Functions: n.functions, Profiles: n.profiles, Uplinks: n.uplinks, Ready: n.Ready, Pprof: true, Log: n.log("admin")})
	if err := n.admin.Open(ctx); err != nil {
		return err
	}
	n.opened("admin", nil, func() error { return n.admin.Close(context.Background()) })
	return nil
}

// functions returns the busiest functions that this node decides for.
func (n *Node) functions(ctx context.Context, rows int) []protocol.FunctionLoad {
	k := n.keeper.Load()
	if k == nil {
		return nil
	}
	var out []protocol.FunctionLoad
	for _, v := range k.Functions(ctx, rows) {
		out = append(out, protocol.FunctionLoad{Function: v.Function, Version: v.Version, Isolation: v.Isolation, Wanted: v.Wanted, Ready: v.Ready, Starting: v.Starting, Floor: v.Floor,
			Leased: v.Leased, Waiting: v.Waiting, Calls: v.Arrivals, Refused: v.Refused, Cold: v.ColdRatio(), Held: v.Reason})
	}
	return protocol.Busiest(out, rows)
}

// profiles returns what calls used on this node; nothing on a node that runs none, or not yet.
func (n *Node) profiles(name starling.FunctionName) []profile.Profile {
	if h := n.working.Load(); h != nil {
		return h.Profiles(name)
	}
	return nil
}

// openFrontend opens the lease cache and the servers, on a node with that role.
func (n *Node) openFrontend(ctx context.Context) error {
	if !n.cfg.Roles.Has(starling.RoleFrontend) {
		n.hub.Bind(n.parts)
		return nil
	}
	remote := host.NewClient(n.endpoint, n.addr)
	n.opened("host client", nil, func() error { remote.Close(); return nil })
	cfg := dispatch.Config{Node: n.ID(), Post: n.hub, Topology: n.view, Alive: n.alive, Lease: n.view.LeaseUntil, Remote: remote, Log: n.log("dispatch")}
	if n.host != nil {
		cfg.Local = n.host
	}
	dispatcher := dispatch.New(cfg)
	n.parts.Frontend = dispatcher
	n.hub.Bind(n.parts)
	dispatcher.Open(ctx)
	n.opened("dispatch", dispatcher.Metrics(), dispatcher.Close)
	front, err := n.record(ctx, dispatcher)
	if err != nil {
		return err
	}
	return n.openServer(ctx, front)
}

// alive reports whether the manager hears a node.
func (n *Node) alive(id starling.NodeID) bool {
	_, alive := n.view.Node(id)
	return alive
}

func (n *Node) openServer(ctx context.Context, d frontend.Dispatcher) error {
	deps := frontend.Deps{Catalog: n.view, Dispatch: d, Addr: n.cfg.HTTP, API: api.Deps{
		Cluster: n.view, Topology: func() *cluster.Topology { return n.view.Topology() },
		Alive: n.alive, Operator: n.view, Backup: n.view.Backup, Probe: n.probe,
		Auth: auth.New(n.view), Code: n.code, CA: sha256.Sum256(n.id.CA()), Log: n.log("frontend"),
		Logs: logReader{&logs.Fanout{Local: n.logs, Self: n.ID(), Hosts: n.hosts, Open: n.endpoint.Open, Log: n.log("logs")}},
	}}
	if n.host != nil {
		deps.Visits, deps.Callers = n.host.Visits, n.host.Callers
	}
	if n.cfg.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(n.cfg.TLSCert, n.cfg.TLSKey)
		if err != nil {
			return starling.Errorf(starling.Invalid, "open frontend", "--tls-cert and --tls-key: %w", err)
		}
		deps.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	server := frontend.New(deps)
	n.endpoint.Handle(transport.ChannelClient, server.ServeClient)
	if err := server.Open(ctx); err != nil {
		return err
	}
	n.server = server
	n.opened("frontend", server.Metrics(), n.closeServer)
	return nil
}

// closeServer lets calls in flight finish within the drain time.
func (n *Node) closeServer() error {
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Drain)
	defer cancel()
	if err := n.server.Close(ctx); err != nil {
		n.log("frontend").Warn("requests were cut off", slog.Any("error", err))
	}
	return nil
}
