// Package policy decides whether a flow of a network may be dialled. It sees the address that is dialled, after
// every resolution, so that no name and no redirect leads around it. It is pure.
package policy

import (
	"net/netip"

	"starling"
)

// A Verdict is why an address is refused; the empty one permits it.
type Verdict string

// The verdicts, as the audit log has them.
const (
	Permitted Verdict = ""
	Malformed Verdict = "no address"     // none, with a zone, or port 0
	Reserved  Verdict = "reserved"       // loopback, link-local, multicast, metadata and what is made of such addresses; for everybody
	Cluster   Verdict = "of the cluster" // a node's address, or the gateway's own
	Private   Verdict = "private"        // and no range of private addresses of the network has it
	Outside   Verdict = "outside"        // not in the network
	Denied    Verdict = "denied"         // by its deny list
	Unlisted  Verdict = "not in allow"   // it has an allow list
)

// Because says for people why v refuses; "" for Permitted.
func (v Verdict) Because() string {
	switch v {
	case Permitted:
		return ""
	case Malformed:
		return "it is no address that can be dialled"
	case Reserved:
		return "reserved: loopback, link-local, multicast and metadata addresses are never reached"
	case Cluster:
		return "it is an address of the cluster, or the gateway's own: those are never reached"
	case Private:
		return "it is private, and no range of private addresses of the network has it (--cidr)"
	case Outside:
		return "it is outside of the network's ranges (--cidr)"
	case Denied:
		return "the network's deny list has it (--deny)"
	case Unlisted:
		return "the network's allow list does not have it (--allow)"
	}
	return string(v)
}

// reserved addresses are refused whatever a network lists: what they name depends on who dials them, or they are a machine's
// metadata, or they carry an IPv4 address that a translator would dial instead.
var reserved = prefixes(
	"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"100.100.100.200/32", "168.63.129.16/32", // metadata outside of link-local
	"::/96", "fe80::/10", "fec0::/10", "ff00::/8", "100::/64",
	"64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16", // IPv4 inside
	"fd00:ec2::254/128", "fd20:ce::254/128", "fd00:42::42/128", // metadata
)

// private addresses are not of the public Internet.
var private = prefixes(
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24",
	"fc00::/7", "2001:db8::/32", "3fff::/20", "5f00::/16", "2001:10::/28", "2001:20::/28", "2001:2::/48",
)

func prefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

// Rules is what one network may reach. It is immutable.
type Rules struct {
	within []netip.Prefix         // nil for everything public
	public bool                   // internet
	allow  []starling.Destination // nil for all
	deny   []starling.Destination
	own    map[netip.Addr]struct{} // of nodes and gateways
}

// Compile returns the rules of a network. own are the addresses of the cluster's nodes and of the gateway in the network, which
// nobody reaches.
func Compile(n starling.Network, own []netip.Addr) (*Rules, error) {
	r := &Rules{own: set(own)}
	for _, text := range n.CIDRs {
		d, err := starling.ParseDestination(text)
		if err != nil {
			return nil, err
		}
		r.within = append(r.within, d.Prefix)
	}
	var err error
	if r.allow, err = destinations(n.Allow); err != nil {
		return nil, err
	}
	r.deny, err = destinations(n.Deny)
	return r, err
}

// Public returns the rules of the network "internet": every public address.
func Public(own []netip.Addr) *Rules { return &Rules{public: true, own: set(own)} }

func set(addrs []netip.Addr) map[netip.Addr]struct{} {
	out := map[netip.Addr]struct{}{}
	for _, a := range addrs {
		out[a.Unmap().WithZone("")] = struct{}{}
	}
	return out
}

func destinations(texts []string) (out []starling.Destination, err error) {
	for _, text := range texts {
		d, err := starling.ParseDestination(text)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// Plain returns to as it is dialled and judged: an IPv4-mapped address as what it maps.
func Plain(to netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(to.Addr().Unmap(), to.Port()) }

// Always says why nobody dials to, whatever the network; Permitted when it is for the network to say.
func Always(to netip.AddrPort) Verdict {
	to = Plain(to)
	switch a := to.Addr(); {
	case !a.IsValid() || a.Zone() != "" || to.Port() == 0:
		return Malformed
	case has(reserved, a):
		return Reserved
	}
	return Permitted
}

// Check says whether a flow to an address may be dialled.
func (r *Rules) Check(to netip.AddrPort) Verdict {
	to = Plain(to)
	if v := r.common(to); v != Permitted {
		return v
	}
	if len(r.allow) > 0 && !among(r.allow, to) {
		return Unlisted
	}
	return Permitted
}

// CheckServer says whether a name server of the network may be asked. The allow list is about what functions dial.
func (r *Rules) CheckServer(to netip.AddrPort) Verdict { return r.common(Plain(to)) }

// common is what Check and CheckServer refuse alike.
func (r *Rules) common(to netip.AddrPort) Verdict {
	if v := Always(to); v != Permitted {
		return v
	}
	a := to.Addr()
	if _, ours := r.own[a]; ours {
		return Cluster
	}
	home := block(private, a)
	switch {
	case r.public && home.IsValid():
		return Private
	case !r.public && !r.lists(a, home):
		if home.IsValid() {
			return Private
		}
		return Outside
	case among(r.deny, to):
		return Denied
	}
	return Permitted
}

// lists reports whether the network has a. A private address is listed only by a range of private addresses: who writes
// 0.0.0.0/0 means the Internet.
func (r *Rules) lists(a netip.Addr, home netip.Prefix) bool {
	for _, p := range r.within {
		if p.Contains(a) && (!home.IsValid() || p.Bits() >= home.Bits()) {
			return true
		}
	}
	return false
}

func has(list []netip.Prefix, a netip.Addr) bool { return block(list, a).IsValid() }

// block returns the prefix of list that has a; the zero one when none does.
func block(list []netip.Prefix, a netip.Addr) netip.Prefix {
	for _, p := range list {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}

func among(list []starling.Destination, to netip.AddrPort) bool {
	for _, d := range list {
		if d.Contains(to) {
			return true
		}
	}
	return false
}
