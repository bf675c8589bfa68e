package gateway

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/policy"
	"starling/vpcproxy/uplink"
)

// A plug is one resident network, as flows know it.
type plug struct {
	ctx    context.Context // ends the network's flows here
	cancel context.CancelFunc
	ns     *os.File
	own    []netip.Addr // the gateway's addresses in it
	shared bool         // it is on a wire that this machine may be on, too
	flows  *flowCounters

	mu      sync.Mutex // guards the rest; a leaf
	servers []netip.AddrPort
	network *starling.Network
	nodes   uint64
	machine *own
	rules   *policy.Rules
}

// own are the addresses of this machine outside of its networks' namespaces; a new value for each change.
type own struct{ addrs []netip.Addr }

// newPlug returns what flows know of a network whose namespace is ns.
func (g *Gateway) newPlug(ref starling.NetworkRef, u uplink.Uplink, ns *os.File) (*plug, error) {
	addrs, err := netns.Addresses(ns)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, "plug network in", "read the gateway's addresses in it: %w", err)
	}
	p := &plug{ns: ns, own: addrs, shared: u.Kind() != uplink.Namespace || u.Namespace == uplink.Host, servers: u.Servers, flows: g.m.network(ref)}
	p.ctx, p.cancel = context.WithCancel(g.group.Context())
	return p, nil
}

// nameServers returns the operator's.
func (p *plug) nameServers() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.servers
}

func (p *plug) setServers(s []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers = s
}

// rules returns what a network may reach as the catalog, the cluster and this machine are now.
func (g *Gateway) rules(p *plug, n *starling.Network) (*policy.Rules, error) {
	nodes, version := g.cfg.Cluster()
	machine := g.own.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rules != nil && p.network == n && p.nodes == version && p.machine == machine {
		return p.rules, nil
	}
	refused := slices.Concat(nodes, p.own)
	if p.shared {
		refused = append(refused, machine.addrs...)
	}
	r := policy.Public(refused)
	if n != nil {
		var err error
		if r, err = policy.Compile(*n, refused); err != nil {
			return nil, err
		}
	}
	p.rules, p.network, p.nodes, p.machine = r, n, version, machine
	return r, nil
}
