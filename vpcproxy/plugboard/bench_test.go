package plugboard

import (
	"fmt"
	"os"
	"testing"
	"time"

	"starling"
)

// BenchmarkPlug plugs a thousand networks into one bridge, looks at each and pulls them out.
func BenchmarkPlug(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("network namespaces need root")
	}
	const networks = 1000
	m := newMachine(b)
	var in, look, out time.Duration
	for b.Loop() {
		plugs := make([]*Plug, 0, networks)
		began := time.Now()
		for i := range networks {
			entry := fmt.Sprintf(`{"bridge": "br-lab", "addresses": ["10.3.%d.%d/16"], "gateway": "10.3.0.10"}`, 1+i/250, 1+i%250)
			p, err := m.board.Plug(starling.NetworkRef{Account: "acme", Name: starling.NetworkName(fmt.Sprint("n", i))}, parse(b, entry))
			must(b, err)
			plugs = append(plugs, p)
		}
		in += time.Since(began)
		began = time.Now()
		for _, p := range plugs {
			_, err := p.Check()
			must(b, err)
		}
		look += time.Since(began)
		began = time.Now()
		must(b, m.board.Pull(plugs...))
		out += time.Since(began)
	}
	b.ReportMetric(in.Seconds()/float64(b.N), "in-s/1000")
	b.ReportMetric(look.Seconds()/float64(b.N), "look-s/1000")
	b.ReportMetric(out.Seconds()/float64(b.N), "out-s/1000")
}
