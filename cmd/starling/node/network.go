package node

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"starling"
	"starling/cluster/identity"
	"starling/frontend/protocol"
	"starling/transport"
	"starling/vmpool"
	"starling/vpcproxy/capture"
	"starling/vpcproxy/desk"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/probe"
	"starling/vpcproxy/tunnel"
)

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
