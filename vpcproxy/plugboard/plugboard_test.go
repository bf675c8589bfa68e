package plugboard

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"starling"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

var acme = starling.NetworkRef{Account: "acme", Name: "db"}

// A machine is a namespace in which an operator has a bridge, an interface and a cable, whose other ends are the tenant's.
type machine struct {
	t      testing.TB
	home   *os.File
	tenant *os.File
	board  *Board
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newMachine has "br-lab" with a port of the tenant (10.3.0.10), and "eth1", a cable to the tenant (10.1.0.10) with an MTU of its own.
func newMachine(t testing.TB) *machine {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	m := &machine{t: t}
	var err error
	m.home, err = netns.New()
	must(t, err)
	m.tenant, err = netns.New()
	must(t, err)
	dir := t.TempDir()
	m.board = &Board{Dir: filepath.Join(dir, "records"), Namespaces: filepath.Join(dir, "netns"), Scope: "test", Home: m.home}
	t.Cleanup(func() { m.clean() })
	must(t, netns.Do(m.home, func() error {
		br := netlink.NewLinkAttrs()
		br.Name = "br-lab"
		at := netlink.NewLinkAttrs()
		at.Name = "port"
		eth := netlink.NewLinkAttrs()
		eth.Name, eth.MTU = "eth1", 1400
		bridge := &netlink.Bridge{LinkAttrs: br}
		port := &netlink.Veth{LinkAttrs: at, PeerName: "lab", PeerNamespace: netlink.NsFd(m.tenant.Fd())}
		cable := &netlink.Veth{LinkAttrs: eth, PeerName: "plant", PeerNamespace: netlink.NsFd(m.tenant.Fd()), PeerMTU: 1400}
		return errors.Join(netlink.LinkAdd(bridge), netlink.LinkAdd(port), netlink.LinkSetMaster(port, bridge), netlink.LinkSetUp(bridge), netlink.LinkSetUp(port),
			netlink.LinkAdd(cable), netlink.LinkSetUp(cable))
	}))
	must(t, netns.Do(m.tenant, func() error { return errors.Join(address("lab", "10.3.0.10/24"), address("plant", "10.1.0.10/24")) }))
	for _, addr := range []string{"10.3.0.10:80", "10.1.0.10:80"} {
		m.listen(addr)
	}
	return m
}

// address gives a device an address, in the namespace of the calling thread.
func address(device, addr string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
}

// listen has the tenant say its address to whoever connects.
func (m *machine) listen(addr string) {
	var l net.Listener
	must(m.t, netns.Do(m.tenant, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}))
	m.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, addr)
			c.Close()
		}
	}()
}

// clean takes the machine away and says what gateways have left on it.
func (m *machine) clean() {
	for _, dir := range []string{m.board.Dir, m.board.Namespaces} {
		list, _ := os.ReadDir(dir)
		for _, e := range list {
			if e.Name() != "guard" {
				m.t.Errorf("left behind: %s", e.Name())
				unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH)
			}
		}
	}
	unix.Unmount(m.board.Namespaces, unix.MNT_DETACH) // as it is for "ip netns", too
	if got := m.devices(); got != "br-lab eth1 lo port" {
		m.t.Errorf("devices: %s", got)
	}
	m.home.Close()
	m.tenant.Close()
}

// devices are those of the operator's namespace, in the order of names.
func (m *machine) devices() string {
	var names []string
	must(m.t, netns.Do(m.home, func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			names = append(names, l.Attrs().Name)
		}
		return err
	}))
	slices.Sort(names)
	return strings.Join(names, " ")
}

func parse(t testing.TB, entry string) uplink.Uplink {
	t.Helper()
	all, err := uplink.Parse(fmt.Appendf(nil, `{"acme/db": %s}`, entry))
	must(t, err)
	return all[acme]
}

func (m *machine) plug(entry string) *Plug {
	m.t.Helper()
	p, err := m.board.Plug(acme, parse(m.t, entry))
	must(m.t, err)
	return p
}

// hears connects to the tenant from a network's namespace.
func hears(p *Plug, to string) error {
	c, err := netns.Dial(p.Namespace(), "tcp", netip.Addr{}, netip.MustParseAddrPort(to), 3*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	got := make([]byte, 64)
	n, err := c.Read(got)
	if string(got[:n]) != to {
		return fmt.Errorf("%q, %w", got[:n], err)
	}
	return nil
}

const (
	bridged = `{"bridge": "br-lab", "addresses": ["10.3.0.9/24"], "gateway": "10.3.0.10", "mtu": 1300}`
	moved   = `{"device": "eth1", "addresses": ["10.1.0.9/24"], "routes": [{"to": "10.3.0.10/32", "via": "10.1.0.10"}], "mtu": 1280}`
)

// Every kind that this kernel has reaches the tenant's servers by its device and its routes, and leaves nothing behind.
func TestKindsReachTheTenant(t *testing.T) {
	for name, c := range map[string]struct{ entry, direct, routed string }{
		"bridge":  {bridged, "10.3.0.10:80", "10.1.0.10:80"},
		"device":  {moved, "10.1.0.10:80", "10.3.0.10:80"},
		"macvlan": {`{"macvlan": {"parent": "eth1"}, "addresses": ["10.1.0.9/24"], "gateway": "10.1.0.10"}`, "10.1.0.10:80", "10.3.0.10:80"},
		"both families": {`{"bridge": "br-lab", "addresses": ["10.3.0.9/24", "fd00:3::9/64"], "gateway": "10.3.0.10", "routes": [{"to": "::/0", "via": "fd00:3::10"}, {"to": "10.9.0.0/16"}]}`,
			"10.3.0.10:80", "10.1.0.10:80"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			p := m.plug(c.entry)
			for _, to := range []string{c.direct, c.routed} {
				if err := hears(p, to); err != nil {
					t.Errorf("%s: %v", to, err)
				}
			}
			if carrier, err := p.Check(); err != nil || !carrier {
				t.Errorf("looked at: carrier %v, %v", carrier, err)
			}
			m.shut(p)
			must(t, m.board.Pull(p))
		})
	}
}

// shut checks that a namespace forwards nothing, whatever its machine does.
func (m *machine) shut(p *Plug) {
	must(m.t, netns.Do(p.Namespace(), func() error {
		for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/accept_ra"} {
			if got, err := os.ReadFile("/proc/sys/net/" + file); err != nil || strings.TrimSpace(string(got)) != "0" {
				m.t.Errorf("%s: %s, %v", file, got, err)
			}
		}
		return nil
	}))
}

// A device comes back as it was: its name, its MTU, up.
func TestDeviceIsGivenBack(t *testing.T) {
	m := newMachine(t)
	p := m.plug(moved)
	if got := m.devices(); got != "br-lab lo port" {
		t.Errorf("while it is away: %s", got)
	}
	must(t, m.board.Pull(p))
	must(t, netns.Do(m.home, func() error {
		link, err := netlink.LinkByName("eth1")
		if err == nil && (link.Attrs().MTU != 1400 || link.Attrs().Flags&net.FlagUp == 0) {
			err = fmt.Errorf("MTU %d, %s", link.Attrs().MTU, link.Attrs().Flags)
		}
		return err
	}))
}

// Two gateways of one machine have one namespace, in which the second goes on when the first ends; otherwise plugged in, the second is refused.
func TestGatewaysOfOneMachineShare(t *testing.T) {
	for _, entry := range []string{bridged, moved} {
		m := newMachine(t)
		one, two := m.plug(entry), m.plug(entry)
		if !netns.Same(one.Namespace(), two.Namespace()) {
			t.Error("they have two namespaces")
		}
		other := strings.ReplaceAll(entry, ".9/24", ".8/24")
		if _, err := m.board.Plug(acme, parse(t, other)); starling.KindOf(err) != starling.Conflict {
			t.Errorf("with another address: %v", err)
		}
		stranger := *m.board
		stranger.Scope = "another cluster"
		switch theirs, err := stranger.Plug(acme, parse(t, entry)); {
		case err == nil && (entry == moved || netns.Same(theirs.Namespace(), two.Namespace())):
			t.Error("another cluster has the device, or the namespace, too")
		case err == nil:
			must(t, stranger.Pull(theirs))
		}
		if swept, err := stranger.Sweep(); err != nil || len(swept) != 0 {
			t.Errorf("another cluster sweeps %v, %v", swept, err)
		}
		must(t, m.board.Pull(one))
		if swept, err := m.board.Sweep(); err != nil || len(swept) != 0 {
			t.Errorf("swept %v, %v while one uses it", swept, err)
		}
		if err := hears(two, map[string]string{bridged: "10.3.0.10:80", moved: "10.1.0.10:80"}[entry]); err != nil {
			t.Errorf("after the end of the first: %v", err)
		}
		must(t, m.board.Pull(two))
	}
}

// A record that cannot be read while another gateway uses it is told as what it is, and nothing of that gateway's is touched.
func TestSpoiltRecordOfAnotherGatewayIsTold(t *testing.T) {
	m := newMachine(t)
	one := m.plug(bridged)
	text, err := os.ReadFile(one.use.Name())
	must(t, err)
	must(t, os.WriteFile(one.use.Name(), text[:len(text)/2], 0o600))
	if _, err := m.board.Plug(acme, parse(t, bridged)); starling.KindOf(err) != starling.Internal || !strings.HasSuffix(err.Error(), "cannot be read: it is not whole") {
		t.Errorf("beside a record that is cut off: %v", err)
	}
	if err := hears(one, "10.3.0.10:80"); err != nil {
		t.Errorf("the gateway that is there: %v", err)
	}
	must(t, os.WriteFile(one.use.Name(), text, 0o600))
	must(t, m.board.Pull(one))
}

// What cannot be plugged in is told in words of its kind, and leaves nothing.
func TestWhatCannotBePluggedInIsTold(t *testing.T) {
	m := newMachine(t)
	for name, c := range map[string]struct {
		entry, want string
		kind        starling.Kind
	}{
		"no namespace": {`{"namespace": "/run/netns/nobody-made-this"}`, "no such file", starling.Unavailable},
		"no device":    {`{"device": "eth7", "addresses": ["10.1.0.9/24"]}`, "there is no device eth7", starling.Unavailable},
		"no parent":    {`{"macvlan": {"parent": "eth7"}, "addresses": ["10.1.0.9/24"]}`, "there is no device eth7", starling.Unavailable},
		"no bridge":    {`{"bridge": "eth1", "addresses": ["10.1.0.9/24"]}`, "eth1 is no bridge, but of type veth", starling.Invalid},
		"a port":       {`{"device": "port", "addresses": ["10.1.0.9/24"]}`, "part of a bridge", starling.Invalid},
	} {
		if _, err := m.board.Plug(acme, parse(t, c.entry)); starling.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, netns.Do(m.home, func() error { return address("br-lab", "10.3.0.1/24") }))
	hop := `{"bridge": "br-lab", "addresses": ["10.3.0.9/24"], "gateway": "10.3.0.1"}`
	if _, err := m.board.Plug(acme, parse(t, hop)); starling.KindOf(err) != starling.Invalid || !strings.Contains(err.Error(), "forwards nothing") {
		t.Errorf("by way of this machine: %v", err)
	}
	must(t, netns.Do(m.home, func() error { return address("eth1", "10.1.0.1/24") }))
	if _, err := m.board.Plug(acme, parse(t, moved)); starling.KindOf(err) != starling.Invalid || !strings.Contains(err.Error(), "itself uses eth1, as 10.1.0.1/24") {
		t.Errorf("a device in use: %v", err)
	}
}

// A VLAN works, or the kernel that has none is named with what it lacks.
func TestVLANWorksOrTheKernelIsNamed(t *testing.T) {
	m := newMachine(t)
	p, err := m.board.Plug(acme, parse(t, `{"vlan": {"parent": "eth1", "id": 40}, "addresses": ["10.4.0.9/24"]}`))
	if err != nil {
		if starling.KindOf(err) != starling.Unavailable || !strings.Contains(err.Error(), "vlan 40 of eth1: this kernel makes no such device: load its module 8021q") {
			t.Error(err)
		}
		return
	}
	must(t, netns.Do(m.tenant, func() error {
		plant, err := netlink.LinkByName("plant")
		if err != nil {
			return err
		}
		at := netlink.NewLinkAttrs()
		at.Name, at.ParentIndex = "tagged", plant.Attrs().Index
		return errors.Join(netlink.LinkAdd(&netlink.Vlan{LinkAttrs: at, VlanId: 40, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}), address("tagged", "10.4.0.10/24"))
	}))
	m.listen("10.4.0.10:80")
	if err := hears(p, "10.4.0.10:80"); err != nil {
		t.Error(err)
	}
	must(t, m.board.Pull(p))
}

// A device that its operator takes away is missed.
func TestLostDeviceIsMissed(t *testing.T) {
	m := newMachine(t)
	p := m.plug(bridged)
	must(t, netns.Do(m.home, func() error { return remove(port(p.name)) }))
	if _, err := p.Check(); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("without its device: %v", err)
	}
	must(t, m.board.Pull(p))
}

// A gateway may be killed at any step of plugging in: what there is by then is taken away, and the operator has his devices.
func TestHalfMadeUplinksAreSwept(t *testing.T) {
	for name, entry := range map[string]string{"bridge": bridged, "device": moved, "macvlan": `{"macvlan": {"parent": "eth1"}, "addresses": ["10.1.0.9/24"]}`} {
		for steps := range 6 {
			m, u := newMachine(t), parse(t, entry)
			id, err := m.board.name(acme)
			must(t, err)
			must(t, os.MkdirAll(m.board.Dir, 0o700))
			f, _, err := m.board.open(id)
			must(t, err)
			on, err := m.board.find(u)
			must(t, err)
			r := &record{Network: acme, Uplink: u, Device: on.lent}
			var ns *os.File
			for _, step := range []func() error{
				func() error { _, err := f.WriteString(`{"network": {"acc`); return err },
				func() error { return r.write(f) },
				func() error {
					return errors.Join(os.Mkdir(m.board.Namespaces, 0o755), os.WriteFile(filepath.Join(m.board.Namespaces, id), nil, 0o444))
				},
				func() (err error) { ns, err = m.board.show(id); return err },
				func() error { return m.board.connect(ns, id, u, on) },
				func() error { return furnish(ns, u) },
			}[:steps+1] {
				must(t, step())
			}
			if ns != nil {
				must(t, ns.Close())
			}
			must(t, f.Close())
			if swept, err := m.board.Sweep(); err != nil || len(swept) != min(steps, 1) {
				t.Errorf("%s after %d steps: swept %v, %v", name, steps+1, swept, err)
			}
		}
	}
}

// A device whose name another has meanwhile stays in its namespace, is not forgotten, and comes home when the name is free.
func TestDeviceWaitsForItsName(t *testing.T) {
	m := newMachine(t)
	p := m.plug(moved)
	other := netlink.NewLinkAttrs()
	other.Name = "eth1"
	must(t, netns.Do(m.home, func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: other}) }))
	if err := m.board.Pull(p); err == nil || !strings.Contains(err.Error(), "eth1") {
		t.Errorf("pulled out: %v", err)
	}
	must(t, netns.Do(m.home, func() error { return remove("eth1") }))
	if swept, err := m.board.Sweep(); err != nil || len(swept) != 1 {
		t.Errorf("swept %v, %v", swept, err)
	}
}

// killedBoard is the environment of a process that plugs in and waits to be killed.
const killedBoard = "STARLING_TEST_BOARD"

func TestMain(m *testing.M) {
	if os.Getenv(killedBoard) != "" {
		plugAndWait()
	}
	os.Exit(m.Run())
}

// plugAndWait is a gateway of which nothing works but the plugging in.
func plugAndWait() {
	var wish struct {
		Dir, Namespaces string
		Uplink          uplink.Uplink
	}
	if err := json.Unmarshal([]byte(os.Getenv(killedBoard)), &wish); err != nil {
		panic(err)
	}
	b := &Board{Dir: wish.Dir, Namespaces: wish.Namespaces, Scope: "test", Home: os.NewFile(3, "home")}
	if _, err := b.Plug(acme, wish.Uplink); err != nil {
		panic(err)
	}
	fmt.Println("plugged in")
	time.Sleep(time.Minute)
	os.Exit(1)
}

// kill has another process plug in, and kills it.
func (m *machine) kill(entry string) {
	m.t.Helper()
	wish, err := json.Marshal(map[string]any{"Dir": m.board.Dir, "Namespaces": m.board.Namespaces, "Uplink": parse(m.t, entry)})
	must(m.t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killedBoard+"="+string(wish))
	cmd.ExtraFiles, cmd.Stderr = []*os.File{m.home}, os.Stderr
	out, err := cmd.StdoutPipe()
	must(m.t, err)
	must(m.t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(m.t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	if line != "plugged in\n" {
		m.t.Fatalf("%q, %v", line, err)
	}
}

// What a killed gateway has left is taken over by the next that wants the network, whatever it wants of it, and swept by one that does not.
func TestKilledGatewaysUplinksAreTakenOverOrSwept(t *testing.T) {
	for name, entry := range map[string]string{"bridge": bridged, "device": moved, "macvlan": `{"macvlan": {"parent": "eth1"}, "addresses": ["10.1.0.9/24"]}`} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.kill(entry)
			p := m.plug(entry)
			if err := hears(p, map[bool]string{true: "10.3.0.10:80", false: "10.1.0.10:80"}[name == "bridge"]); err != nil {
				t.Errorf("taken over: %v", err)
			}
			must(t, m.board.Pull(p))
			m.kill(entry)
			p = m.plug(moved)
			if err := hears(p, "10.1.0.10:80"); err != nil {
				t.Errorf("taken over otherwise: %v", err)
			}
			must(t, m.board.Pull(p))
			m.kill(entry)
			if swept, err := m.board.Sweep(); err != nil || len(swept) != 1 || swept[0] != acme {
				t.Errorf("swept %v, %v", swept, err)
			}
		})
	}
}
