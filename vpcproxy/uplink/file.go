package uplink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"starling"
)

// Parse reads a file of uplinks: a JSON object by "account/network" or "internet". It is taken whole or not at all; the error is Invalid
// and names the line.
func Parse(text []byte) (map[starling.NetworkRef]Uplink, error) {
	const op = "read uplinks"
	if len(text) > FileMax {
		return nil, starling.Errorf(starling.Invalid, op, "%d bytes: at most %d are read", len(text), FileMax)
	}
	p := &parser{text: text, out: map[starling.NetworkRef]Uplink{}}
	if err := json.Unmarshal(text, &struct{}{}); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, p.refuse(int(syntax.Offset)-1, "%v", err)
		}
		return nil, p.refuse(0, "it is no object by account/network")
	}
	if err := p.members(text, 0, p.network); err != nil {
		return nil, err
	}
	if err := p.checkTogether(); err != nil {
		return nil, err
	}
	return p.out, nil
}

// A parser has read part of a file.
type parser struct {
	text  []byte
	out   map[starling.NetworkRef]Uplink
	order []entry
}

// An entry is a network of the file and where it begins.
type entry struct {
	ref starling.NetworkRef
	at  int
}

// refuse returns an error at an offset of the file.
func (p *parser) refuse(at int, format string, args ...any) error {
	line := 1 + bytes.Count(p.text[:min(max(at, 0), len(p.text))], []byte("\n"))
	return starling.Errorf(starling.Invalid, "read uplinks", "line %d: %s", line, fmt.Sprintf(format, args...))
}

// members calls each for the members of the JSON object in raw, which begins at the offset base of the file. JSON's own rules take the last of
// two of one name; here they are refused.
func (p *parser) members(raw []byte, base int, each func(key string, at int, value json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if first, err := d.Token(); err != nil || first != json.Delim('{') {
		return p.refuse(base, "it is no object")
	}
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return p.refuse(base, "%v", err)
		}
		key, at := token.(string), base+int(d.InputOffset())
		if seen[key] {
			return p.refuse(at, "%q stands there twice", key)
		}
		seen[key] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return p.refuse(at, "%v", err)
		}
		if err := each(key, base+int(d.InputOffset())-len(value), value); err != nil {
			return err
		}
	}
	return nil
}

// network reads one network of the file.
func (p *parser) network(name string, at int, value json.RawMessage) error {
	ref, ok := parseRef(name)
	if !ok {
		return p.refuse(at, "%q is no account/network and not internet", name)
	}
	if len(p.out) == NetworkMax {
		return p.refuse(at, "a gateway has at most %d networks", NetworkMax)
	}
	var u Uplink
	if err := p.members(value, at, func(key string, at int, value json.RawMessage) error {
		if err := u.set(key, value); err != nil {
			return p.refuse(at, "%s: %s: %v", name, key, err)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := u.Validate(ref); err != nil {
		return p.refuse(at, "%s: %v", name, sentence(err))
	}
	p.out[ref] = u
	p.order = append(p.order, entry{ref, at})
	return nil
}

// Name returns how a file names a network.
func Name(ref starling.NetworkRef) string {
	if ref.Account == "" {
		return string(ref.Name)
	}
	return ref.String()
}

// parseRef reads the name of a network in the file.
func parseRef(name string) (starling.NetworkRef, bool) {
	if name == string(starling.Internet) {
		return starling.NetworkRef{Name: starling.Internet}, true
	}
	account, network, owned := strings.Cut(name, "/")
	ref := starling.NetworkRef{Account: starling.AccountID(account), Name: starling.NetworkName(network)}
	n := starling.Network{Ref: ref, CIDRs: []string{"0.0.0.0/0"}}.WithDefaults() // of which the name alone is in question
	return ref, owned && n.Validate() == nil
}

// set reads one setting of an uplink.
func (u *Uplink) set(key string, value json.RawMessage) error {
	into, known := map[string]any{"namespace": &u.Namespace, "device": &u.Device, "vlan": &u.VLAN, "bridge": &u.Bridge, "macvlan": &u.Macvlan,
		"addresses": &u.Addresses, "gateway": &u.Gateway, "routes": &u.Routes, "mtu": &u.MTU}[key]
	if key == "dns" {
		return u.setServers(value)
	}
	if !known {
		return errors.New("unknown key: use namespace, device, vlan, bridge or macvlan, and addresses, gateway, routes, mtu, dns")
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// setServers reads name servers, as address or address:port.
func (u *Uplink) setServers(value json.RawMessage) error {
	var texts []string
	if err := json.Unmarshal(value, &texts); err != nil {
		return err
	}
	for _, text := range texts {
		to, err := netip.ParseAddrPort(text)
		if err != nil {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("%q is no address", text)
			}
			to = netip.AddrPortFrom(a, 53)
		}
		u.Servers = append(u.Servers, to)
	}
	return nil
}

// checkTogether refuses what two networks cannot both have: a thing, or a segment on which two accounts would meet.
func (p *parser) checkTogether() error {
	owner, account := map[string]starling.NetworkRef{}, map[string]starling.AccountID{}
	for _, e := range p.order {
		u := p.out[e.ref]
		for _, thing := range claims(u) {
			if other, ok := owner[thing]; ok {
				return p.refuse(e.at, "%s: %s has %s already", Name(e.ref), Name(other), thing)
			}
			owner[thing] = e.ref
		}
		if a, ok := account[u.String()]; ok && a != e.ref.Account {
			return p.refuse(e.at, "%s: a network of another account is plugged into %s already", Name(e.ref), u)
		}
		account[u.String()] = e.ref.Account
	}
	for _, e := range p.order {
		if other, ok := owner["device "+p.out[e.ref].On()]; ok && other != e.ref {
			return p.refuse(e.at, "%s: %s: that device goes into the namespace of %s", Name(e.ref), p.out[e.ref], Name(other))
		}
	}
	return nil
}

// claims are what no other network may have: a device, a VLAN, an address on one segment.
func claims(u Uplink) (out []string) {
	switch u.Kind() {
	case Device, VLAN:
		return []string{u.String()}
	case Bridge, Macvlan:
		for _, a := range u.Addresses {
			out = append(out, "address "+a.Addr().String()+" on "+u.On())
		}
	}
	return out
}

// sentence returns an error's words without its operation, for a line that has said what was being done.
func sentence(err error) string {
	var e *starling.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}
