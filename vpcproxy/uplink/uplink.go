// Package uplink is what an operator says of how a gateway is plugged into its networks: the words, the file they stand in, and
// what is to be done when they change. It is pure.
package uplink

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"starling"
)

// The limits of a file of uplinks.
const (
	FileMax    = 4 << 20 // bytes
	NetworkMax = 4096    // networks of one gateway
	AddressMax = 16      // addresses of one uplink
	RouteMax   = 64      // routes of one uplink
	MTUMin     = 576
	MTUMinIPv6 = 1280 // where an address is one of IPv6
	MTUMax     = 65535
)

// Host is the namespace that is the gateway's own; internet alone may leave by it.
const Host = "host"

// A Kind is what plugs a network.
type Kind string

// The kinds. All but the first have a namespace that the gateway makes, with one device in it.
const (
	Namespace Kind = "namespace" // made and connected by the operator
	Device    Kind = "device"    // an interface that is there, moved into the network's namespace and given back
	VLAN      Kind = "vlan"      // an 802.1Q device on an interface that stays where it is
	Bridge    Kind = "bridge"    // a pair of veths, of which one end is a port of a bridge of the operator
	Macvlan   Kind = "macvlan"   // a macvlan in bridge mode on an interface that stays where it is
)

// An Uplink is how a gateway is plugged into one network: one of Namespace, Device, VLAN, Bridge and Macvlan, and, except for a namespace, what
// its device is given.
type Uplink struct {
	Namespace string `json:"namespace,omitempty"` // absolute path, name below /run/netns, or "host"
	Device    string `json:"device,omitempty"`
	VLAN      Tag    `json:"vlan,omitzero"`
	Bridge    string `json:"bridge,omitempty"`
	Macvlan   Parent `json:"macvlan,omitzero"`

	Addresses []netip.Prefix `json:"addresses,omitempty"` // of the device, with the length of their range; 1-16
	Gateway   netip.Addr     `json:"gateway,omitzero"`    // next hop of everything else, within a range of Addresses; none when it is not valid
	Routes    []Route        `json:"routes,omitempty"`
	MTU       int            `json:"mtu,omitempty"` // bytes, 576-65535 (from 1280 with IPv6); 0 for the device's own

	// Servers are asked for names when the network lists none of its own. They are the operator's word and are not judged by the network's rules.
	Servers []netip.AddrPort `json:"-"`
}

// A Tag names a VLAN of an interface.
type Tag struct {
	Parent string `json:"parent"`
	ID     int    `json:"id"` // 1-4094
}

// A Parent names the interface that a macvlan is on.
type Parent struct {
	Parent string `json:"parent"`
}

// A Route is a way to further addresses: by a next hop within a range of Addresses, or on the device itself when Via is not valid.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"`
}

// Kind returns what plugs the network; "" when nothing or more than one thing does.
func (u Uplink) Kind() (k Kind) {
	for kind, named := range map[Kind]bool{Namespace: u.Namespace != "", Device: u.Device != "", VLAN: u.VLAN != Tag{}, Bridge: u.Bridge != "", Macvlan: u.Macvlan != Parent{}} {
		if named && k != "" {
			return ""
		}
		if named {
			k = kind
		}
	}
	return k
}

// String says for people what plugs the network.
func (u Uplink) String() string {
	switch u.Kind() {
	case Namespace:
		return "namespace " + u.Namespace
	case Device:
		return "device " + u.Device
	case VLAN:
		return fmt.Sprintf("vlan %d of %s", u.VLAN.ID, u.VLAN.Parent)
	case Bridge:
		return "bridge " + u.Bridge
	case Macvlan:
		return "macvlan of " + u.Macvlan.Parent
	}
	return "nothing"
}

// On returns the operator's interface that the uplink needs; "" for a namespace.
func (u Uplink) On() string {
	return u.Device + u.VLAN.Parent + u.Bridge + u.Macvlan.Parent // of which Validate leaves one
}

// Path returns where the operator's namespace is; of the kind Namespace alone.
func (u Uplink) Path() string {
	if u.Namespace == Host || path.IsAbs(u.Namespace) {
		return u.Namespace
	}
	return "/run/netns/" + u.Namespace
}

// Same reports whether a and b are one way of plugging: what differs at most is who is asked for names.
func Same(a, b Uplink) bool {
	return a.Namespace == b.Namespace && a.Device == b.Device && a.VLAN == b.VLAN && a.Bridge == b.Bridge && a.Macvlan == b.Macvlan &&
		slices.Equal(a.Addresses, b.Addresses) && a.Gateway == b.Gateway && slices.Equal(a.Routes, b.Routes) && a.MTU == b.MTU
}

// A Change is what leads from some uplinks to others, each list in the order of names.
type Change struct {
	Drop []starling.NetworkRef // in this order: first all of these,
	Plug []starling.NetworkRef // then these, of which some were dropped to be plugged otherwise
	Keep []starling.NetworkRef
}

// Plan returns what leads from the uplinks that are to those that are wanted.
func Plan(have, want map[starling.NetworkRef]Uplink) (c Change) {
	for ref, u := range have {
		if next, ok := want[ref]; ok && Same(u, next) {
			c.Keep = append(c.Keep, ref)
		} else {
			c.Drop = append(c.Drop, ref)
		}
	}
	for ref, u := range want {
		if before, ok := have[ref]; !ok || !Same(before, u) {
			c.Plug = append(c.Plug, ref)
		}
	}
	for _, list := range [][]starling.NetworkRef{c.Drop, c.Plug, c.Keep} {
		slices.SortFunc(list, func(a, b starling.NetworkRef) int { return strings.Compare(a.String(), b.String()) })
	}
	return c
}
