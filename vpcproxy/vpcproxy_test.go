package vpcproxy

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/netns"
	"starling/vpcproxy/uplink"
)

func TestCodeReachesItsNetworkAndOnlyThat(t *testing.T) {
	byEachMeans(t, 1, reachesItsNetworkAndOnlyThat)
}

func reachesItsNetworkAndOnlyThat(t *testing.T, w *world) {
	for _, account := range []starling.AccountID{"acme", "zeta"} {
		s := w.connected(account)
		if got, err := s.name(serverAddr + ":8080"); got != string(account) || err != nil {
			t.Fatalf("%s over TCP: %q, %v", account, got, err)
		}
		if got, err := s.tell(serverAddr+":9000", "hello", 5*time.Second); got != string(account)+":hello" || err != nil {
			t.Errorf("%s over UDP: %q, %v", account, got, err)
		}
		for _, network := range []string{"udp", "tcp"} {
			if got, err := s.lookup(network, "db.internal"); err != nil || len(got) != 1 || got[0].String() != serverAddr {
				t.Errorf("%s resolves over %s: %v, %v", account, network, got, err)
			}
		}
		if got, err := s.lookup("udp", "rebind.evil"); err != nil || got[0].String() != "169.254.169.254" {
			t.Errorf("the name that points elsewhere: %v, %v", got, err)
		}
		for _, to := range []string{
			"169.254.169.254:80", "169.254.169.254:8080", "100.100.100.200:80", "10.7.0.66:8080", "10.7.0.99:8080", uplinkAddr + ":8080", "192.168.5.5:8080",
			"10.8.0.1:8080", "8.8.8.8:53", "192.0.0.8:1", "224.0.0.1:80", "255.255.255.255:80", "0.0.0.0:8080", serverAddr + ":81",
		} {
			if got, err := s.name(to); err == nil {
				t.Errorf("%s reaches %s: %q", account, to, got)
			}
		}
		for _, to := range []string{"169.254.169.254:9000", "10.7.0.66:9000", "10.8.0.1:9000", "192.168.5.5:9000"} {
			if got, err := s.tell(to, "hello", 100*time.Millisecond); err == nil {
				t.Errorf("%s reaches %s over UDP: %q", account, to, got)
			}
		}
	}
}

// A sandbox without a network is as one that was never prepared.
func TestWithoutANetworkNothingIsThere(t *testing.T) { byEachMeans(t, 1, hasNothingWithoutANetwork) }

func hasNothingWithoutANetwork(t *testing.T, w *world) {
	s := w.sandbox()
	for to, want := range map[string]error{
		serverAddr + ":8080": syscall.ENETUNREACH, "8.8.8.8:53": syscall.ENETUNREACH, "192.0.0.8:1": syscall.ENETUNREACH,
		"127.0.0.1:53": syscall.ECONNREFUSED, "127.0.0.1:1": syscall.ECONNREFUSED, "127.9.9.9:1": syscall.ECONNREFUSED, "127.0.0.1:80": syscall.ECONNREFUSED,
	} {
		if _, err := s.dial("tcp", to); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", to, err, want)
		}
	}
	for _, to := range []string{"127.0.0.1:53", "127.0.0.1:1"} {
		if _, err := s.tell(to, "x", time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("UDP %s: %v", to, err)
		}
	}
}

// With a network the loopback stays the code's own.
func TestLoopbackStaysTheCodesOwn(t *testing.T) { byEachMeans(t, 1, keepsItsLoopback) }

func keepsItsLoopback(t *testing.T, w *world) {
	s := w.connected("acme")
	var own net.Listener
	must(t, netns.Do(s.ns, func() (err error) {
		own, err = net.Listen("tcp4", "127.0.0.1:8080")
		return err
	}))
	defer own.Close()
	go func() {
		if c, err := own.Accept(); err == nil {
			fmt.Fprintln(c, "own")
			c.Close()
		}
	}()
	if got, err := s.name("127.0.0.1:8080"); got != "own" {
		t.Errorf("its own server: %q, %v", got, err)
	}
	for _, to := range []string{"127.0.0.1:1", "127.0.0.1:80", "127.0.0.2:53"} {
		if _, err := s.dial("tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// What listens inside under an address of others hears nothing that is sent to it.
func TestNobodyInsideTakesWhatIsSentOut(t *testing.T) { byEachMeans(t, 1, takesNothing) }

func takesNothing(t *testing.T, w *world) {
	s := w.connected("acme")
	var l net.Listener
	var pc net.PacketConn
	must(t, netns.Do(s.ns, func() (err error) {
		if l, err = net.Listen("tcp4", serverAddr+":8080"); err == nil {
			pc, err = net.ListenPacket("udp4", serverAddr+":9000")
		}
		return err
	}))
	defer l.Close()
	defer pc.Close()
	if got, err := s.name(serverAddr + ":8080"); got != "acme" {
		t.Errorf("beside a listener inside: %q, %v", got, err)
	}
	s.tell(serverAddr+":9000", "hello", 100*time.Millisecond) // nobody can answer in its name: it took that itself
	must(t, pc.SetReadDeadline(time.Now()))
	if n, from, err := pc.ReadFrom(make([]byte, 16)); err == nil {
		t.Errorf("a socket for datagrams inside hears %d bytes from %s", n, from)
	}
}

var randomTries = flag.Int("tries", 1500, "random tries of two accounts with the same addresses, for each of the means of capture")

// Two accounts with the same addresses: whatever they try, each hears its own servers or nobody.
func TestAccountsWithTheSameAddressesNeverMeet(t *testing.T) { byEachMeans(t, 2, neverMeets) }

func neverMeets(t *testing.T, w *world) {
	for _, n := range w.networks {
		n.RateMax = 100_000
	}
	rng := rand.New(rand.NewPCG(4, 2))
	boxes := map[starling.AccountID]*sandbox{"acme": w.connected("acme"), "zeta": w.connected("zeta")}
	tries := make(chan func(), 64)
	var wg sync.WaitGroup
	for range 64 { // most wait for an answer that does not come
		wg.Go(func() {
			for f := range tries {
				f()
			}
		})
	}
	var mu sync.Mutex
	reached, crossed := 0, 0
	for i := range *randomTries {
		account := []starling.AccountID{"acme", "zeta"}[rng.IntN(2)]
		to := fmt.Sprintf("10.7.0.%d:%d", []int{10, 10, 66, 99, 2, rng.IntN(256)}[rng.IntN(6)], []int{8080, 8080, 9000, 53, 1 + rng.IntN(65535)}[rng.IntN(5)])
		if strings.HasPrefix(to, "10.7.0.") && rng.IntN(10) == 0 {
			to = fmt.Sprintf("%d.%d.%d.%d:8080", rng.IntN(256), rng.IntN(256), rng.IntN(256), rng.IntN(256))
		}
		if strings.HasPrefix(to, "127.") {
			continue
		}
		tries <- func() {
			var got string
			var err error
			if i%3 == 0 {
				got, err = boxes[account].tell(to, "x", 200*time.Millisecond)
			} else if !strings.HasSuffix(to, ":53") { // a name server waits for a question
				c, derr := boxes[account].dial("tcp", to)
				if derr != nil {
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * time.Second))
				b := make([]byte, 16)
				n, rerr := c.Read(b)
				got, err = string(b[:n]), rerr
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil && strings.HasPrefix(got, string(account)) {
				reached++
			}
			if other := map[starling.AccountID]string{"acme": "zeta", "zeta": "acme"}[account]; strings.Contains(got, other) {
				crossed++
			}
		}
	}
	close(tries)
	wg.Wait()
	if crossed != 0 || reached < 100 {
		t.Fatalf("%d crossings, %d own servers reached", crossed, reached)
	}
}

func TestGatewayDiesAndTheNextServes(t *testing.T) {
	w := newWorld(t, 2, nil)
	s := w.connected("acme")
	if got, err := s.name(serverAddr + ":8080"); got != "acme" {
		t.Fatalf("before: %q, %v", got, err)
	}
	live, err := s.dial("tcp", serverAddr+":8080")
	must(t, err)
	defer live.Close()
	io.ReadFull(live, make([]byte, 5))
	first := w.gateways[0] // whichever serves: end the one that has the flow
	if !bytes.Contains(numbers(first), []byte("starling_gateway_flows 1")) {
		first = w.gateways[1]
	}
	first.endpoint.Close() // the manager has not noticed yet: it is still among the living
	live.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := live.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the flow of the dead gateway: %v", err)
	}
	var got string
	for deadline := time.Now().Add(20 * time.Second); got != "acme"; {
		if got, err = s.name(serverAddr + ":8080"); got != "acme" && time.Now().After(deadline) {
			t.Fatalf("no gateway serves: %q, %v", got, err)
		}
	}
	for _, g := range w.gateways {
		g.dead.Store(true)
		g.endpoint.Close()
	}
	if got, err := s.name(serverAddr + ":8080"); err == nil {
		t.Fatalf("without a gateway: %q", got)
	}
}

func numbers(g *gatewayNode) []byte {
	var b bytes.Buffer
	g.gateway.Metrics().WritePrometheus(&b)
	return b.Bytes()
}

func TestHostWithoutAGrantReachesNothing(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.placed.Store(false)
	s := w.connected("acme")
	if got, err := s.name(serverAddr + ":8080"); err == nil {
		t.Fatalf("a version that nobody placed: %q", got)
	}
	w.placed.Store(true)
	ok := w.connected("acme")
	if got, err := ok.name(serverAddr + ":8080"); got != "acme" {
		t.Fatalf("one that was placed: %q, %v", got, err)
	}
	gone := w.sandbox()
	must(t, gone.outlet.Connect(w.attachment("acme", "nowhere")))
	if got, err := gone.name(serverAddr + ":8080"); err == nil {
		t.Fatalf("a network that no gateway is plugged into: %q", got)
	}
}

func TestCapsRefuseOneAccountAndNotTheOther(t *testing.T) {
	w := newWorld(t, 1, func(c *gateway.Config) { c.AccountLimits = flowtable.Limits{Conns: 5, Rate: 1000} })
	s := w.connected("acme")
	var held []net.Conn
	for range 5 {
		c, err := s.dial("tcp", serverAddr+":8080")
		must(t, err)
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if got, err := s.name(serverAddr + ":8080"); err == nil {
		t.Fatalf("a sixth flow: %q", got)
	}
	if got, err := w.connected("zeta").name(serverAddr + ":8080"); got != "zeta" {
		t.Fatalf("the other account: %q, %v", got, err)
	}
	held[0].Close()
	for range 100 {
		if got, _ := s.name(serverAddr + ":8080"); got == "acme" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("a flow that ended is not given back")
}

// Readers that never read do not keep others from theirs.
func TestStalledReadersHoldUpNobody(t *testing.T) {
	w := newWorld(t, 1, nil)
	s := w.connected("acme")
	for range 48 {
		c, err := s.dial("tcp", serverAddr+":8081")
		must(t, err)
		defer c.Close()
	}
	time.Sleep(500 * time.Millisecond) // their windows fill
	c, err := s.dial("tcp", serverAddr+":8081")
	must(t, err)
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(100 * time.Second)) // how fast is the machine's affair
	if n, err := io.CopyN(io.Discard, c, 8<<20); err != nil {
		t.Fatalf("beside 48 stalled readers: %d bytes, %v", n, err)
	}
}

func TestBytesAndEndsArriveBothWays(t *testing.T) { byEachMeans(t, 1, bringsBytesAndEnds) }

func bringsBytesAndEnds(t *testing.T, w *world) {
	c, err := w.connected("acme").dial("tcp", serverAddr+":8080")
	must(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make([]byte, 5<<20)
	rand.NewChaCha8([32]byte{1}).Read(sent)
	go func() {
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite() // the server reads the end and closes
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, append([]byte("acme\n"), sent...)) {
		t.Fatalf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}
}

func TestClosedOutletLeavesNothingBehind(t *testing.T) { byEachMeans(t, 1, leavesNothingBehind) }

func leavesNothingBehind(t *testing.T, w *world) {
	s := w.connected("acme")
	c, err := s.dial("tcp", serverAddr+":8080")
	must(t, err)
	defer c.Close()
	s.tell(serverAddr+":9000", "x", time.Second)
	must(t, s.outlet.Close())
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("its flow: %v", err)
	}
	if _, err := s.dial("tcp", serverAddr+":8080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a flow after it: %v", err)
	}
	for range 100 { // the gateway hears of it
		if bytes.Contains(numbers(w.gateways[0]), []byte("starling_gateway_flows 0")) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("the gateway still counts: %s", numbers(w.gateways[0]))
}

// Whichever gateway is first in a network's order: one that is not plugged into it sends the host to the next.
func TestGatewayThatIsNotPluggedInIsPassedOver(t *testing.T) {
	for bare := range 2 {
		n := 0
		w := newWorld(t, 2, func(c *gateway.Config) {
			if n == bare {
				c.Uplinks = map[starling.NetworkRef]uplink.Uplink{}
			}
			n++
		})
		if got, err := w.connected("acme").name(serverAddr + ":8080"); got != "acme" {
			t.Errorf("gateway %d is not plugged in: %q, %v", bare, got, err)
		}
	}
}
