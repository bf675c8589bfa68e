package kata_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"starling/vmpool"
)

// deaf takes what a guest catches and does nothing with it.
type deaf struct{}

func (deaf) Flow(_ netip.AddrPort, f vmpool.Flow)            { f.Abort() }
func (deaf) Datagram(netip.AddrPort, netip.AddrPort, []byte) {}

// BenchmarkAttach measures what code costs a clone without a network and with one. Give it -benchtime 20x: each is a VM.
func BenchmarkAttach(b *testing.B) {
	_, tpl := template(b, nil)
	dir := b.TempDir()
	for name, network := range map[string]bool{"without": false, "with": true} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for range b.N {
				b.StopTimer()
				s, err := tpl.Clone(context.Background())
				must(b, err)
				if network {
					s.(vmpool.Catching).Catch(deaf{})
				}
				b.StartTimer()
				began := time.Now()
				must(b, s.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
				took = append(took, time.Since(began))
				b.StopTimer()
				must(b, s.Close())
				b.StartTimer()
			}
			slices.Sort(took)
			for _, p := range []int{50, 90} {
				b.ReportMetric(float64(took[(len(took)-1)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
			}
		})
	}
}
