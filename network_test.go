package starling

import (
	"net/netip"
	"testing"
)

func TestNetworkIsValidated(t *testing.T) {
	good := Network{Ref: NetworkRef{"acme", "db"}, CIDRs: []string{"10.0.0.0/8", "fd00::/8"}, DNS: []string{"10.0.0.2"}, Egress: "10.0.0.9",
		Allow: []string{"10.0.0.5:5432", "10.1.0.0/16:80-90", "fd00::/8:443"}, Deny: []string{"10.0.0.1"}}.WithDefaults()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, break_ := range map[string]func(*Network){
		"no account":           func(n *Network) { n.Ref.Account = "" },
		"the name internet":    func(n *Network) { n.Ref.Name = "internet" },
		"the name none":        func(n *Network) { n.Ref.Name = "none" },
		"an empty name":        func(n *Network) { n.Ref.Name = "" },
		"capitals":             func(n *Network) { n.Ref.Name = "Db" },
		"a leading dash":       func(n *Network) { n.Ref.Name = "-db" },
		"no ranges":            func(n *Network) { n.CIDRs = nil },
		"a range with a port":  func(n *Network) { n.CIDRs = []string{"10.0.0.0/8:80"} },
		"no range":             func(n *Network) { n.CIDRs = []string{"ten"} },
		"a mapped range":       func(n *Network) { n.CIDRs = []string{"::ffff:10.0.0.0/104"} },
		"65 ranges":            func(n *Network) { n.CIDRs = make([]string, 65) },
		"a server elsewhere":   func(n *Network) { n.DNS = []string{"8.8.8.8"} },
		"a server by name":     func(n *Network) { n.DNS = []string{"dns.acme"} },
		"5 servers":            func(n *Network) { n.DNS = []string{"10.0.0.2", "10.0.0.2", "10.0.0.2", "10.0.0.2", "10.0.0.2"} },
		"an egress by name":    func(n *Network) { n.Egress = "me" },
		"ports the wrong way":  func(n *Network) { n.Allow = []string{"10.0.0.0/8:90-80"} },
		"port 0":               func(n *Network) { n.Deny = []string{"10.0.0.1:0"} },
		"a port too high":      func(n *Network) { n.Deny = []string{"10.0.0.1:65536"} },
		"no flows":             func(n *Network) { n.ConnMax = -1 },
		"too many flows":       func(n *Network) { n.ConnMax = NetworkConnMax + 1 },
		"too many in a second": func(n *Network) { n.RateMax = NetworkRateMax + 1 },
	} {
		n := good
		break_(&n)
		if err := n.Validate(); KindOf(err) != Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDestinationIsReadAsItIsWritten(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.5": "10.0.0.5/32", "10.0.0.5:5432": "10.0.0.5/32:5432", "10.9.9.9/8": "10.0.0.0/8", "10.0.0.0/24:8000-8999": "10.0.0.0/24:8000-8999",
		"fd00::5": "fd00::5/128", "fd00::/8:443": "fd00::/8:443",
	} {
		d, err := ParseDestination(text)
		if err != nil || d.String() != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
		if again, err := ParseDestination(d.String()); err != nil || again != d {
			t.Errorf("%s is not read back: %v, %v", d, again, err)
		}
	}
	d, _ := ParseDestination("10.0.0.0/24:80-90")
	for to, want := range map[string]bool{"10.0.0.9:80": true, "10.0.0.9:90": true, "10.0.0.9:91": false, "10.0.1.9:85": false} {
		if d.Contains(netip.MustParseAddrPort(to)) != want {
			t.Errorf("%s in %s: not %v", to, d, want)
		}
	}
}
