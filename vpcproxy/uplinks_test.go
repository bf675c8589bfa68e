package vpcproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"starling"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/plugboard"
	"starling/vpcproxy/uplink"
)

var db = starling.NetworkRef{Account: "acme", Name: "db"}

// An operator is a machine of gateways on which acme's cable "up" ends, and nothing is plugged in yet.
type operator struct {
	*world
	home  *os.File
	board plugboard.Board
}

// newOperator has no gateways yet. What they leave behind fails the test.
func newOperator(t *testing.T) *operator {
	w := newWorld(t, 0, nil)
	o := &operator{world: w, home: w.tenants["acme"].uplink}
	dir := t.TempDir()
	o.board = plugboard.Board{Dir: filepath.Join(dir, "records"), Namespaces: filepath.Join(dir, "netns"), Scope: "test", Home: o.home}
	must(t, netns.Do(o.home, func() error {
		up, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(uplinkAddr + "/24")
		return errors.Join(err, netlink.AddrDel(up, addr))
	}))
	before := o.devices()
	t.Cleanup(func() {
		unix.Unmount(o.board.Namespaces, unix.MNT_DETACH)
		for _, pattern := range []string{"records/starling*", "netns/*"} {
			left, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, path := range left {
				t.Errorf("left behind: %s", path)
				unix.Unmount(path, unix.MNT_DETACH)
			}
		}
		if after := o.devices(); before != after {
			t.Errorf("devices before: %s, after: %s", before, after)
		}
	})
	return o
}

// devices are the operator's, the bridge that a test adds excepted.
func (o *operator) devices() (names string) {
	must(o.t, netns.Do(o.home, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			if l.Type() != "bridge" {
				names += l.Attrs().Name + " "
			}
		}
		return err
	}))
	return names
}

// bridge makes "br0", of which the cable is a port, with an address of the machine.
func (o *operator) bridge() {
	must(o.t, netns.Do(o.home, func() error {
		at := netlink.NewLinkAttrs()
		at.Name = "br0"
		bridge := &netlink.Bridge{LinkAttrs: at}
		up, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetMaster(up, bridge))
	}))
	raise(o.t, o.home, "br0", "10.7.0.1/24")
}

// plug starts a gateway with the uplinks of a file beside zeta's, which is a namespace.
func (o *operator) plug(id starling.NodeID, entries string) *gatewayNode {
	o.addGateway(o.ca, id, func(c *gateway.Config) {
		c.Board, c.Uplinks, c.TryTime = o.board, o.file(entries), 50*time.Millisecond
		c.DialTime = 5 * time.Second // the kernel lets nothing through a new device for up to a second
	})
	return o.gateways[len(o.gateways)-1]
}

// file reads a file of uplinks that has entries, and zeta's.
func (o *operator) file(entries string) map[starling.NetworkRef]uplink.Uplink {
	o.t.Helper()
	if entries != "" {
		entries += ","
	}
	all, err := uplink.Parse(fmt.Appendf(nil, `{%s "zeta/db": {"namespace": "/proc/self/fd/%d"}}`, entries, o.tenants["zeta"].uplink.Fd()))
	must(o.t, err)
	return all
}

// awaits waits until a network of a gateway is in a state, and returns it.
func (o *operator) awaits(g *gatewayNode, state string) gateway.State {
	o.t.Helper()
	for range 200 {
		for _, s := range g.gateway.Uplinks() {
			if s.Network == db && s.State == state {
				return s
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	o.t.Fatalf("acme/db is not %s: %+v", state, g.gateway.Uplinks())
	return gateway.State{}
}

const (
	byBridge  = `"acme/db": {"bridge": "br0", "addresses": ["10.7.0.2/24"], "gateway": "10.7.0.10"}`
	byDevice  = `"acme/db": {"device": "up", "addresses": ["10.7.0.2/24"], "gateway": "10.7.0.10"}`
	byMacvlan = `"acme/db": {"macvlan": {"parent": "up"}, "addresses": ["10.7.0.2/24"], "gateway": "10.7.0.10", "mtu": 1400}`
)

// Functions reach their network by every kind of uplink, over TCP, UDP and by name, and never what nobody reaches: metadata, and the gateway's machine.
func TestEveryKindOfUplinkCarriesFlows(t *testing.T) {
	for name, entry := range map[string]string{"bridge": byBridge, "device": byDevice, "macvlan": byMacvlan} {
		t.Run(name, func(t *testing.T) {
			o := newOperator(t)
			if name == "bridge" {
				o.bridge()
			}
			if name == "macvlan" {
				raise(t, o.home, "up", "10.7.0.1/24")
			}
			g := o.plug(10, entry)
			o.awaits(g, "plugged in")
			s := o.connected("acme")
			if got, err := s.name(serverAddr + ":8080"); got != "acme" || err != nil {
				t.Errorf("over TCP: %q, %v", got, err)
			}
			if got, err := s.tell(serverAddr+":9000", "hello", 5*time.Second); got != "acme:hello" || err != nil {
				t.Errorf("over UDP: %q, %v", got, err)
			}
			if got, err := s.lookup("udp", "db.internal"); err != nil || len(got) != 1 || got[0] != netip.MustParseAddr(serverAddr) {
				t.Errorf("by name: %v, %v", got, err)
			}
			if got, err := o.connected("zeta").name(serverAddr + ":8080"); got != "zeta" || err != nil {
				t.Errorf("another account's, of the same address: %q, %v", got, err)
			}
			var l net.Listener
			if name != "device" {
				must(t, netns.Do(o.home, func() (err error) {
					l, err = net.Listen("tcp", "10.7.0.1:8080")
					return err
				}))
				defer l.Close()
				go answer(l, func(c net.Conn) {
					fmt.Fprintln(c, "the gateway's machine")
					c.Close()
				})
			}
			for _, to := range []string{"169.254.169.254:8080", "127.0.0.1:8080", "10.7.0.1:8080", uplinkAddr + ":8080", "10.7.0.99:8080", "192.168.5.5:8080"} {
				if got, err := s.name(to); err == nil {
					t.Errorf("%s was reached: %q", to, got)
				}
			}
		})
	}
}

// A gateway that is drained gives its connections to the one beside it, and leaves it the namespace when it ends.
func TestSuccessorKeepsTheNamespaceOfADrainedGateway(t *testing.T) {
	for name, entry := range map[string]string{"bridge": byBridge, "device": byDevice} {
		t.Run(name, func(t *testing.T) {
			o := newOperator(t)
			if name == "bridge" {
				o.bridge()
			}
			for id := range starling.NodeID(2) {
				o.awaits(o.plug(10+id, entry), "plugged in")
			}
			for _, e := range drained(t, o.world, 10) {
				if err := e.once(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Networks come and go at a gateway that works: flows of those that stay go on, flows of those that go are reset, and what comes back works.
func TestReloadKeepsWhatStays(t *testing.T) {
	o := newOperator(t)
	o.bridge()
	g := o.plug(10, byBridge)
	o.awaits(g, "plugged in")
	acme, zeta := o.connected("acme"), o.connected("zeta")
	gone, stays := o.echo(acme, "acme"), o.echo(zeta, "zeta")
	must(t, errors.Join(gone.once(), stays.once()))
	must(t, g.gateway.Replug(t.Context(), o.file(strings.Replace(byBridge, `"gateway"`, `"dns": ["10.7.0.10"], "gateway"`, 1))))
	if err := gone.once(); err != nil {
		t.Errorf("another name server cost a connection: %v", err)
	}
	must(t, g.gateway.Replug(t.Context(), o.file("")))
	if _, err := gone.conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection of the network that went: %v", err)
	}
	if got, err := acme.name(serverAddr + ":8080"); err == nil {
		t.Errorf("the network that went was reached: %q", got)
	}
	must(t, g.gateway.Replug(t.Context(), o.file(strings.Replace(byBridge, "10.7.0.2/24", "10.7.0.3/24", 1))))
	o.awaits(g, "plugged in")
	if got, err := acme.name(serverAddr + ":8080"); got != "acme" || err != nil {
		t.Errorf("after it came back: %q, %v", got, err)
	}
	if err := stays.once(); err != nil {
		t.Errorf("a connection of the network that stayed: %v", err)
	}
}

// A device that is missing is told and plugged in when it comes; one that goes is told, too, and others' flows go on.
func TestDeviceComesAndGoes(t *testing.T) {
	o := newOperator(t)
	must(t, o.rename("up", "later"))
	g := o.plug(10, byDevice+`, "acme/typo": {"namespace": "/proc/self/ns/nobody"}`)
	if s := o.awaits(g, "failed"); !strings.Contains(s.Reason, "there is no device up") {
		t.Errorf("without its device: %+v", s)
	}
	await(t, g, "starling_gateway_unplugged 2\n")
	acme, stays := o.connected("acme"), o.echo(o.connected("zeta"), "zeta")
	if got, err := acme.name(serverAddr + ":8080"); err == nil {
		t.Errorf("reached without its device: %q", got)
	}
	must(t, o.rename("later", "up"))
	s := o.awaits(g, "plugged in")
	if got, err := acme.name(serverAddr + ":8080"); got != "acme" || err != nil {
		t.Errorf("with its device: %q, %v", got, err)
	}
	ns, err := netns.Open(s.Namespace)
	must(t, err)
	defer ns.Close()
	must(t, netns.Do(ns, func() error {
		up, err := netlink.LinkByName("up")
		return errors.Join(err, netlink.LinkSetNsFd(up, int(o.home.Fd())))
	}))
	o.awaits(g, "plugged in") // it is at home, and taken again
	for i := 0; ; i++ {
		if got, err := acme.name(serverAddr + ":8080"); got == "acme" && err == nil {
			break
		} else if i == 100 {
			t.Fatalf("taken again: %q, %v", got, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	must(t, stays.once())
}

// rename calls a device of the operator something else.
func (o *operator) rename(from, to string) error {
	return netns.Do(o.home, func() error {
		l, err := netlink.LinkByName(from)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, to), netlink.LinkSetUp(l))
	})
}

// An operator who mistypes a name, or whose network has another source address than the uplink, hears of it.
func TestUplinkThatTheCatalogContradictsIsNoted(t *testing.T) {
	o := newOperator(t)
	n := *o.networks[db]
	n.Egress = "10.7.0.77"
	o.networks[db] = &n
	g := o.plug(10, byDevice+`, "acme/typo": {"device": "nothing", "addresses": ["10.7.0.4/24"]}`)
	want := map[string]string{"acme/db": "10.7.0.77 is none of the uplink's addresses", "acme/typo": "no such account or network"}
	for i := 0; len(want) > 0; i++ {
		for _, s := range g.gateway.Uplinks() {
			if text := want[s.Network.String()]; text != "" && strings.Contains(s.Note, text) {
				delete(want, s.Network.String())
			}
		}
		if i == 200 {
			t.Fatalf("not noted: %v; %+v", want, g.gateway.Uplinks())
		}
		time.Sleep(20 * time.Millisecond)
	}
}
