package host

import (
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/metrics/profile"
)

// meters are the host's numbers.
type meters struct {
	set                           *metrics.Set
	ok, handled, unhandled        *metrics.Counter
	moved, busy, share            *metrics.Counter
	startFailed, exited, timedOut *metrics.Counter
	madeRoom                      *metrics.Counter
	cpu, memory                   *metrics.FloatCounter
	run                           *metrics.PrometheusHistogram
}

func newMeters(h *Host) *meters {
	s := metrics.NewSet()
	m := &meters{
		set:         s,
		ok:          s.NewCounter(`starling_host_calls_total{end="succeeded"}`),
		handled:     s.NewCounter(`starling_host_calls_total{end="handled"}`),
		unhandled:   s.NewCounter(`starling_host_calls_total{end="unhandled"}`),
		timedOut:    s.NewCounter(`starling_host_calls_total{end="timed_out"}`),
		moved:       s.NewCounter(`starling_host_refusals_total{kind="moved"}`),
		busy:        s.NewCounter(`starling_host_refusals_total{kind="overloaded"}`),
		share:       s.NewCounter(`starling_host_refusals_total{kind="share"}`),
		startFailed: s.NewCounter(`starling_host_start_failures_total`),
		exited:      s.NewCounter(`starling_host_exits_total`),
		madeRoom:    s.NewCounter(`starling_host_idle_ended_total`),
		cpu:         s.NewFloatCounter(`starling_host_call_cpu_seconds_total`),
		memory:      s.NewFloatCounter(`starling_host_call_gibibyte_seconds_total`),
		run:         s.NewPrometheusHistogram(`starling_host_call_seconds`),
	}
	s.NewGauge(`starling_host_calls_in_flight`, func() float64 { return float64(h.inflight.Load()) })
	s.NewGauge(`starling_host_memory_claimed_bytes`, func() float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return float64(h.used) * (1 << 20)
	})
	s.NewGauge(`starling_host_profiles`, func() float64 { n, _ := h.book.Size(); return float64(n) })
	s.NewGauge(`starling_host_profiles_dropped_total`, func() float64 { _, n := h.book.Size(); return float64(n) })
	s.NewGauge(`starling_host_starting`, func() float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return float64(h.starting)
	})
	s.NewGauge(`starling_host_crowd`, func() float64 { crowd, _ := h.accounts.standing(); return crowd })
	s.NewGauge(`starling_host_share_processors`, func() float64 { _, level := h.accounts.standing(); return level })
	return m
}

// Metrics returns the host's numbers.
func (h *Host) Metrics() *metrics.Set { return h.meters.set }

func (m *meters) ended(out starling.Outcome, begun time.Time) {
	m.run.UpdateDuration(begun)
	switch {
	case out.Status == starling.Succeeded:
		m.ok.Inc()
	case out.Status == starling.Handled:
		m.handled.Inc()
	case out.ErrorType == starling.ErrTimedOut:
		m.timedOut.Inc()
	default:
		m.unhandled.Inc()
	}
}

// used counts what calls of v took between two beats.
func (m *meters) used(v *starling.Version, t *profile.Tally) {
	m.cpu.Add(t.CPU.Seconds())
	m.memory.Add(float64(v.Config.MemoryMiB) / 1024 * t.Run.Seconds())
}

func (m *meters) refused(err error) {
	switch {
	case err == errShare:
		m.share.Inc()
	case starling.KindOf(err) == starling.Overloaded:
		m.busy.Inc()
	default:
		m.moved.Inc()
	}
}
