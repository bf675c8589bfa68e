package policy

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"starling"
)

func compile(t testing.TB, n starling.Network, own ...string) *Rules {
	t.Helper()
	var addrs []netip.Addr
	for _, o := range own {
		addrs = append(addrs, netip.MustParseAddr(o))
	}
	r, err := Compile(n, addrs)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func at(text string) netip.AddrPort {
	if ap, err := netip.ParseAddrPort(text); err == nil {
		return ap
	}
	return netip.AddrPortFrom(netip.MustParseAddr(text), 443)
}

// everywhere is the network that lists as much as one can.
var everywhere = starling.Network{CIDRs: []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "fc00::/7", "fe80::/10", "::/96", "172.16.0.0/12",
	"192.168.0.0/16", "100.64.0.0/10"}, Allow: []string{"0.0.0.0/0", "::/0"}}

// What is refused to everybody is refused to internet and to the network that lists everything, in every spelling.
func TestReservedAddressesAreRefusedToEverybody(t *testing.T) {
	rules := map[string]*Rules{"internet": Public(nil), "everywhere": compile(t, everywhere)}
	for _, text := range []string{
		"0.0.0.0", "0.0.0.1", "0.255.255.255", "127.0.0.1", "127.1.2.3", "127.255.255.255", "169.254.169.254", "169.254.0.1", "169.254.255.255",
		"100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.0.1", "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::2", "::7f00:1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "ff00::", "100::1",
		"fd00:ec2::254", "fd20:ce::254", "64:ff9b::a9fe:a9fe", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:a9fe:a9fe::1", "2002:7f00:1::", "2001:0:1::",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:100.100.100.200",
	} {
		to := at(text)
		if v := Always(to); v != Reserved {
			t.Errorf("%s: always %q", text, v)
		}
		for name, r := range rules {
			if v := r.Check(to); v != Reserved {
				t.Errorf("%s in %s: %q", text, name, v)
			}
			if v := r.CheckServer(to); v != Reserved {
				t.Errorf("name server %s in %s: %q", text, name, v)
			}
		}
	}
}

func TestInternetIsWhatIsPublic(t *testing.T) {
	r := Public([]netip.Addr{netip.MustParseAddr("8.8.4.4")})
	for text, want := range map[string]Verdict{
		"8.8.8.8": Permitted, "1.1.1.1": Permitted, "9.255.255.255": Permitted, "11.0.0.0": Permitted, "172.15.255.255": Permitted, "172.32.0.0": Permitted,
		"100.63.255.255": Permitted, "100.128.0.0": Permitted, "223.255.255.255": Permitted, "2606:4700::1111": Permitted, "::ffff:8.8.8.8": Permitted,
		"10.0.0.0": Private, "10.255.255.255": Private, "172.16.0.0": Private, "172.31.255.255": Private, "192.168.0.0": Private, "192.168.255.255": Private,
		"100.64.0.0": Private, "100.127.255.255": Private, "198.18.0.1": Private, "198.19.255.255": Private, "192.0.2.1": Private, "203.0.113.9": Private,
		"fc00::1": Private, "fdff::1": Private, "2001:db8::1": Private, "::ffff:10.0.0.1": Private, "::ffff:192.168.1.1": Private,
		"8.8.4.4": Cluster, "::ffff:8.8.4.4": Cluster,
	} {
		if v := r.Check(at(text)); v != want {
			t.Errorf("%s: %q, want %q", text, v, want)
		}
	}
}

func TestNetworkIsWhatItLists(t *testing.T) {
	r := compile(t, starling.Network{CIDRs: []string{"10.1.0.0/16", "0.0.0.0/0", "fd00:1::/32"}, Deny: []string{"10.1.9.0/24", "10.1.0.5:22", "8.8.8.8"}}, "10.1.0.1", "198.51.100.1")
	for text, want := range map[string]Verdict{
		"10.1.0.2:5432": Permitted, "10.1.255.255:1": Permitted, "8.8.4.4:443": Permitted, "[fd00:1::5]:443": Permitted, "[::ffff:10.1.0.2]:5432": Permitted,
		"10.2.0.1:5432": Private, "192.168.1.1:80": Private, "[fd00:2::5]:443": Private, "[::ffff:10.2.0.1]:80": Private, // 0.0.0.0/0 lists none of them
		"[2606:4700::1111]:443": Outside,
		"10.1.9.9:80":           Denied, "10.1.0.5:22": Denied, "10.1.0.5:23": Permitted, "8.8.8.8:53": Denied, "[::ffff:10.1.9.9]:80": Denied,
		"10.1.0.1:80": Cluster, "198.51.100.1:80": Cluster, "10.1.0.2:0": Malformed,
	} {
		if v := r.Check(at(text)); v != want {
			t.Errorf("%s: %q, want %q", text, v, want)
		}
	}
	if v := r.Check(netip.AddrPort{}); v != Malformed {
		t.Errorf("no address: %q", v)
	}
	if v := r.Check(at("[fd00:1::5%eth0]:80")); v != Malformed {
		t.Errorf("an address with a zone: %q", v)
	}
}

func TestDenyIsStrongerThanAllowAndAllowNarrows(t *testing.T) {
	r := compile(t, starling.Network{CIDRs: []string{"10.0.0.0/8"}, Allow: []string{"10.0.0.0/24:8000-8999", "10.0.1.5", "192.168.0.0/16"}, Deny: []string{"10.0.0.7"}})
	for text, want := range map[string]Verdict{
		"10.0.0.1:8000": Permitted, "10.0.0.1:8999": Permitted, "10.0.0.1:9000": Unlisted, "10.0.0.1:7999": Unlisted, "10.0.1.5:1": Permitted,
		"10.0.0.7:8000": Denied, "10.0.2.1:8000": Unlisted, "192.168.0.1:80": Private, // allow never widens
	} {
		if v := r.Check(at(text)); v != want {
			t.Errorf("%s: %q, want %q", text, v, want)
		}
	}
	if v := r.CheckServer(at("10.0.2.1:53")); v != Permitted {
		t.Errorf("the network's own name server: %q", v)
	}
	if v := r.CheckServer(at("10.0.0.7:53")); v != Denied {
		t.Errorf("a denied name server: %q", v)
	}
}

// Two networks with the same ranges have rules that say the same: what keeps them apart is where they are dialled.
func TestTwoMillionAddressesAgainstAMap(t *testing.T) {
	r := compile(t, starling.Network{CIDRs: []string{"10.20.0.0/16"}, Deny: []string{"10.20.30.0/24"}})
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2_000_000 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], rng.Uint32())
		if rng.IntN(2) == 0 {
			b[0], b[1] = 10, 20
		}
		to := netip.AddrPortFrom(netip.AddrFrom4(b), uint16(1+rng.IntN(65535)))
		want := b[0] == 10 && b[1] == 20 && b[2] != 30
		if got := r.Check(to) == Permitted; got != want {
			t.Fatalf("%s: %v", to, got)
		}
	}
}

// FuzzCheck: what is permitted is never reserved, in no spelling; internet permits nothing private; a mapped address is judged as what it maps.
func FuzzCheck(f *testing.F) {
	for _, text := range []string{"10.0.0.1", "::ffff:169.254.169.254", "fe80::1", "8.8.8.8", "64:ff9b::7f00:1"} {
		a := netip.MustParseAddr(text)
		f.Add(a.AsSlice(), uint16(80))
	}
	all, internet := compile(f, everywhere), Public(nil)
	f.Fuzz(func(t *testing.T, raw []byte, port uint16) {
		a, ok := netip.AddrFromSlice(raw)
		if !ok {
			return
		}
		to := netip.AddrPortFrom(a, port)
		for _, r := range []*Rules{all, internet} {
			v := r.Check(to)
			if a.Is4() && v != r.Check(netip.AddrPortFrom(netip.AddrFrom16(a.As16()), port)) {
				t.Fatalf("%s is judged in two ways", a)
			}
			u := a.Unmap()
			bad := u.IsLoopback() || u.IsLinkLocalUnicast() || u.IsMulticast() || u.IsUnspecified() || u.IsInterfaceLocalMulticast() || port == 0
			if v == Permitted && (bad || r == internet && u.IsPrivate()) {
				t.Fatalf("%s is permitted", to)
			}
		}
	})
}
