package main

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"starling"
	"starling/vmpool/kata/katatest"
	"starling/vpcproxy/capture"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/place"
)

// netFunction does with the standard library alone what its event says, and answers what came of it.
const netFunction = `
import json, os, socket, ssl, time, urllib.request

def attempt(f):
    try:
        return f()
    except Exception as e:
        return "error: %s %s" % (type(e).__name__, e)

def get(url):
    context = ssl._create_unverified_context()
    return urllib.request.urlopen(url, timeout=5, context=context).read().decode()

def tell(host, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(1)
    s.sendto(b"hello", (host, port))
    data, who = s.recvfrom(4096)
    return "%s from %s" % (data.decode(), who[0])

def reach(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(3)
    s.connect((host, port))
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return "reached: " + s.recv(100).decode("latin1") if s.recv(1) else "error: end"

def first_byte(host, port):
    began = time.monotonic()
    s = socket.create_connection((host, port), 5)
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    s.recv(1)
    s.close()
    return (time.monotonic() - began) * 1e3

def raw(family, kind, proto):
    socket.socket(family, kind, proto)
    return "made"

def handler(event, context):
    out = {"get": {u: attempt(lambda: get(u)) for u in event.get("get", [])}}
    out["tell"] = {h: attempt(lambda: tell(h, 9000)) for h in event.get("tell", [])}
    out["reach"] = {"%s %d" % (h, p): attempt(lambda: reach(h, p)) for h, p in event.get("reach", [])}
    out["names"] = {n: attempt(lambda: socket.gethostbyname(n)) for n in event.get("names", [])}
    out["ms"] = sorted(first_byte("10.7.0.10", 8080) for _ in range(event.get("time", 0)))
    if event.get("raw"):
        out["raw"] = {k: attempt(lambda: raw(*v)) for k, v in {"packet": (17, 3, 0), "raw": (2, 3, 1), "vsock": (40, 1, 0), "alg": (38, 5, 0), "netlink routes": (16, 3, 0), "netlink rules": (16, 3, 12)}.items()}
        # what the host's own sockets are: transparent, marked by nobody, and at an address and port that nobody has
        out["raw"].update({k: attempt(lambda: socket.socket().setsockopt(*v, 1)) for k, v in {"transparent": (0, 19), "mark": (1, 36)}.items()})
        out["raw"].update({a: attempt(lambda: socket.socket().bind((a, 1))) for a in ("192.0.0.8", "127.0.0.1", "10.7.0.10")})
    return out
`

const netNodeFunction = `
const https = require("https")
exports.handler = (event) => new Promise((done) => {
  https.get(event.url, { rejectUnauthorized: false, timeout: 5000 }, (res) => {
    let text = ""
    res.on("data", (d) => (text += d))
    res.on("end", () => done(text))
  }).on("error", (e) => done("error: " + e.code))
})
`

// A netTenant is one account's own network, with servers at 10.7.0.10 that say the account's name.
type netTenant struct {
	inside, uplink *os.File
	account        string
}

func newNetTenant(t *testing.T, account string) *netTenant {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	c := &netTenant{account: account}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	c.inside, err = netns.New()
	must(err)
	c.uplink, err = netns.New()
	must(err)
	t.Cleanup(func() { c.inside.Close(); c.uplink.Close() })
	raise := func(ns *os.File, link string, addrs ...string) {
		must(netns.Do(ns, func() error {
			l, err := netlink.LinkByName(link)
			for _, a := range addrs {
				addr, perr := netlink.ParseAddr(a)
				if err == nil && perr == nil {
					err = netlink.AddrAdd(l, addr)
				}
			}
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			return err
		}))
	}
	must(netns.Do(c.uplink, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(c.inside.Fd())})
	}))
	raise(c.uplink, "up", "10.7.0.2/24")
	raise(c.inside, "eth0", "10.7.0.10/24", "10.7.0.66/24", "169.254.169.254/32", "192.168.5.5/32")
	must(netns.Do(c.uplink, func() error {
		l, err := netlink.LinkByName("up")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 7, 0, 10)})
	}))
	says := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, account, " hears ", r.RemoteAddr) })
	for port, secure := range map[string]bool{"8080": false, "8443": true} {
		var l net.Listener
		must(netns.Do(c.inside, func() (err error) {
			l, err = net.Listen("tcp4", "0.0.0.0:"+port)
			return err
		}))
		s := httptest.NewUnstartedServer(says)
		s.Listener.Close()
		s.Listener = l
		if secure {
			s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
			s.StartTLS()
		} else {
			s.Start()
		}
		t.Cleanup(s.Close)
	}
	c.packets(t, 9000, func(d []byte) []byte { return append([]byte(account+":"), d...) })
	c.packets(t, 53, resolveAll)
	return c
}

func (c *netTenant) packets(t *testing.T, port int, answer func([]byte) []byte) {
	var pc net.PacketConn
	if err := netns.Do(c.inside, func() (err error) {
		pc, err = net.ListenPacket("udp4", fmt.Sprint("0.0.0.0:", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if a := answer(buf[:n]); a != nil {
				pc.WriteTo(a, from)
			}
		}
	}()
}

// resolveAll answers every question for an address with 10.7.0.10, and names that begin with "evil" with the metadata service.
func resolveAll(q []byte) []byte {
	end := 12
	for end < len(q) && q[end] != 0 {
		end += int(q[end]) + 1
	}
	if end += 5; end > len(q) {
		return nil
	}
	a := append([]byte(nil), q[:end]...)
	a[2], a[3] = 0x81, 0x80
	binary.BigEndian.PutUint16(a[10:], 0)
	if binary.BigEndian.Uint16(q[end-4:]) != 1 {
		return a
	}
	addr := []byte{10, 7, 0, 10}
	if bytes.Contains(q, []byte("evil")) {
		addr = []byte{169, 254, 169, 254}
	}
	binary.BigEndian.PutUint16(a[6:], 1)
	return append(append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4), addr...)
}

// netWorld is a cluster with gateways, and accounts that have a network "db" each.
type netWorld struct {
	*testCluster
	isolation starling.Isolation
	admin     []string              // environment of the command line
	env       map[string][]string   // the same, by account
	tenants   map[string]*netTenant // by account
}

// startNetWorld makes one of two nodes, both gateways, plugged into the networks of the accounts acme and zeta. The first is the host, with
// settings of its own.
func startNetWorld(t *testing.T, isolation starling.Isolation, host ...string) *netWorld {
	uplinks, tenants := map[string]map[string]string{}, map[string]*netTenant{}
	for _, account := range []string{"acme", "zeta"} {
		c := newNetTenant(t, account)
		tenants[account] = c
		uplinks[account+"/db"] = map[string]string{"namespace": fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), c.uplink.Fd())}
	}
	text, err := json.Marshal(uplinks)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "uplinks.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--uplinks", file}
	w := newNetWorld(t, isolation, testKind{roles: "manager,frontend,scheduler,host,gateway", args: slices.Concat([]string{"--isolation", string(isolation)}, host, args)}, testKind{roles: "gateway", args: args})
	w.tenants = tenants
	for _, account := range []string{"acme", "zeta"} {
		w.account(t, account, "--dns", "10.7.0.10", "--deny", "10.7.0.66")
	}
	return w
}

// newNetWorld starts nodes, the first of which is a frontend, for accounts that are not there yet.
func newNetWorld(t *testing.T, isolation starling.Isolation, kinds ...testKind) *netWorld {
	c := startNodes(t, kinds...)
	return &netWorld{testCluster: c, isolation: isolation, env: map[string][]string{}, admin: []string{"STARLING_SERVER=" + c.nodes[0].url, "STARLING_KEY=" + c.root}}
}

// account makes an account, a key of it and its network "db", with further settings of that.
func (w *netWorld) account(t *testing.T, name string, settings ...string) {
	t.Helper()
	starlingCLI(t, w.admin, "account", "create", name)
	key := strings.TrimSpace(starlingCLI(t, w.admin, "account", "key", "create", name))
	w.env[name] = []string{"STARLING_SERVER=" + w.nodes[0].url, "STARLING_KEY=" + key}
	starlingCLI(t, w.env[name], append([]string{"network", "create", "db", "--cidr", "10.7.0.0/24"}, settings...)...)
}

// deployNet deploys a function of one file.
func (w *netWorld) deployNet(t *testing.T, account, name, file, text, network string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	starlingCLI(t, w.env[account], "deploy", dir, "--name", name, "--isolation", string(w.isolation), "--network", network, "--timeout", "60000")
}

func (w *netWorld) call(t *testing.T, account, name, event string, out any) {
	t.Helper()
	text := starlingCLI(t, w.env[account], "invoke", name, event)
	if err := json.Unmarshal([]byte(text), out); err != nil {
		t.Fatalf("%s of %s answers %s: %v", name, account, text, err)
	}
}

type netAnswer struct {
	Get, Tell, Reach, Names, Raw map[string]string
	MS                           []float64
}

// TestE2EFunctionsReachTheirNetworkAndNothingElse runs unmodified programs of two accounts whose networks have the same addresses.
func TestE2EFunctionsReachTheirNetworkAndNothingElse(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	t.Parallel()
	byEachMeans(t, (*netWorld).reachesItsNetwork)
}

// byEachMeans runs a test of functions in processes with all that can catch their connections on this machine.
func byEachMeans(t *testing.T, f func(*netWorld, *testing.T)) {
	for _, means := range []capture.Means{capture.Lookup, capture.TPROXY} {
		t.Run(string(means), func(t *testing.T) {
			t.Parallel()
			if err := means.Try(); os.Getuid() == 0 && err != nil {
				t.Skipf("%s does not work here: %v", means, err)
			}
			f(startNetWorld(t, starling.IsolationProcess, "--capture", string(means)), t)
		})
	}
}

// TestE2EMicroVMsReachTheirNetworkAndNothingElse does the same in microVMs, whose own kernels catch what the programs send out, and
// what the tests of PostgreSQL and of neighbours do: one cluster for all, because templates and clones are slow without hardware.
func TestE2EMicroVMsReachTheirNetworkAndNothingElse(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds, microVMs tens of them")
	}
	katatest.Config(t) // skips where there can be none
	w := startNetWorld(t, starling.IsolationKata)
	w.nodes[0].hasClones(t, 3)
	w.reachesItsNetwork(t)
	w.asksPostgres(t)
	w.hidesNeighbours(t)
}

// hasClones waits until the node has a warm sandbox of each of n runtimes.
func (n *testNode) hasClones(t *testing.T, runtimes int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if ready := regexp.MustCompile(`(?m)^starling_pool_ready{.*} [1-9]`).FindAllString(n.exposition(), -1); len(ready) >= runtimes {
			return
		}
		if time.Since(began) > 3*katatest.Patience {
			text, _ := os.ReadFile(n.dir + ".log")
			t.Fatalf("there are no clones; the log:\n%s", text)
		}
	}
}

func (w *netWorld) reachesItsNetwork(t *testing.T) {
	t.Helper()
	bootstrap := string(buildBootstraps(t, "netbootstrap")["netbootstrap"])
	const deny = `[["169.254.169.254",8080],["10.7.0.66",8080],["10.7.0.2",8080],["192.168.5.5",8080],["10.8.0.1",80],["127.0.0.1",9001],["0.0.0.0",8080],
		["::ffff:169.254.169.254",8080],["::ffff:10.7.0.66",8080],["fd00:ec2::254",80],["::1",8080],["evil.internal",8080],["8.8.8.8",53]]`
	w.deployNet(t, "zeta", "py", "main.py", netFunction, "db") // a neighbour whose network has the same addresses
	var neighbour netAnswer
	w.call(t, "zeta", "py", `{"get":["http://10.7.0.10:8080/"],"tell":["10.7.0.10"]}`, &neighbour)
	if !strings.HasPrefix(neighbour.Get["http://10.7.0.10:8080/"], "zeta hears") || neighbour.Tell["10.7.0.10"] != "zeta:hello from 10.7.0.10" {
		t.Errorf("the neighbour hears %+v", neighbour)
	}
	const account = "acme"
	w.deployNet(t, account, "py", "main.py", netFunction, "db")
	w.deployNet(t, account, "js", "index.js", netNodeFunction, "db")
	w.deployNet(t, account, "go", "bootstrap", bootstrap, "db")
	w.deployNet(t, account, "bare", "main.py", netFunction, "none")
	event := `{"get":["http://10.7.0.10:8080/","https://db.internal:8443/"],"tell":["10.7.0.10","169.254.169.254","10.7.0.66"],"names":["db.internal","evil.internal"],"raw":1,"reach":` + deny + `}`
	var a netAnswer
	w.call(t, account, "py", event, &a)
	for u, says := range a.Get {
		if !strings.HasPrefix(says, account+" hears 10.7.0.2:") {
			t.Errorf("%s gets %s: %s", account, u, says)
		}
	}
	if a.Tell["10.7.0.10"] != account+":hello from 10.7.0.10" || a.Names["db.internal"] != "10.7.0.10" {
		t.Errorf("%s: datagrams %v, names %v", account, a.Tell, a.Names)
	}
	if w.isolation == starling.IsolationKata {
		delete(a.Raw, "netlink routes") // asks the guest's own kernel, without a right to change anything
		delete(a.Raw, "netlink rules")
	}
	for _, refused := range []map[string]string{a.Reach, a.Raw, {"UDP metadata": a.Tell["169.254.169.254"], "UDP denied": a.Tell["10.7.0.66"]}} {
		for to, says := range refused {
			if !strings.HasPrefix(says, "error:") {
				t.Errorf("%s: %s: %s", account, to, says)
			}
		}
	}
	var timed netAnswer
	w.call(t, account, "py", `{"time":50}`, &timed)
	t.Logf("first byte over a new connection, as a function with isolation %s sees it: p50 %.1f ms, p90 %.1f ms", w.isolation, timed.MS[25], timed.MS[45])
	var text string
	w.call(t, account, "js", `{"url":"https://db.internal:8443/"}`, &text)
	if !strings.HasPrefix(text, account+" hears") {
		t.Errorf("%s in Node: %s", account, text)
	}
	var said map[string]string
	w.call(t, account, "go", `["http://10.7.0.10:8080/","https://db.internal:8443/","http://10.7.0.66:8080/","http://169.254.169.254:8080/"]`, &said)
	for u, got := range said {
		if own := strings.Contains(u, ".10:") || strings.Contains(u, "db."); u != "payload" && own != strings.HasPrefix(got, account+" hears") {
			t.Errorf("%s in Go: %s: %s", account, u, got)
		}
	}
	var none netAnswer
	w.call(t, account, "bare", event, &none)
	for _, m := range []map[string]string{none.Get, none.Tell, none.Reach, none.Names} {
		for to, says := range m {
			if !strings.HasPrefix(says, "error:") {
				t.Errorf("%s without a network: %s: %s", account, to, says)
			}
		}
	}
	if says := none.Reach["8.8.8.8 53"]; !strings.Contains(says, "unreachable") {
		t.Errorf("without a network an address is %s", says)
	}
	w.showsNumbers(t)
}

// showsNumbers looks for the flows and the audit lines of them.
func (w *netWorld) showsNumbers(t *testing.T) {
	t.Helper()
	var text, logs string
	for _, n := range w.nodes {
		text += n.exposition()
		b, _ := os.ReadFile(n.dir + ".log")
		logs += string(b)
	}
	for _, want := range []string{`starling_gateway_bytes_total{network="acme/db",direction="in"}`, `starling_gateway_flows_total{kind="dns"}`, `starling_gateway_refused_total{why="denied"}`} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if !strings.Contains(logs, "flow denied") || !strings.Contains(logs, "10.7.0.66:8080") {
		t.Error("no gateway wrote down what it denied")
	}
}

// TestE2EGatewayKilled kills the gateway that serves a network: the other serves its flows.
func TestE2EGatewayKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	w := startNetWorld(t, starling.IsolationProcess)
	const account = "zeta" // whose network the second node serves
	if first := place.Rank(starling.NetworkRef{Account: account, Name: "db"}, []starling.NodeID{1, 2})[0]; first != 2 {
		t.Fatalf("%s serves the network, want the node that is killed", first)
	}
	w.deployNet(t, account, "py", "main.py", netFunction, "db")
	get := func() string {
		var a netAnswer
		w.call(t, account, "py", `{"get":["http://10.7.0.10:8080/"]}`, &a)
		return a.Get["http://10.7.0.10:8080/"]
	}
	if says := get(); !strings.HasPrefix(says, account+" hears") {
		t.Fatalf("before: %s", says)
	}
	w.nodes[1].kill(t)
	began := time.Now()
	for !strings.HasPrefix(get(), account+" hears") {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("no gateway serves %v after a kill", time.Since(began))
		}
	}
	t.Logf("served again %v after the kill", time.Since(began).Round(time.Millisecond))
}
