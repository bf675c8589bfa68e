package vpcproxy

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"starling/vpcproxy/capture"
)

// report gives the middle and the 99th of a hundred.
func report(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), name+"-p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), name+"-p99-µs")
}

// benchEachMeans runs a benchmark with all that can catch connections.
func benchEachMeans(b *testing.B, f func(*testing.B, *world)) {
	for _, m := range []capture.Means{capture.Lookup, capture.TPROXY} {
		b.Run(string(m), func(b *testing.B) {
			w := wide(b)
			w.maker.Means = m
			f(b, w)
		})
	}
}

// BenchmarkAttach gives sandboxes of the pool their network, and has the code of each connect to a server of the tenant. Preparing is the
// pool's, attaching a start's; first is from the code's connect to the server's first byte, through the grant's question when it comes
// right behind the attaching (cold), and again (warm). Shed is what a prepared sandbox costs whose version has no network.
func BenchmarkAttach(b *testing.B) { benchEachMeans(b, attach) }

func attach(b *testing.B, w *world) {
	if _, err := w.connected("acme").name(serverAddr + ":8080"); err != nil { // the connection to the gateway
		b.Fatal(err)
	}
	var prepared, attached, cold, warm, shed []time.Duration
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
		unused := w.sandbox()
		at = time.Now()
		must(b, unused.outlet.Close())
		shed = append(shed, time.Since(at))
	}
	report(b, "prepare", prepared)
	report(b, "attach", attached)
	report(b, "first-cold", cold)
	report(b, "first-warm", warm)
	report(b, "shed", shed)
}

// BenchmarkConnections is a connection, the server's name and its end, one after the other.
func BenchmarkConnections(b *testing.B) { benchEachMeans(b, connections) }

func connections(b *testing.B, w *world) {
	s := w.connected("acme")
	for b.Loop() {
		if got, err := s.name(serverAddr + ":8080"); got != "acme" {
			b.Fatal(got, err)
		}
	}
}

// BenchmarkThroughput reads from a server of the tenant.
func BenchmarkThroughput(b *testing.B) { benchEachMeans(b, throughput) }

func throughput(b *testing.B, w *world) {
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
