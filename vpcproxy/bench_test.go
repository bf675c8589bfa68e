package vpcproxy

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/gateway"
)

// report gives the middle and the 99th of a hundred.
func report(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), name+"-p99-µs")
}

// BenchmarkAttach gives sandboxes of the pool their network, and has the code of each connect to a server of the tenant. Preparing is the
// pool's, attaching a start's; first is from the code's connect to the server's first byte, through the grant's question when it comes
// right behind the attaching (cold), and again (warm).
func BenchmarkAttach(b *testing.B) {
	w := newWorld(b, 1, nil)
	for _, n := range w.networks {
		n.RateMax = 100_000
	}
	if _, err := w.connected("acme").name(serverAddr + ":8080"); err != nil { // the connection to the gateway
		b.Fatal(err)
	}
	var prepared, attached, cold, warm []time.Duration
	for b.Loop() {
		at := time.Now()
		s := w.sandbox()
		prepared = append(prepared, time.Since(at))
		as := w.attachment("acme", "db")
		at = time.Now()
		must(b, s.outlet.Connect(as))
		attached = append(attached, time.Since(at))
		for _, times := range []*[]time.Duration{&cold, &warm} {
			at = time.Now()
			if got, err := s.name(serverAddr + ":8080"); got != "acme" {
				b.Fatal(got, err)
			}
			*times = append(*times, time.Since(at))
		}
	}
	report(b, "prepare", prepared)
	report(b, "attach", attached)
	report(b, "first-cold", cold)
	report(b, "first-warm", warm)
}

// BenchmarkConnections is a connection, the server's name and its end, one after the other.
func BenchmarkConnections(b *testing.B) {
	wide := flowtable.Limits{Conns: 100_000, Rate: 100_000}
	w := newWorld(b, 1, func(c *gateway.Config) { c.AccountLimits, c.FunctionLimits = wide, wide })
	for _, n := range w.networks {
		n.RateMax = 100_000
	}
	s := w.connected("acme")
	for b.Loop() {
		if got, err := s.name(serverAddr + ":8080"); got != "acme" {
			b.Fatal(got, err)
		}
	}
}

// BenchmarkThroughput reads from a server of the tenant.
func BenchmarkThroughput(b *testing.B) {
	w := newWorld(b, 1, nil)
	s := w.connected("acme")
	c, err := s.dial("tcp", serverAddr+":8081")
	must(b, err)
	defer c.Close()
	const size = 1 << 20
	b.SetBytes(size)
	for b.Loop() {
		if _, err := io.CopyN(io.Discard, struct{ io.Reader }{c.(*net.TCPConn)}, size); err != nil {
			b.Fatal(err)
		}
	}
}
