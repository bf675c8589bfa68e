package vpcproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"starling"
	"starling/cluster/identity"
	"starling/transport"
	"starling/transport/quic"
	"starling/vpcproxy/capture"
	"starling/vpcproxy/desk"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/tunnel"
	"starling/vpcproxy/uplink"
)

// A world is one host, some gateways and the networks of two accounts, which have the same ranges and addresses.
type world struct {
	t        testing.TB
	ca       *identity.CA
	dir      string // in which gateways find each other
	host     *quic.Endpoint
	tunnel   *tunnel.Tunnel
	maker    *capture.Maker
	signer   *desk.Signer
	gateways []*gatewayNode
	tenants  map[starling.AccountID]*tenant
	networks map[starling.NetworkRef]*starling.Network
	versions sync.Map // by id
	placed   atomic.Bool
	next     uint64
	mu       sync.Mutex // guards gateways
}

type gatewayNode struct {
	node     starling.Node
	endpoint *quic.Endpoint
	gateway  *gateway.Gateway
	dead     atomic.Bool
	leaving  atomic.Bool // the operator's word that it is to be emptied
}

// tenant is one account's own network: inside, where its servers are, and the namespace that gateways dial in.
type tenant struct {
	inside, uplink *os.File
	name           string
}

const (
	serverAddr = "10.7.0.10"
	uplinkAddr = "10.7.0.2"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// byEachMeans runs a test with all that can catch connections on this machine.
func byEachMeans(t *testing.T, gateways int, f func(*testing.T, *world)) {
	for _, m := range []capture.Means{capture.Lookup, capture.TPROXY} {
		t.Run(string(m), func(t *testing.T) {
			w := newWorld(t, gateways, nil)
			if err := m.Try(); err != nil {
				t.Skipf("%s does not work here: %v", m, err)
			}
			w.maker.Means = m
			f(t, w)
		})
	}
}

func newWorld(t testing.TB, gateways int, change func(*gateway.Config)) *world {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "gateways"), tenants: map[starling.AccountID]*tenant{}, networks: networks(t)}
	w.placed.Store(true)
	for _, name := range []string{"acme", "zeta"} {
		w.tenants[starling.AccountID(name)] = newTenant(t, name)
	}
	ca, err := identity.NewCA("test", time.Now())
	must(t, err)
	w.ca = ca
	w.signer = newSigner()
	w.signer.Version = func(_ context.Context, id starling.VersionID) (*starling.Version, error) {
		v, _ := w.versions.Load(id)
		return v.(*starling.Version), nil
	}
	w.signer.Placed = func(context.Context, *starling.Version, starling.NodeID) bool { return w.placed.Load() }
	w.host = endpoint(t, ca, 1, starling.RoleHost, false, nil)
	for i := range gateways {
		w.addGateway(ca, starling.NodeID(10+i), change)
	}
	w.tunnel = tunnel.New(tunnel.Config{Dial: w.host, Gateways: w.alive, Grants: &desk.Client{Self: 1, Local: w.signer}, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { w.tunnel.Close() })
	w.maker = &capture.Maker{Way: func(a starling.Attachment) capture.Way { return w.tunnel.Way(a) }, Log: slog.New(slog.DiscardHandler)}
	return w
}

// networks are those of the two accounts.
func networks(t testing.TB) map[starling.NetworkRef]*starling.Network {
	all := map[starling.NetworkRef]*starling.Network{}
	for _, account := range []starling.AccountID{"acme", "zeta"} {
		ref := starling.NetworkRef{Account: account, Name: "db"}
		n := starling.Network{Ref: ref, CIDRs: []string{"10.7.0.0/24"}, DNS: []string{serverAddr}, Deny: []string{"10.7.0.66"}}.WithDefaults()
		must(t, n.Validate())
		all[ref] = &n
	}
	return all
}

// newSigner has the key that every process of a test has.
func newSigner() *desk.Signer {
	return &desk.Signer{Seed: bytes.Repeat([]byte{3}, 32), Now: time.Now, Log: slog.New(slog.DiscardHandler)}
}

func (w *world) alive() (out []starling.Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.gateways {
		if !g.dead.Load() {
			n := g.node
			n.Draining = g.leaving.Load()
			out = append(out, n)
		}
	}
	return out
}

func (w *world) addGateway(ca *identity.CA, id starling.NodeID, change func(*gateway.Config)) {
	cfg := gateway.Config{Uplinks: map[starling.NetworkRef]uplink.Uplink{}, DialTime: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Network: func(_ context.Context, ref starling.NetworkRef) (*starling.Network, error) {
			if n := w.networks[ref]; n != nil {
				return n, nil
			}
			return nil, starling.Errorf(starling.NotFound, "read network", "there is none")
		},
		Key:     (&desk.Client{Self: id, Local: w.signer}).Key,
		Cluster: func() ([]netip.Addr, uint64) { return []netip.Addr{netip.MustParseAddr("10.7.0.99")}, 1 }}
	for account, t := range w.tenants {
		cfg.Uplinks[starling.NetworkRef{Account: account, Name: "db"}] = uplink.Uplink{Namespace: fmt.Sprintf("/proc/self/fd/%d", t.uplink.Fd())}
	}
	g := &gatewayNode{}
	cfg.Handover = gateway.Handover{Dir: w.dir, Self: id, Successors: func() (out []starling.NodeID, leaving bool) {
		for _, n := range w.alive() {
			if !n.Draining {
				out = append(out, n.ID)
			}
		}
		return out, g.leaving.Load()
	}}
	if change != nil {
		change(&cfg)
	}
	g.gateway = gateway.New(cfg)
	must(w.t, g.gateway.Open())
	g.endpoint = endpoint(w.t, ca, id, starling.RoleGateway, true, g.gateway.Serve)
	g.endpoint.Handle(transport.ChannelProbe, g.gateway.ServeProbe)
	g.node = starling.Node{ID: id, Addr: g.endpoint.Addr(), Roles: starling.RoleGateway}
	for !g.gateway.Ready() {
		time.Sleep(time.Millisecond)
	}
	w.t.Cleanup(func() { g.gateway.Close() })
	w.mu.Lock()
	w.gateways = append(w.gateways, g)
	w.mu.Unlock()
}

func endpoint(t testing.TB, ca *identity.CA, id starling.NodeID, roles starling.Roles, flows bool, serve func(transport.Stream)) *quic.Endpoint {
	n, err := ca.Issue(identity.Grant{Node: id, Roles: roles}, time.Now())
	must(t, err)
	e := quic.New(quic.Config{Addr: "127.0.0.1:0", Identity: n, Flows: flows})
	if serve != nil {
		e.Handle(transport.ChannelTunnel, serve)
	}
	must(t, e.Listen())
	t.Cleanup(func() { e.Close() })
	return e
}

// newTenant makes the two namespaces of a network and its servers: TCP and UDP on every port that a test asks for, names on 53.
func newTenant(t testing.TB, name string) *tenant {
	c := &tenant{name: name}
	var err error
	c.inside, err = netns.New()
	must(t, err)
	c.uplink, err = netns.New()
	must(t, err)
	t.Cleanup(func() { c.inside.Close(); c.uplink.Close() })
	must(t, netns.Do(c.uplink, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(c.inside.Fd())})
	}))
	raise(t, c.uplink, "up", uplinkAddr+"/24")
	raise(t, c.inside, "eth0", serverAddr+"/24", "10.7.0.66/24", "10.7.0.99/24", "169.254.169.254/32", "192.168.5.5/32")
	must(t, netns.Do(c.uplink, func() error {
		l, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(serverAddr)})
	}))
	c.serve(t)
	return c
}

func raise(t testing.TB, ns *os.File, link string, addrs ...string) {
	t.Helper()
	must(t, netns.Do(ns, func() error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}))
}

// serve answers inside the tenant: port 8080 says the tenant's name and echoes, 8081 sends for ever, 8082 says how many bytes came, UDP
// 9000 says name and datagram, UDP 53 resolves every name to 10.7.0.10, and rebind.* to the metadata address.
func (c *tenant) serve(t testing.TB) {
	listen := func(addr string, f func(net.Conn)) {
		var l net.Listener
		must(t, netns.Do(c.inside, func() (err error) {
			l, err = net.Listen("tcp4", addr)
			return err
		}))
		t.Cleanup(func() { l.Close() })
		go answer(l, f)
	}
	listen("0.0.0.0:8080", func(conn net.Conn) {
		defer conn.Close()
		fmt.Fprintln(conn, c.name)
		io.Copy(conn, conn)
	})
	listen("0.0.0.0:8081", func(conn net.Conn) { sendForEver(conn, 256<<10) }) // a server's memory is of another machine's kernel
	listen("0.0.0.0:8082", countBytes)
	packet := func(addr string, f func([]byte) []byte) {
		var pc net.PacketConn
		must(t, netns.Do(c.inside, func() (err error) {
			pc, err = net.ListenPacket("udp4", addr)
			return err
		}))
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				pc.WriteTo(f(buf[:n]), from)
			}
		}()
	}
	packet("0.0.0.0:9000", func(d []byte) []byte { return append([]byte(c.name+":"), d...) })
	packet("0.0.0.0:53", c.resolve)
}

// answer serves each connection of a listener on a goroutine of its own until the listener closes.
func answer(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go serve(conn)
	}
}

var manyBytes [64 << 10]byte

func sendForEver(conn net.Conn, buffer int) {
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetWriteBuffer(buffer); err != nil {
		return
	}
	for {
		if _, err := conn.Write(manyBytes[:]); err != nil {
			return
		}
	}
}

func countBytes(conn net.Conn) {
	defer conn.Close()
	n, err := io.Copy(io.Discard, struct{ io.Reader }{conn})
	if err == nil {
		fmt.Fprintln(conn, n)
	}
}

func (c *tenant) resolve(q []byte) []byte {
	a := append([]byte(nil), q...)
	if len(q) < 17 {
		return a
	}
	a[2], a[3] = 0x81, 0x80
	end := 12
	for end < len(q) && q[end] != 0 {
		end += int(q[end]) + 1
	}
	end += 5
	kind := binary.BigEndian.Uint16(q[end-4:])
	a = a[:end]
	binary.BigEndian.PutUint16(a[10:], 0) // no additional records
	addr := netip.MustParseAddr(serverAddr).As4()
	if bytes.Contains(q, []byte("rebind")) {
		addr = [4]byte{169, 254, 169, 254}
	}
	if kind != 1 {
		return a
	}
	binary.BigEndian.PutUint16(a[6:], 1)
	a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4)
	return append(a, addr[:]...)
}

// sandbox is a namespace as the process driver makes it, with an outlet; code inside is netns.Dial.
type sandbox struct {
	ns     *os.File
	outlet *capture.Outlet
}

func (w *world) sandbox() *sandbox {
	s := w.bare()
	w.prepare(s)
	return s
}

// bare makes a sandbox's namespace alone.
func (w *world) bare() *sandbox {
	ns, err := netns.New()
	must(w.t, err)
	w.t.Cleanup(func() { ns.Close() })
	raise(w.t, ns, "lo")
	return &sandbox{ns: ns}
}

// prepare lays an outlet into it.
func (w *world) prepare(s *sandbox) {
	dup, err := unix.FcntlInt(s.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(w.t, err)
	s.outlet, err = w.maker.Prepare(os.NewFile(uintptr(dup), "netns"))
	must(w.t, err)
	w.t.Cleanup(func() { s.outlet.Close() })
}

// attachment makes a version of an account with its network db.
func (w *world) attachment(account starling.AccountID, network starling.NetworkName) starling.Attachment {
	w.next++
	v := &starling.Version{ID: starling.VersionID(w.next), Function: starling.FunctionRef{Account: account, Name: "fn"}, Config: starling.Config{Network: network}}
	w.versions.Store(v.ID, v)
	return starling.Attachment{Instance: starling.InstanceID{Partition: 1, Epoch: 1, Seq: w.next}, Function: v.Function, Version: v.ID, Network: network}
}

func (w *world) connected(account starling.AccountID) *sandbox {
	s := w.sandbox()
	must(w.t, s.outlet.Connect(w.attachment(account, "db")))
	return s
}

// dial connects as the code inside does.
func (s *sandbox) dial(network, to string) (net.Conn, error) {
	return netns.Dial(s.ns, network, netip.Addr{}, netip.MustParseAddrPort(to), 3*time.Second)
}

// name connects and returns the first line that the server says.
func (s *sandbox) name(to string) (string, error) {
	c, err := s.dial("tcp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 64)
	n, err := c.Read(b)
	return string(bytes.TrimSpace(b[:n])), err
}

// tell sends a datagram and returns the answer.
func (s *sandbox) tell(to, what string, patience time.Duration) (string, error) {
	c, err := s.dial("udp", to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.Write([]byte(what)); err != nil {
		return "", err
	}
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 64<<10)
	n, err := c.Read(b)
	return string(b[:n]), err
}

// lookup resolves a name by the resolver inside, over UDP or TCP.
func (s *sandbox) lookup(network, name string) ([]netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return s.dial(network, "127.0.0.1:53") }}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return r.LookupNetIP(ctx, "ip4", name+".")
}
