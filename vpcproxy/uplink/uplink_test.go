package uplink

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"starling"
)

func ref(account, name string) starling.NetworkRef {
	return starling.NetworkRef{Account: starling.AccountID(account), Name: starling.NetworkName(name)}
}

const good = `{
  "acme/db":    {"namespace": "acme-db"},
  "acme/old":   {"namespace": "/var/run/netns/old"},
  "acme/plant": {"device": "eth1", "addresses": ["10.1.0.9/24"], "gateway": "10.1.0.1"},
  "zeta/db":    {"vlan": {"parent": "eth2", "id": 40}, "addresses": ["10.2.0.9/24"], "mtu": 1400},
  "zeta/lab":   {"bridge": "br-lab", "addresses": ["10.3.0.9/24", "fd00:3::9/64"], "routes": [{"to": "10.4.0.0/16", "via": "10.3.0.1"}, {"to": "10.5.0.0/16"}]},
  "yoyo/lan":   {"macvlan": {"parent": "eth3"}, "addresses": ["192.168.7.9/24"], "dns": ["192.168.7.1", "192.168.7.2:5353"]},
  "internet":   {"namespace": "host", "dns": ["9.9.9.9"]}
}`

// A file of every kind is read as its operator means it.
func TestFileSaysWhatPlugsEachNetwork(t *testing.T) {
	got, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[starling.NetworkRef]string{ref("acme", "db"): "namespace acme-db", ref("acme", "plant"): "device eth1", ref("zeta", "db"): "vlan 40 of eth2",
		ref("zeta", "lab"): "bridge br-lab", ref("yoyo", "lan"): "macvlan of eth3", ref("", "internet"): "namespace host"} {
		if got[ref].String() != want {
			t.Errorf("%s: %q, not %q", Name(ref), got[ref], want)
		}
	}
	for ref, want := range map[starling.NetworkRef]string{ref("acme", "db"): "/run/netns/acme-db", ref("acme", "old"): "/var/run/netns/old", ref("", "internet"): Host} {
		if got[ref].Path() != want {
			t.Errorf("%s is at %q, not %q", Name(ref), got[ref].Path(), want)
		}
	}
	if s := fmt.Sprint(got[ref("yoyo", "lan")].Servers); s != "[192.168.7.1:53 192.168.7.2:5353]" {
		t.Errorf("name servers %s", s)
	}
	if none, err := Parse([]byte("{}")); err != nil || len(none) != 0 {
		t.Errorf("no networks: %v, %v", none, err)
	}
}

// Whatever is wrong in a file is refused with its line and a reason, and nothing of it is taken.
func TestBadFileIsRefusedByLine(t *testing.T) {
	const ok = `"addresses": ["10.1.0.9/24"]`
	many := `{"device": "eth1", "addresses": [` + strings.TrimSuffix(strings.Repeat(`"10.1.0.9/24",`, 17), ",") + `]}`
	routes := `{"device": "eth1", ` + ok + `, "routes": [` + strings.TrimSuffix(strings.Repeat(`{"to": "10.9.0.0/16"},`, 65), ",") + `]}`
	for entry, want := range map[string]string{
		`{}`:                                 "use one of namespace, device",
		`{"device": "eth1", "bridge": "b"}`:  "use one of namespace, device",
		`{"device": "eth1", "adresses": []}`: "unknown key",
		`{"device": "eth1"}`:                 "needs 1-16",
		many:                                 "needs 1-16",
		`{"device": "lo", ` + ok + `}`:       "no name of an interface",
		`{"device": "a/b", ` + ok + `}`:      "no name of an interface",
		`{"device": "sixteen-letters-", ` + ok + `}`:                                                                "no name of an interface",
		`{"device": 5, ` + ok + `}`:                                                                                 "device: json",
		`{"device": "eth1", "addresses": ["10.1.0.9"]}`:                                                             "addresses: netip",
		`{"device": "eth1", "addresses": ["10.1.0.0/24"]}`:                                                          "is a range",
		`{"device": "eth1", "addresses": ["127.0.0.9/8"]}`:                                                          "can be no address",
		`{"device": "eth1", "addresses": ["169.254.1.9/16"]}`:                                                       "can be no address",
		`{"device": "eth1", "addresses": ["10.1.0.9/24", "10.1.0.9/16"]}`:                                           "twice",
		`{"device": "eth1", ` + ok + `, "gateway": "10.8.0.1"}`:                                                     "in no range of addresses",
		`{"device": "eth1", ` + ok + `, "gateway": "10.1.0.9"}`:                                                     "own address",
		`{"device": "eth1", ` + ok + `, "mtu": 100}`:                                                                "mtu 100: use 576-65535",
		`{"device": "eth1", "addresses": ["fd00::9/64"], "mtu": 600}`:                                               "use 1280-65535",
		`{"device": "eth1", ` + ok + `, "routes": [{"to": "10.9.0.1/16"}]}`:                                         "use a range",
		`{"device": "eth1", ` + ok + `, "routes": [{"to": "10.9.0.0/16", "by": "10.1.0.1"}]}`:                       "unknown field",
		`{"device": "eth1", ` + ok + `, "routes": [{"to": "10.9.0.0/16", "via": "10.8.0.1"}]}`:                      "in no range of addresses",
		`{"device": "eth1", ` + ok + `, "routes": [{"to": "fd00::/64"}]}`:                                           "of its family",
		`{"device": "eth1", ` + ok + `, "gateway": "10.1.0.1", "routes": [{"to": "0.0.0.0/0", "via": "10.1.0.1"}]}`: "two ways",
		routes: "at most 64",
		`{"vlan": {"parent": "eth1", "id": 4095}, ` + ok + `}`:                           "use 1-4094",
		`{"vlan": {"parent": "eth1"}, ` + ok + `}`:                                       "use 1-4094",
		`{"vlan": {"id": 4}, ` + ok + `}`:                                                "no name of an interface",
		`{"vlan": {"parent": "eth1", "tag": 4}, ` + ok + `}`:                             "unknown field",
		`{"namespace": "x", ` + ok + `}`:                                                 "the operator's to set",
		`{"namespace": "a/b"}`:                                                           "use a name below",
		`{"namespace": "host"}`:                                                          "only internet",
		`{"namespace": "x", "dns": ["one"]}`:                                             "no address",
		`{"namespace": "x", "dns": ["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4","1.1.1.5"]}`: "at most 4",
		`{"namespace": "x", "namespace": "y"}`:                                           "twice",
		`[]`:                                                                             "no object",
	} {
		out, err := Parse([]byte("{\n\n\"acme/db\": " + entry + "}"))
		if starling.KindOf(err) != starling.Invalid || !strings.Contains(err.Error(), "line 3: ") || !strings.Contains(err.Error(), want) || out != nil {
			t.Errorf("%.100s\n  %v\n  not with %q", entry, err, want)
		}
	}
	for file, want := range map[string]string{
		"{\n\"acme\": {}}":      "line 2: \"acme\" is no account/network",
		"{\n\"acme/none\": {}}": "line 2: \"acme/none\" is no account/network",
		"{\n\"/internet\": {}}": "is no account/network",
		"{\n\n  oops":           "line 3: invalid character",
		"[1]":                   "no object",
		"":                      "line 1: unexpected end",
		"{\"internet\": {\"namespace\": \"host\"},\n\"internet\": {\"namespace\": \"host\"}}": "line 2: \"internet\" stands there twice",
		strings.Repeat(" ", FileMax+1): "at most",
	} {
		if _, err := Parse([]byte(file)); starling.KindOf(err) != starling.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, not with %q", file, err, want)
		}
	}
}

// Two networks do not get one thing, and two accounts never meet on one wire.
func TestNetworksDoNotOverlap(t *testing.T) {
	entry := func(kind, address string) string { return fmt.Sprintf(`{%s, "addresses": [%q]}`, kind, address) }
	vlan, bridge, macvlan := `"vlan": {"parent": "e", "id": 7}`, `"bridge": "b"`, `"macvlan": {"parent": "e"}`
	for name, c := range map[string]struct{ one, two, other, want string }{
		"one device":                {entry(`"device": "e"`, "10.1.0.9/24"), entry(`"device": "e"`, "10.2.0.9/24"), "acme", "has device e already"},
		"one VLAN":                  {entry(vlan, "10.1.0.9/24"), entry(vlan, "10.2.0.9/24"), "acme", "has vlan 7 of e already"},
		"a device and its VLAN":     {entry(vlan, "10.1.0.9/24"), entry(`"device": "e"`, "10.2.0.9/24"), "acme", "goes into the namespace of acme/two"},
		"one address on a bridge":   {entry(bridge, "10.1.0.9/24"), entry(bridge, "10.1.0.9/16"), "acme", "has address 10.1.0.9 on b already"},
		"two accounts on a bridge":  {entry(bridge, "10.1.0.9/24"), entry(bridge, "10.1.0.8/24"), "zeta", "another account"},
		"two accounts on a macvlan": {entry(macvlan, "10.1.0.9/24"), entry(macvlan, "10.2.0.9/24"), "zeta", "another account"},
		"two accounts, one path":    {`{"namespace": "x"}`, `{"namespace": "x"}`, "zeta", "another account"},
		"two bridged":               {entry(bridge, "10.1.0.9/24"), entry(bridge, "10.1.0.8/24"), "acme", ""},
		"two VLANs":                 {entry(vlan, "10.1.0.9/24"), entry(`"vlan": {"parent": "e", "id": 8}`, "10.1.0.9/24"), "zeta", ""},
		"two named as one":          {`{"namespace": "x"}`, `{"namespace": "x"}`, "acme", ""},
	} {
		_, err := Parse(fmt.Appendf(nil, "{\"acme/one\": %s,\n%q: %s}", c.one, c.other+"/two", c.two))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, not with %q", name, err, c.want)
		}
	}
	var b strings.Builder
	for i := range NetworkMax + 1 {
		fmt.Fprintf(&b, ",\n\"acme/n%d\": {\"namespace\": \"n\"}", i)
	}
	if _, err := Parse([]byte("{" + b.String()[1:] + "}")); err == nil || !strings.Contains(err.Error(), "line 4098: a gateway has at most 4096 networks") {
		t.Errorf("a network too many: %.200v", err)
	}
}

// What stays as it is is not touched; who is asked for names may change meanwhile.
func TestPlanTouchesWhatChanges(t *testing.T) {
	have, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.NewReplacer(`"dns": ["9.9.9.9"]`, `"dns": ["1.1.1.1"]`, `"id": 40`, `"id": 41`, "acme/old", "acme/new").Replace(good)
	want, err := Parse([]byte(other))
	if err != nil {
		t.Fatal(err)
	}
	c := Plan(have, want)
	if !slices.Equal(c.Drop, []starling.NetworkRef{ref("acme", "old"), ref("zeta", "db")}) || !slices.Equal(c.Plug, []starling.NetworkRef{ref("acme", "new"), ref("zeta", "db")}) || len(c.Keep) != 5 {
		t.Errorf("%+v", c)
	}
	if c := Plan(nil, want); len(c.Plug) != 7 || len(c.Drop)+len(c.Keep) != 0 {
		t.Errorf("from nothing: %+v", c)
	}
}

// FuzzParse shows that no file brings the reader down, and that what it takes is right by itself.
func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, text []byte) {
		out, err := Parse(text)
		if err != nil && starling.KindOf(err) != starling.Invalid {
			t.Errorf("%v", err)
		}
		for ref, u := range out {
			if err := u.Validate(ref); err != nil {
				t.Errorf("%v: %v", ref, err)
			}
		}
	})
}
