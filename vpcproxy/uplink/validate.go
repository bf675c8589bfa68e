package uplink

import (
	"net/netip"
	"strings"

	"starling"
)

// Validate reports the first thing that cannot work of an uplink by itself, by its name in the file.
func (u Uplink) Validate(ref starling.NetworkRef) error {
	const op = "check uplink"
	kind := u.Kind()
	switch {
	case kind == "":
		return starling.Errorf(starling.Invalid, op, "use one of namespace, device, vlan, bridge and macvlan")
	case len(u.Servers) > starling.NetworkServerMax:
		return starling.Errorf(starling.Invalid, op, "dns: use at most %d servers", starling.NetworkServerMax)
	case kind == Namespace:
		return u.validateNamespace(ref)
	case !deviceName(u.On()):
		return starling.Errorf(starling.Invalid, op, "%s: %q is no name of an interface", kind, u.On())
	case kind == VLAN && (u.VLAN.ID < 1 || u.VLAN.ID > 4094):
		return starling.Errorf(starling.Invalid, op, "vlan: id %d: use 1-4094", u.VLAN.ID)
	}
	for _, check := range []func() error{u.validateAddresses, u.validateMTU, u.validateRoutes} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (u Uplink) validateNamespace(ref starling.NetworkRef) error {
	const op = "check uplink"
	switch {
	case len(u.Addresses) > 0 || u.Gateway.IsValid() || len(u.Routes) > 0 || u.MTU != 0:
		return starling.Errorf(starling.Invalid, op, "namespace: addresses, gateway, routes and mtu are the operator's to set in it")
	case u.Namespace == Host && ref.Name != starling.Internet:
		return starling.Errorf(starling.Invalid, op, "namespace: only internet may leave by the host's own network")
	case !strings.HasPrefix(u.Namespace, "/") && strings.Contains(u.Namespace, "/"):
		return starling.Errorf(starling.Invalid, op, "namespace %q: use a name below /run/netns or an absolute path", u.Namespace)
	}
	return nil
}

func (u Uplink) validateAddresses() error {
	const op = "check uplink"
	if len(u.Addresses) < 1 || len(u.Addresses) > AddressMax {
		return starling.Errorf(starling.Invalid, op, "addresses: %s needs 1-%d of them, as 10.0.0.9/24", u.Kind(), AddressMax)
	}
	seen := map[netip.Addr]bool{}
	for _, p := range u.Addresses {
		a := p.Addr()
		switch {
		case !p.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return starling.Errorf(starling.Invalid, op, "addresses: %s can be no address of an uplink", p)
		case p.Masked() == p && p.Bits() < a.BitLen()-1:
			return starling.Errorf(starling.Invalid, op, "addresses: %s is a range: use the gateway's own address in it", p)
		case seen[a]:
			return starling.Errorf(starling.Invalid, op, "addresses: %s stands there twice", a)
		}
		seen[a] = true
	}
	return nil
}

func (u Uplink) validateMTU() error {
	least := MTUMin
	for _, p := range u.Addresses {
		if p.Addr().Is6() {
			least = MTUMinIPv6
		}
	}
	if u.MTU != 0 && (u.MTU < least || u.MTU > MTUMax) {
		return starling.Errorf(starling.Invalid, "check uplink", "mtu %d: use %d-%d", u.MTU, least, MTUMax)
	}
	return nil
}

func (u Uplink) validateRoutes() error {
	const op = "check uplink"
	if len(u.Routes) > RouteMax {
		return starling.Errorf(starling.Invalid, op, "routes: use at most %d", RouteMax)
	}
	seen := map[netip.Prefix]bool{}
	if u.Gateway.IsValid() {
		if why := u.notNext(u.Gateway); why != "" {
			return starling.Errorf(starling.Invalid, op, "gateway %s: %s", u.Gateway, why)
		}
		seen[netip.PrefixFrom(u.Gateway, 0).Masked()] = true
	}
	for _, r := range u.Routes {
		switch {
		case !r.To.IsValid() || r.To.Masked() != r.To:
			return starling.Errorf(starling.Invalid, op, "routes: to %s: use a range such as 10.9.0.0/16", r.To)
		case seen[r.To]:
			return starling.Errorf(starling.Invalid, op, "routes: there are two ways to %s", r.To)
		case !r.Via.IsValid() && !u.speaks(r.To.Addr()):
			return starling.Errorf(starling.Invalid, op, "routes: to %s: no address of the uplink is of its family", r.To)
		case r.Via.IsValid() && r.Via.Is4() != r.To.Addr().Is4():
			return starling.Errorf(starling.Invalid, op, "routes: to %s via %s: both must be of one family", r.To, r.Via)
		}
		if r.Via.IsValid() {
			if why := u.notNext(r.Via); why != "" {
				return starling.Errorf(starling.Invalid, op, "routes: to %s via %s: %s", r.To, r.Via, why)
			}
		}
		seen[r.To] = true
	}
	return nil
}

// speaks reports whether the uplink has an address of a's family.
func (u Uplink) speaks(a netip.Addr) bool {
	for _, p := range u.Addresses {
		if p.Addr().Is4() == a.Is4() {
			return true
		}
	}
	return false
}

// notNext says why an address can be no next hop; "" when it can.
func (u Uplink) notNext(hop netip.Addr) string {
	within := false
	for _, p := range u.Addresses {
		if p.Addr() == hop {
			return "it is the uplink's own address"
		}
		within = within || p.Contains(hop)
	}
	if !within {
		return "it is in no range of addresses"
	}
	return ""
}

// deviceName reports whether the kernel takes a name for an interface, other than the loopback's.
func deviceName(s string) bool {
	return len(s) >= 1 && len(s) <= 15 && s != "." && s != ".." && s != "lo" && !strings.ContainsAny(s, "/: \t\n\v\f\r\x00")
}
