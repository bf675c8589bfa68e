package plugboard

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

// inside names the device that a gateway makes in a network's namespace.
const inside = "uplink"

// port names the end of a pair of veths that is on the operator's bridge.
func port(name string) string { return "starl-" + short(name) }

// A found is the operator's interface that an uplink needs.
type found struct {
	index int
	lent  *lent // of the kind Device
}

// find looks for the operator's interface, and for what would make it the wrong one.
func (b *Board) find(u uplink.Uplink) (*found, error) {
	const op = "plug network in"
	out := &found{}
	err := netns.Do(b.Home, func() error {
		link, err := netlink.LinkByName(u.On())
		if absent(err) {
			return starling.Errorf(starling.Unavailable, op, "there is no device %s", u.On())
		}
		if err != nil {
			return starling.Errorf(starling.Internal, op, "look for %s: %w", u.On(), err)
		}
		at := link.Attrs()
		out.index = at.Index
		switch {
		case u.Kind() == uplink.Bridge && link.Type() != "bridge":
			return starling.Errorf(starling.Invalid, op, "%s is no bridge, but of type %s", u.On(), link.Type())
		case u.Kind() == uplink.Device:
			out.lent = &lent{MTU: at.MTU, Up: at.Flags&net.FlagUp != 0}
			return idle(link)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, b.notOwn(u)
}

// idle refuses a device that the machine itself uses: it would lose it, and its addresses with it.
func idle(link netlink.Link) error {
	const op = "plug network in"
	at := link.Attrs()
	if at.Flags&net.FlagLoopback != 0 || at.MasterIndex != 0 {
		return starling.Errorf(starling.Invalid, op, "%s is the loopback, or part of a bridge or bond", at.Name)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return starling.Errorf(starling.Internal, op, "read the addresses of %s: %w", at.Name, err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			return starling.Errorf(starling.Invalid, op, "this machine itself uses %s, as %s: an uplink is a device without addresses, which stand in the file", at.Name, a.IPNet)
		}
	}
	return nil
}

// notOwn refuses next hops that are this machine: it forwards nothing for a network.
func (b *Board) notOwn(u uplink.Uplink) error {
	own, err := netns.Addresses(b.Home)
	if err != nil {
		return starling.Errorf(starling.Internal, "plug network in", "read own addresses: %w", err)
	}
	hops := []netip.Addr{u.Gateway}
	for _, r := range u.Routes {
		hops = append(hops, r.Via)
	}
	for _, hop := range hops {
		if hop.IsValid() && slices.Contains(own, hop) {
			return starling.Errorf(starling.Invalid, "plug network in", "%s is this machine's own address, and it forwards nothing: name the network's router", hop)
		}
	}
	return nil
}

// connect brings the one device into the namespace.
func (b *Board) connect(ns *os.File, name string, u uplink.Uplink, on *found) error {
	at := netlink.NewLinkAttrs()
	at.Name, at.ParentIndex, at.Namespace = inside, on.index, netlink.NsFd(ns.Fd())
	err := netns.Do(b.Home, func() error {
		switch u.Kind() {
		case uplink.Device:
			return netlink.LinkSetNsFd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: on.index}}, int(ns.Fd()))
		case uplink.VLAN:
			return netlink.LinkAdd(&netlink.Vlan{LinkAttrs: at, VlanId: u.VLAN.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
		case uplink.Macvlan:
			return netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: at, Mode: netlink.MACVLAN_MODE_BRIDGE})
		}
		return addPort(ns, port(name), name, on.index, u.MTU)
	})
	return explain(err, u)
}

// addPort makes a pair of veths between the bridge and the namespace.
func addPort(ns *os.File, name, alias string, bridge, mtu int) error {
	at := netlink.NewLinkAttrs()
	at.Name, at.MTU = name, mtu
	veth := &netlink.Veth{LinkAttrs: at, PeerName: inside, PeerNamespace: netlink.NsFd(ns.Fd()), PeerMTU: uint32(mtu)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := netlink.LinkSetAlias(veth, alias); err != nil {
		return err
	}
	if err := netlink.LinkSetMasterByIndex(veth, bridge); err != nil {
		return err
	}
	return netlink.LinkSetUp(veth)
}

// modules are what the kernel may have been built without.
var modules = map[uplink.Kind]string{uplink.VLAN: "8021q", uplink.Bridge: "veth", uplink.Macvlan: "macvlan"}

// explain says what the kernel's refusal of a device means.
func explain(err error, u uplink.Uplink) error {
	const op = "plug network in"
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EOPNOTSUPP) && u.Kind() != uplink.Device:
		return starling.Errorf(starling.Unavailable, op, "%s: this kernel makes no such device: load its module %s", u, modules[u.Kind()])
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EEXIST):
		return starling.Errorf(starling.Conflict, op, "%s: somebody else has it: %w", u, err)
	case errors.Is(err, syscall.EINVAL) && u.Kind() == uplink.Device:
		return starling.Errorf(starling.Invalid, op, "%s: this device cannot be moved to another namespace: %w", u, err)
	}
	return starling.Errorf(starling.Internal, op, "%s: %w", u, err)
}

// within returns what an uplink's device is called in its namespace.
func within(u uplink.Uplink) string {
	if u.Kind() == uplink.Device {
		return u.Device
	}
	return inside
}

// furnish gives the device its addresses and ways.
func furnish(ns *os.File, u uplink.Uplink) error {
	const op = "plug network in"
	return netns.Do(ns, func() error {
		link, err := netlink.LinkByName(within(u))
		if err != nil {
			return starling.Errorf(starling.Internal, op, "%s in its namespace: %w", within(u), err)
		}
		if u.MTU != 0 {
			if err := netlink.LinkSetMTU(link, u.MTU); err != nil {
				return starling.Errorf(starling.Invalid, op, "%s: mtu %d: %w", u, u.MTU, err)
			}
		}
		for _, a := range u.Addresses {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
				return starling.Errorf(starling.Invalid, op, "%s: address %s: %w", u, a, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return starling.Errorf(starling.Unavailable, op, "%s cannot be brought up: %w", u, err)
		}
		return addRoutes(link.Attrs().Index, u)
	})
}

// addRoutes adds the ways of an uplink in the namespace of the calling thread.
func addRoutes(link int, u uplink.Uplink) error {
	routes := slices.Clone(u.Routes)
	if u.Gateway.IsValid() {
		routes = append(routes, uplink.Route{To: netip.PrefixFrom(u.Gateway, 0).Masked(), Via: u.Gateway})
	}
	for _, r := range routes {
		way := &netlink.Route{LinkIndex: link, Dst: ipNet(r.To)}
		if r.Via.IsValid() {
			way.Gw = r.Via.AsSlice()
		} else {
			way.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteAdd(way); err != nil {
			return starling.Errorf(starling.Invalid, "plug network in", "%s: route to %s: %w", u, r.To, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// absent reports whether an error says that there is no such device.
func absent(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}
