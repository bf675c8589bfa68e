package vmpool

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"
)

// meters are the pool's numbers.
type meters struct {
	set                 *metrics.Set
	warm, cold          *metrics.Counter
	cloneFailed, failed *metrics.Counter
	clone, start, init  *metrics.PrometheusHistogram
}

func newMeters(p *Pool) *meters {
	s := metrics.NewSet()
	m := &meters{
		set:         s,
		warm:        s.NewCounter(`starling_pool_taken_total{stock="warm"}`),
		cold:        s.NewCounter(`starling_pool_taken_total{stock="empty"}`),
		cloneFailed: s.NewCounter(`starling_pool_clone_failures_total`),
		failed:      s.NewCounter(`starling_instance_start_failures_total`),
		clone:       s.NewPrometheusHistogram(`starling_pool_clone_seconds`),
		start:       s.NewPrometheusHistogram(`starling_instance_start_seconds`),
		init:        s.NewPrometheusHistogram(`starling_instance_init_seconds`),
	}
	for rt, sh := range p.shelves {
		s.NewGauge(fmt.Sprintf(`starling_pool_ready{runtime=%q}`, string(rt)), func() float64 { return float64(sh.ready()) })
	}
	s.NewGauge(`starling_instances`, func() float64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		return float64(len(p.live))
	})
	s.NewGauge(`starling_output_cut_total`, func() float64 { return float64(p.dropped.Load()) })
	return m
}

// Metrics returns the pool's numbers.
func (p *Pool) Metrics() *metrics.Set { return p.meters.set }
