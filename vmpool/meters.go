package vmpool

import (
	"fmt"
	"strings"

	"github.com/VictoriaMetrics/metrics"

	"starling"
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
	name := func(family string, labels ...string) string { return named(p.cfg.Driver, family, labels) }
	m := &meters{
		set:         s,
		warm:        s.NewCounter(name("starling_pool_taken_total", `stock="warm"`)),
		cold:        s.NewCounter(name("starling_pool_taken_total", `stock="empty"`)),
		cloneFailed: s.NewCounter(name("starling_pool_clone_failures_total")),
		failed:      s.NewCounter(name("starling_instance_start_failures_total")),
		clone:       s.NewPrometheusHistogram(name("starling_pool_clone_seconds")),
		start:       s.NewPrometheusHistogram(name("starling_instance_start_seconds")),
		init:        s.NewPrometheusHistogram(name("starling_instance_init_seconds")),
	}
	for rt, sh := range p.shelves {
		s.NewGauge(name("starling_pool_ready", fmt.Sprintf("runtime=%q", string(rt))), func() float64 { return float64(sh.ready()) })
	}
	s.NewGauge(name("starling_instances"), func() float64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		return float64(len(p.live))
	})
	s.NewGauge(name("starling_output_cut_total"), func() float64 { return float64(p.dropped.Load()) })
	return m
}

// named returns the name of a series of the pool over d. A host has one pool for each driver, and each has its label but the
// first there was.
func named(d Driver, family string, labels []string) string {
	if i := starling.Isolation(d.Name()); i != starling.IsolationProcess && i.Validate() == nil {
		labels = append(labels, fmt.Sprintf("isolation=%q", string(i)))
	}
	if len(labels) == 0 {
		return family
	}
	return family + "{" + strings.Join(labels, ",") + "}"
}

// Metrics returns the pool's numbers.
func (p *Pool) Metrics() *metrics.Set { return p.meters.set }
