package quic

import (
	"sync/atomic"

	"github.com/VictoriaMetrics/metrics"
)

// counters are the numbers of one endpoint.
type counters struct {
	handshakes *atomic.Int64 // accepted and not finished
	dials      *metrics.Counter
	failures   *metrics.Counter
	opened     *metrics.Counter
	served     *metrics.Counter
	refused    *metrics.Counter
	dialTime   *metrics.PrometheusHistogram
}

func newCounters(e *Endpoint) counters {
	e.set.NewGauge("starling_transport_connections", func() float64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		n := len(e.accepted)
		for _, p := range e.peers {
			if p.conn != nil {
				n++
			}
		}
		return float64(n)
	})
	return counters{
		handshakes: new(atomic.Int64),
		dials:      e.set.NewCounter("starling_transport_dials_total"),
		failures:   e.set.NewCounter("starling_transport_dial_failures_total"),
		opened:     e.set.NewCounter("starling_transport_streams_opened_total"),
		served:     e.set.NewCounter("starling_transport_streams_served_total"),
		refused:    e.set.NewCounter("starling_transport_streams_refused_total"),
		dialTime:   e.set.NewPrometheusHistogram("starling_transport_dial_seconds"),
	}
}
