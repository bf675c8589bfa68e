package vpcproxy

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/vpcproxy/netns"
)

var slowClients = flag.Int("slow", 200, "connections of one account that move a byte a second (row D10 of the attack list)")

// boxConns is how many of them a sandbox holds at most: fewer than it may, that the account's limit be the one that is met.
const boxConns = 2000

// A crowd is connections of which every other reads a byte a second of a server that sends as fast as it can, and the rest send a byte a
// second.
type crowd struct {
	reset atomic.Int64 // of them
}

// gatherRate is how many a second of a crowd connect: fewer than a function may by default.
const gatherRate = 800

// gather connects n from sandboxes whose namespaces are the descriptors from 3 on.
func gather(t testing.TB, n, boxes int) *crowd {
	c := &crowd{}
	spaces := make([]*os.File, boxes)
	for i := range spaces {
		spaces[i] = os.NewFile(uintptr(3+i), "sandbox")
	}
	began := time.Now()
	for i := range n {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / gatherRate)))
		to := netip.MustParseAddrPort(serverAddr + []string{":9081", ":9082"}[i%2])
		conn, err := netns.Dial(spaces[i%boxes], "tcp", netip.Addr{}, to, 10*time.Second)
		must(t, err)
		go c.trickle(conn, i%2 == 0, time.Duration(i)*time.Second/time.Duration(n))
	}
	return c
}

// trickle moves a byte a second for ever; the connections of a crowd do so one after the other.
func (c *crowd) trickle(conn net.Conn, read bool, first time.Duration) {
	b := make([]byte, 1)
	move := conn.Write
	if read {
		move = conn.Read
	}
	for time.Sleep(first); ; time.Sleep(time.Second) {
		if _, err := move(b); err != nil {
			c.reset.Add(1)
			return
		}
	}
}

// A besieged is a world with one gateway and one host, and an account that has as many slow connections as it may. Gateway, servers and code
// are processes of their own.
type besieged struct {
	*world
	gateway, servers, crowd *helper
	boxes                   []*sandbox
	flows                   int // as many
}

// besiege makes one before the crowd comes.
func besiege(t testing.TB, n int) *besieged {
	w := newWorld(t, 0, nil)
	dir := t.TempDir()
	must(t, w.ca.Save(dir))
	s := &besieged{world: w, flows: n}
	s.gateway = help(t, "gateway", []*os.File{w.tenants["acme"].uplink, w.tenants["zeta"].uplink}, dir, strconv.Itoa(n))
	w.gateways = []*gatewayNode{{node: starling.Node{ID: 10, Addr: strings.TrimSpace(s.gateway.said), Roles: starling.RoleGateway}}}
	s.servers = help(t, "servers", []*os.File{w.tenants["acme"].inside})
	for range (n + boxConns - 1) / boxConns {
		s.boxes = append(s.boxes, w.connected("acme"))
	}
	return s
}

// attack lets the crowd in, and returns when all of it is.
func (s *besieged) attack() {
	var files []*os.File
	for _, b := range s.boxes {
		files = append(files, b.ns)
	}
	s.crowd = help(s.t, "crowd", files, strconv.Itoa(s.flows), strconv.Itoa(len(files)))
	s.await("starling_gateway_flows", float64(s.flows))
}

// await waits until a number of the gateway has a value.
func (s *besieged) await(name string, value float64) {
	s.t.Helper()
	var v view
	for range 300 {
		if v = s.gateway.look(); strings.Contains(v.Numbers, fmt.Sprintf("%s %v\n", name, value)) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("no %s %v:\n%s%s", name, value, v.Numbers, host(s.world))
}

// leave ends the crowd and its sandboxes.
func (s *besieged) leave() {
	s.crowd.end()
	for _, b := range s.boxes {
		must(s.t, b.outlet.Close())
	}
}

// settled waits until host, gateway and servers have no more descriptors than before.
func (s *besieged) settled(before [3]view) (now [3]view) {
	for range 200 {
		if now = s.look(); now[0].Descriptors <= before[0].Descriptors && now[1].Descriptors <= before[1].Descriptors && now[2].Descriptors <= before[2].Descriptors {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return now
}

// look returns what host, gateway and servers have.
func (s *besieged) look() [3]view { return [3]view{look(s.t), s.gateway.look(), s.servers.look()} }

// An account has as many connections as it may, each as slow as can be (row D10). It is told so, nobody else notices, and when they end
// nothing of them is left.
func TestSlowConnectionsHurtNobodyElse(t *testing.T) {
	s := besiege(t, *slowClients)
	other := s.connected("zeta")
	reached := func() {
		t.Helper()
		for range 20 {
			if got, err := other.name(serverAddr + ":8080"); got != "zeta" {
				t.Errorf("another account: %q, %v", got, err)
			}
		}
	}
	reached()
	before := s.look()
	s.attack()
	reached()
	if got, err := s.boxes[0].name(serverAddr + ":8080"); err == nil {
		t.Errorf("one more than it may: %q", got)
	}
	awaitHost(t, s.world, `starling_tunnel_refused_total{why="limit reached"} 1`)
	time.Sleep(2 * time.Second) // each has moved a byte or two
	if v := s.crowd.look(); v.Reset != 0 {
		t.Errorf("%d of the slow connections were reset", v.Reset)
	}
	s.leave()
	for i, now := range s.settled(before) {
		// what connections to the gateway hold lives on for a minute
		if was := before[i]; now.Descriptors > was.Descriptors+2 || now.Routines > was.Routines+10+8*(s.flows/128) {
			t.Errorf("%s has %d descriptors and %d goroutines, before %d and %d", []string{"host", "gateway", "servers"}[i], now.Descriptors, now.Routines, was.Descriptors, was.Routines)
		}
	}
	s.await("starling_gateway_flows", 0)
	reached()
}

// BenchmarkSlowCrowd is the same with figures: another account's first byte and throughput alone, beside the crowd and after it, and what the
// crowd costs. -slow says how many.
func BenchmarkSlowCrowd(b *testing.B) {
	s := besiege(b, *slowClients)
	other := s.connected("zeta")
	for b.Loop() {
		s.figures("warm-up", other)
		before, tcp := s.look(), tcpMemory(b)
		alone := s.figures("alone", other)
		at := time.Now()
		s.attack()
		b.ReportMetric(time.Since(at).Seconds(), "gather-s")
		time.Sleep(15 * time.Second) // until every buffer on the way is full
		early := s.look()
		time.Sleep(5 * time.Second)
		full := s.look()
		for i, who := range []string{"host", "gateway"} {
			b.ReportMetric((full[i].RSS-before[i].RSS)/1024, who+"-MiB")
			b.ReportMetric(float64(full[i].Descriptors-before[i].Descriptors), who+"-descriptors")
			b.ReportMetric(100*(full[i].CPU-early[i].CPU).Seconds()/5, who+"-cpu-%")
		}
		b.ReportMetric(float64(tcpMemory(b)-tcp)/1024, "kernel-tcp-MiB")
		beside := s.figures("beside", other)
		refused := 0
		for range 100 {
			if _, err := s.boxes[0].name(serverAddr + ":8080"); err != nil {
				refused++
			}
		}
		b.ReportMetric(float64(refused), "refused-of-100")
		b.ReportMetric(float64(s.crowd.look().Reset), "reset")
		s.leave()
		left := s.settled(before)
		time.Sleep(2 * time.Second)
		for i, who := range []string{"host", "gateway", "servers"} {
			b.ReportMetric((left[i].RSS-before[i].RSS)/1024, who+"-left-MiB")
			b.ReportMetric(float64(left[i].Descriptors-before[i].Descriptors), who+"-left-descriptors")
		}
		b.ReportMetric(float64(tcpMemory(b)-tcp)/1024, "kernel-left-tcp-MiB")
		after := s.figures("after", other)
		b.ReportMetric(2*beside.rate/(alone.rate+after.rate), "rate-ratio")
		b.ReportMetric(2*float64(beside.p99)/float64(alone.p99+after.p99), "p99-ratio")
	}
}

// figures are another account's.
type figures struct {
	rate float64 // MB/s of one reader
	p99  time.Duration
}

func (s *besieged) figures(name string, other *sandbox) figures {
	b := s.t.(*testing.B)
	quick, err := other.dial("tcp", serverAddr+":8081")
	must(b, err)
	defer quick.Close()
	f := figures{rate: rate(b, quick, 4*time.Second)}
	times, failed := arrivals(other, 50, 6*time.Second)
	slices.Sort(times)
	f.p99 = times[len(times)*99/100]
	report(b, name, times)
	b.ReportMetric(float64(failed), name+"-failed")
	b.ReportMetric(f.rate, name+"-MB/s")
	return f
}

// tcpMemory is what the kernel keeps for TCP, in KiB.
func tcpMemory(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile("/proc/net/sockstat")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "TCP:" {
			return 4 * atoi(t, f[slices.Index(f, "mem")+1])
		}
	}
	t.Fatal("the kernel does not say what TCP has")
	return 0
}
