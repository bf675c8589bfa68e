package dispatch

import (
	"github.com/VictoriaMetrics/metrics"

	"starling"
)

// numbers are what a dispatcher tells of itself.
type numbers struct {
	set      *metrics.Set
	calls    *metrics.Counter
	hits     *metrics.Counter
	acquires *metrics.Counter
	again    *metrics.Counter
	waits    *metrics.PrometheusHistogram
	failures [starling.Unavailable + 1]*metrics.Counter
}

func newNumbers(d *Dispatcher) *numbers {
	s := metrics.NewSet()
	n := &numbers{
		set:      s,
		calls:    s.NewCounter("starling_dispatch_calls_total"),
		hits:     s.NewCounter("starling_dispatch_hits_total"),
		acquires: s.NewCounter("starling_dispatch_acquires_total"),
		again:    s.NewCounter("starling_dispatch_placed_again_total"),
		waits:    s.NewPrometheusHistogram("starling_dispatch_wait_seconds"),
	}
	for k := range n.failures {
		n.failures[k] = s.NewCounter(`starling_dispatch_errors_total{kind="` + starling.Kind(k).String() + `"}`)
	}
	s.NewGauge("starling_dispatch_waiting", func() float64 { return float64(d.waiting.Load()) })
	s.NewGauge("starling_dispatch_leases", func() float64 {
		return float64(d.cache.Live())
	})
	return n
}

func (n *numbers) failure(k starling.Kind) {
	if int(k) < len(n.failures) {
		n.failures[k].Inc()
	}
}

// Metrics returns the dispatcher's numbers.
func (d *Dispatcher) Metrics() *metrics.Set { return d.metrics.set }
