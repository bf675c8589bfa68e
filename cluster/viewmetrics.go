package cluster

import "github.com/VictoriaMetrics/metrics"

// viewMetrics are the numbers of one View.
type viewMetrics struct {
	set      *metrics.Set
	sessions *metrics.Counter
	searches *metrics.Counter
	calls    *metrics.PrometheusHistogram
}

func (m *viewMetrics) init(v *View) {
	m.set = metrics.NewSet()
	m.sessions = m.set.NewCounter("starling_view_sessions_total")
	m.searches = m.set.NewCounter("starling_view_searches_failed_total")
	m.calls = m.set.NewPrometheusHistogram("starling_view_call_seconds")
	m.set.NewGauge("starling_view_lease_seconds", func() float64 { return v.LeaseUntil().Sub(v.cfg.Now()).Seconds() })
	m.set.NewGauge("starling_view_topology_index", func() float64 { return float64(v.Topology().Index) })
	m.set.NewGauge("starling_view_nodes_alive", func() float64 { return float64(len(v.Alive())) })
	m.set.NewGauge("starling_view_cache_misses_total", func() float64 {
		c := v.cache
		return float64(c.versions.misses() + c.numbers.misses() + c.keys.misses() + c.accounts.misses())
	})
	m.set.NewGauge("starling_view_cache_entries", func() float64 {
		c := v.cache
		return float64(c.versions.size() + c.numbers.size() + c.keys.size() + c.accounts.size())
	})
}
