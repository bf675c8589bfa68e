package starling

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A NetworkName names a network of one account, or what a version has instead of one.
type NetworkName string

// What a version may name beside a network of its account.
const (
	NoNetwork NetworkName = ""         // nothing leaves its instances; "none" in a wish
	Internet  NetworkName = "internet" // public addresses only
)

// The limits of networks.
const (
	NetworkMax        = 100     // networks of one account
	NetworkRangeMax   = 64      // entries of each list of a network
	NetworkServerMax  = 4       // name servers of a network
	NetworkConnMax    = 100_000 // largest ConnMax; also that of an account over all its networks at one gateway
	NetworkRateMax    = 100_000 // largest RateMax
	NetworkConnNormal = 10_000
	NetworkRateNormal = 1_000
)

// A NetworkRef names a network in the cluster.
type NetworkRef struct {
	Account AccountID   `cbor:"1,keyasint" json:"account"`
	Name    NetworkName `cbor:"2,keyasint" json:"name"`
}

// String returns "account/name".
func (r NetworkRef) String() string { return string(r.Account) + "/" + string(r.Name) }

// A Network is what the versions that name it may reach, through gateways that are plugged into it. Addresses are texts
// as people write them; Validate has seen them.
type Network struct {
	Ref     NetworkRef `cbor:"1,keyasint" json:"ref"`
	CIDRs   []string   `cbor:"2,keyasint" json:"cidrs"`            // what may be dialled; private addresses only where a range of private addresses has them. ≥ 1
	DNS     []string   `cbor:"3,keyasint" json:"dns,omitempty"`    // name servers, each within CIDRs; asked on port 53. Without one no name is resolved
	Egress  string     `cbor:"4,keyasint" json:"egress,omitempty"` // source address of every connection; the uplink's own when empty
	Allow   []string   `cbor:"5,keyasint" json:"allow,omitempty"`  // when not empty, only these of CIDRs: "10.0.0.0/24", "10.0.0.5:5432", "10.0.0.0/24:8000-8999"
	Deny    []string   `cbor:"6,keyasint" json:"deny,omitempty"`   // never these; stronger than Allow
	ConnMax int        `cbor:"7,keyasint" json:"connMax"`          // flows at once at one gateway
	RateMax int        `cbor:"8,keyasint" json:"rateMax"`          // flows begun in a second at one gateway
	Created int64      `cbor:"9,keyasint" json:"created"`          // Unix seconds
}

// WithDefaults returns n with every unset limit set.
func (n Network) WithDefaults() Network {
	if n.ConnMax == 0 {
		n.ConnMax = NetworkConnNormal
	}
	if n.RateMax == 0 {
		n.RateMax = NetworkRateNormal
	}
	return n
}

// Validate reports the first field that cannot work, by its JSON name.
func (n Network) Validate() error {
	const op = "check network"
	if err := n.Ref.Account.Validate(); err != nil {
		return err
	}
	if err := n.Ref.Name.Validate(); err != nil {
		return err
	}
	switch {
	case n.Ref.Name == NoNetwork || n.Ref.Name == Internet || n.Ref.Name == "none":
		return Errorf(Invalid, op, "%q is no name for a network: it means something else", string(n.Ref.Name))
	case len(n.CIDRs) == 0:
		return Errorf(Invalid, op, "cidrs is empty: list what may be reached")
	case len(n.CIDRs) > NetworkRangeMax || len(n.Allow) > NetworkRangeMax || len(n.Deny) > NetworkRangeMax:
		return Errorf(Invalid, op, "cidrs, allow and deny: use at most %d entries each", NetworkRangeMax)
	case len(n.DNS) > NetworkServerMax:
		return Errorf(Invalid, op, "dns: use at most %d servers", NetworkServerMax)
	case n.ConnMax < 1 || n.ConnMax > NetworkConnMax:
		return Errorf(Invalid, op, "connMax %d: use 1-%d", n.ConnMax, NetworkConnMax)
	case n.RateMax < 1 || n.RateMax > NetworkRateMax:
		return Errorf(Invalid, op, "rateMax %d: use 1-%d", n.RateMax, NetworkRateMax)
	}
	return n.validateAddresses()
}

func (n Network) validateAddresses() error {
	const op = "check network"
	var within []netip.Prefix
	for _, text := range n.CIDRs {
		r, err := ParseDestination(text)
		if err != nil || r.Ports != (PortRange{}) {
			return Errorf(Invalid, op, "cidrs %q: use a range of addresses such as 10.0.0.0/24", text)
		}
		within = append(within, r.Prefix)
	}
	for _, text := range append(append([]string{}, n.Allow...), n.Deny...) {
		if _, err := ParseDestination(text); err != nil {
			return err
		}
	}
	for _, text := range n.DNS {
		a, err := netip.ParseAddr(text)
		inside := false
		for _, p := range within {
			inside = inside || p.Contains(a)
		}
		if err != nil || !inside {
			return Errorf(Invalid, op, "dns %q: use an address within cidrs", text)
		}
	}
	if n.Egress != "" {
		if a, err := netip.ParseAddr(n.Egress); err != nil || a.Zone() != "" {
			return Errorf(Invalid, op, "egress %q: use an address", n.Egress)
		}
	}
	return nil
}

// Validate reports whether n can name a network, or says none or internet.
func (n NetworkName) Validate() error {
	ok := len(n) <= 63
	for i := 0; i < len(n); i++ {
		c := n[i]
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		ok = ok && (letter || i > 0 && c == '-')
	}
	if !ok {
		return Errorf(Invalid, "check network", "network %q: use 1-63 of a-z, 0-9 and \"-\", none or internet", string(n))
	}
	return nil
}

// Stored returns n as a version keeps it: nothing for none.
func (n NetworkName) Stored() NetworkName {
	if n == "none" {
		return NoNetwork
	}
	return n
}

// Spoken returns n, or "none" where it is nothing, for people.
func (n NetworkName) Spoken() NetworkName {
	if n == NoNetwork {
		return "none"
	}
	return n
}

// A PortRange is ports from Lo to Hi, both included; the zero value is every port.
type PortRange struct{ Lo, Hi uint16 }

// Contains reports whether port is in r.
func (r PortRange) Contains(port uint16) bool {
	return r == PortRange{} || port >= r.Lo && port <= r.Hi
}

// A Destination is addresses and ports of them.
type Destination struct {
	Prefix netip.Prefix // masked, never of IPv4-mapped addresses
	Ports  PortRange
}

// Contains reports whether to is in d. IPv4-mapped addresses are to be unmapped before.
func (d Destination) Contains(to netip.AddrPort) bool {
	return d.Prefix.Contains(to.Addr()) && d.Ports.Contains(to.Port())
}

// ParseDestination reads "10.0.0.0/24", "10.0.0.5", "10.0.0.5:5432", "10.0.0.0/24:8000-8999" or the same with IPv6, whose
// addresses with ports need their bits: "fd00::5/128:5432".
func ParseDestination(text string) (d Destination, err error) {
	bad := func() (Destination, error) {
		return Destination{}, Errorf(Invalid, "parse destination", "%q: use addresses as in 10.0.0.0/24, 10.0.0.5:5432 or 10.0.0.0/24:8000-8999", text)
	}
	addr, rest, ranged := strings.Cut(text, "/")
	bits, ports, ported := strings.Cut(rest, ":")
	if !ranged {
		if a, err := netip.ParseAddr(text); err == nil {
			bits = strconv.Itoa(a.BitLen())
		} else {
			addr, ports, ported = strings.Cut(text, ":")
			bits = "32"
		}
	}
	d.Prefix, err = netip.ParsePrefix(addr + "/" + bits)
	if err != nil || d.Prefix.Addr().Is4In6() {
		return bad()
	}
	d.Prefix = d.Prefix.Masked()
	if !ported {
		return d, nil
	}
	lo, hi, span := strings.Cut(ports, "-")
	if !span {
		hi = lo
	}
	l, errLo := strconv.ParseUint(lo, 10, 16)
	h, errHi := strconv.ParseUint(hi, 10, 16)
	if errLo != nil || errHi != nil || l == 0 || h < l {
		return bad()
	}
	d.Ports = PortRange{uint16(l), uint16(h)}
	return d, nil
}

// String returns d as ParseDestination reads it.
func (d Destination) String() string {
	switch {
	case d.Ports == PortRange{}:
		return d.Prefix.String()
	case d.Ports.Lo == d.Ports.Hi:
		return fmt.Sprintf("%s:%d", d.Prefix, d.Ports.Lo)
	}
	return fmt.Sprintf("%s:%d-%d", d.Prefix, d.Ports.Lo, d.Ports.Hi)
}

// An Attachment says whose flows are let out where: one instance of a version in a network of its account, or internet.
type Attachment struct {
	Instance InstanceID
	Function FunctionRef
	Version  VersionID
	Network  NetworkName
}

// Ref names the network in the cluster. That of internet is not in the catalog.
func (a Attachment) Ref() NetworkRef { return NetworkRef{a.Function.Account, a.Network} }
