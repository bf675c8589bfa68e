package vpcproxy

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"starling"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/header"
	"starling/vpcproxy/netns"
)

// host returns the host's numbers.
func host(w *world) []byte {
	var b bytes.Buffer
	w.tunnel.Metrics().WritePrometheus(&b)
	return b.Bytes()
}

// Why a connection was reset is to be seen at both ends of the tunnel.
func TestEndsOfFlowsAreCountedByReason(t *testing.T) {
	w := newWorld(t, 1, func(c *gateway.Config) { c.AccountLimits = flowtable.Limits{Conns: 1, Rate: 1000} })
	s, g := w.connected("acme"), w.gateways[0]
	free := func() { await(t, g, "starling_gateway_flows 0\n") }

	e := w.echo(s, "acme")
	if got, err := s.name(serverAddr + ":8080"); err == nil {
		t.Fatalf("a second connection of one: %q", got)
	}
	awaitHost(t, w, `starling_tunnel_refused_total{why="limit reached"} 1`)
	time.Sleep(10 * time.Millisecond) // the host itself refuses for 5 ms after it heard of a limit
	must(t, e.conn.(*net.TCPConn).SetLinger(0))
	must(t, e.conn.Close()) // which resets it
	awaitHost(t, w, `starling_tunnel_ended_total{why="connection"} 1`)
	await(t, g, `starling_gateway_ended_total{why="given up"} 1`)
	free()

	c, err := s.dial("tcp", serverAddr+":8082")
	must(t, err)
	must(t, upload(c, 10))
	must(t, c.Close())
	awaitHost(t, w, `starling_tunnel_ended_total{why="done"} 1`)
	await(t, g, `starling_gateway_ended_total{why="done"} 1`)
	free()

	for to, line := range map[string]string{
		"10.7.0.66:8080":     `starling_tunnel_refused_total{why="denied"} 1`,
		serverAddr + ":81":   `starling_tunnel_refused_total{why="refused"} 1`,
		"169.254.169.254:80": `starling_tunnel_ended_total{why="denied"} 1`,
	} {
		if got, err := s.name(to); err == nil {
			t.Errorf("%s: %q", to, got)
		}
		awaitHost(t, w, line)
		free()
	}

	w.echo(s, "acme")
	must(t, s.outlet.Close())
	awaitHost(t, w, `starling_tunnel_ended_total{why="stopped"} 1`)
	free()

	s = w.connected("acme")
	w.echo(s, "acme")
	must(t, g.endpoint.Close())
	awaitHost(t, w, `starling_tunnel_ended_total{why="lost"} 1`)
	g.dead.Store(true)
	if got, err := s.name(serverAddr + ":8080"); err == nil {
		t.Errorf("without a gateway: %q", got)
	}
	awaitHost(t, w, `starling_tunnel_failed_total{why="no gateway"} 1`)

	w.placed.Store(false)
	if _, err := w.tunnel.Way(w.attachment("acme", "db")).Open(t.Context(), header.TCP, netip.MustParseAddrPort(serverAddr+":8080")); starling.KindOf(err) == starling.Internal {
		t.Errorf("without a grant: %v", err)
	}
	awaitHost(t, w, `starling_tunnel_failed_total{why="no grant"} 1`)
}

// So is the end of one in which nothing moves.
func TestEndOfAnIdleFlowIsCounted(t *testing.T) {
	w := newWorld(t, 1, func(c *gateway.Config) { c.IdleTime = 50 * time.Millisecond })
	w.echo(w.connected("acme"), "acme")
	await(t, w.gateways[0], `starling_gateway_ended_total{why="idle"} 1`)
	awaitHost(t, w, `starling_tunnel_ended_total{why="given up"} 1`)
}

// A network's address has so many ports for one destination. Who needs one more is told that a limit is reached.
func TestPortsOfANetworkAreALimit(t *testing.T) {
	w := newWorld(t, 1, nil)
	must(t, netns.Do(w.tenants["acme"].uplink, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40001"), 0o644)
	}))
	s := w.connected("acme")
	one, two := w.echo(s, "acme"), w.echo(s, "acme")
	if got, err := s.name(serverAddr + ":8080"); err == nil {
		t.Errorf("a third connection over two ports: %q", got)
	}
	awaitHost(t, w, `starling_tunnel_refused_total{why="limit reached"} 1`)
	for _, e := range []*echo{one, two} {
		must(t, e.once())
	}
	if got, err := w.connected("zeta").name(serverAddr + ":8080"); got != "zeta" {
		t.Errorf("the other account: %q, %v", got, err)
	}
}

// Who closes an outlet twice closes nobody else's descriptor.
func TestOutletClosedTwiceHarmsNobody(t *testing.T) {
	w := newWorld(t, 1, nil)
	s := w.connected("acme")
	must(t, s.outlet.Close())
	var taken []*os.File // which get the numbers that the outlet's descriptors had
	for range 64 {
		f, err := os.Open(os.DevNull)
		must(t, err)
		defer f.Close()
		taken = append(taken, f)
	}
	if err := s.outlet.Close(); err == nil {
		t.Error("the second Close says that it closed something")
	}
	for _, f := range taken {
		if _, err := f.Stat(); err != nil {
			t.Errorf("another's descriptor: %v", err)
		}
	}
}
