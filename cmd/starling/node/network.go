package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"starling"
	"starling/cluster/identity"
	"starling/frontend/protocol"
	"starling/transport"
	"starling/vmpool"
	"starling/vpcproxy/capture"
	"starling/vpcproxy/desk"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/probe"
	"starling/vpcproxy/tunnel"
)

// An uplinkFile is what an operator says of a gateway's networks, by "account/network" or "internet".
type uplinkFile map[string]struct {
	Namespace string   `json:"namespace"`     // path of a network namespace, or "host"
	DNS       []string `json:"dns,omitempty"` // name servers where the network lists none, as address or address:port
}

// ReadUplinks reads the file of --uplinks.
func ReadUplinks(path string) (map[starling.NetworkRef]gateway.Uplink, error) {
	const op = "read uplinks"
	out := map[starling.NetworkRef]gateway.Uplink{}
	if path == "" {
		return out, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "--uplinks: %w", err)
	}
	var file uplinkFile
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "--uplinks %s: %w", path, err)
	}
	for name, u := range file {
		account, network, owned := strings.Cut(name, "/")
		ref := starling.NetworkRef{Account: starling.AccountID(account), Name: starling.NetworkName(network)}
		if !owned && name == string(starling.Internet) {
			ref = starling.NetworkRef{Name: starling.Internet}
		} else if !owned || ref.Account.Validate() != nil || ref.Name == starling.Internet || ref.Name.Validate() != nil {
			return nil, starling.Errorf(starling.Invalid, op, "--uplinks %s: %q is no account/network and not internet", path, name)
		}
		if u.Namespace == "host" && owned {
			return nil, starling.Errorf(starling.Invalid, op, "--uplinks %s: %s: only internet may leave by the host's own network", path, name)
		}
		up := gateway.Uplink{Namespace: u.Namespace}
		for _, server := range u.DNS {
			to, err := netip.ParseAddrPort(server)
			if err != nil {
				a, aerr := netip.ParseAddr(server)
				if aerr != nil {
					return nil, starling.Errorf(starling.Invalid, op, "--uplinks %s: %s: dns %q is no address", path, name, server)
				}
				to = netip.AddrPortFrom(a, 53)
			}
			up.Servers = append(up.Servers, to)
		}
		out[ref] = up
	}
	return out, nil
}

// openDesk makes what signs grants, on managers, and what asks for them.
func (n *Node) openDesk(context.Context) error {
	n.desk = &desk.Client{Self: n.ID(), Open: n.endpoint.Open, Managers: func() []string {
		var out []string
		for _, p := range n.keyKeepers() {
			out = append(out, p.Addr)
		}
		return out
	}}
	if n.member.Replica == 0 {
		return nil
	}
	ca, err := identity.LoadCA(n.cfg.identityDir())
	if err != nil {
		return err
	}
	seed, err := ca.Secret(grant.Purpose)
	if err != nil {
		return err
	}
	n.desk.Local = &desk.Signer{Seed: seed, Version: func(ctx context.Context, id starling.VersionID) (*starling.Version, error) {
		return n.view.Version(ctx, id)
	},
		Placed: n.code.Placed, Now: time.Now, Log: n.log("desk")}
	n.endpoint.Handle(transport.ChannelGrant, n.desk.Local.Serve)
	return nil
}

// openTunnel opens the host's way to gateways, and returns what makes the ends of it in sandboxes.
func (n *Node) openTunnel() *capture.Maker {
	t := tunnel.New(tunnel.Config{Dial: n.endpoint, Gateways: n.gateways, Grants: n.desk, Log: n.log("tunnel")})
	n.opened("tunnel", t.Metrics(), t.Close)
	return &capture.Maker{Way: func(a starling.Attachment) capture.Way { return t.Way(a) }, Log: n.log("capture")}
}

// plugIn sets how the sandboxes of a pool get their networks: gVisor's have none.
func (n *Node) plugIn(cfg *vmpool.PoolConfig, i starling.Isolation, m *capture.Maker) error {
	switch i {
	case starling.IsolationProcess:
		means, err := capture.Choose(n.cfg.Capture)
		if err != nil && n.cfg.Capture != "" && n.cfg.Capture != capture.Auto {
			return fmt.Errorf("--capture %s: %w", n.cfg.Capture, err)
		}
		if err != nil {
			n.log("capture").Warn("functions with a network cannot run here in isolation process", "error", err)
			return nil
		}
		n.log("capture").Info("functions' connections are caught", "by", means.String())
		m.Means = means
		cfg.Plug = func(ns *os.File) (vmpool.Plug, error) { return m.Prepare(ns) }
		cfg.PlugAhead = func() bool { return len(n.gateways()) > 0 }
	case starling.IsolationKata:
		cfg.PlugGuest = func(say func(as, to netip.AddrPort, d []byte)) vmpool.GuestPlug { return guestPlug{m.Caught(say)} }
	}
	return nil
}

// guestPlug is an outlet as a pool knows it.
type guestPlug struct{ *capture.Outlet }

// Flow takes one connection.
func (p guestPlug) Flow(to netip.AddrPort, f vmpool.Flow) { p.Outlet.Flow(to, f) }

// gateways returns the living gateways.
func (n *Node) gateways() (out []starling.Node) {
	for _, p := range n.view.Alive() {
		if p.Roles.Has(starling.RoleGateway) {
			out = append(out, p)
		}
	}
	return out
}

// openGateway lets flows out, on a node with that role.
func (n *Node) openGateway(context.Context) error {
	if !n.cfg.Roles.Has(starling.RoleGateway) {
		return nil
	}
	uplinks, err := ReadUplinks(n.cfg.Uplinks)
	if err != nil {
		return err
	}
	g := gateway.New(gateway.Config{Uplinks: uplinks, Network: func(ctx context.Context, ref starling.NetworkRef) (*starling.Network, error) {
		return n.view.Network(ctx, ref)
	},
		Key: n.desk.Key, Cluster: n.clusterAddrs, Log: n.log("gateway"),
		Handover: gateway.Handover{Dir: n.cfg.Handover, Self: n.ID(), Successors: n.successors}})
	n.endpoint.Handle(transport.ChannelTunnel, g.Serve)
	n.endpoint.Handle(transport.ChannelProbe, g.ServeProbe)
	if err := g.Open(); err != nil {
		return fmt.Errorf("open gateway: %w", err)
	}
	n.opened("gateway", g.Metrics(), g.Close)
	n.gateway = g
	return nil
}

// successors returns the living gateways that may go on with flows of this one, and whether it is to be emptied.
func (n *Node) successors() (out []starling.NodeID, leaving bool) {
	for _, g := range n.gateways() {
		if !g.Draining {
			out = append(out, g.ID)
		}
	}
	self, known := n.view.Node(n.ID())
	return out, known && self.Draining
}

// probe asks a gateway what a connection would meet.
func (n *Node) probe(ctx context.Context, ref starling.NetworkRef, host string, port uint16) (protocol.NetworkTest, error) {
	client := &probe.Client{Open: n.endpoint.Open, Gateways: n.gateways}
	a, err := client.Ask(ctx, probe.Question{Network: ref, Host: host, Port: port})
	t := protocol.NetworkTest{Reached: err == nil && a.Answer == header.Open, Outcome: a.Answer.String(), Reason: a.Reason, Gateway: a.Gateway.String(), ConnectMS: float64(a.Took.Microseconds()) / 1000}
	for _, addr := range a.Addresses {
		t.Addresses = append(t.Addresses, addr.String())
	}
	return t, err
}

// clusterAddrs returns the addresses of all nodes and the index of the topology that has them.
func (n *Node) clusterAddrs() (out []netip.Addr, index uint64) {
	t := n.view.Topology()
	for _, node := range t.Nodes {
		for _, text := range []string{node.Addr, node.HTTP} {
			if a, err := netip.ParseAddrPort(text); err == nil {
				out = append(out, a.Addr())
			}
		}
	}
	return out, t.Index
}
