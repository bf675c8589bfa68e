package frontend

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/quic-go/quic-go"

	"starling"
)

// numbers are what a server tells of itself.
type numbers struct {
	set      *metrics.Set
	byClass  [6]*metrics.Counter // by the first digit of the status
	duration *metrics.PrometheusHistogram
}

func newNumbers(s *Server) *numbers {
	set := metrics.NewSet()
	n := &numbers{set: set, duration: set.NewPrometheusHistogram("starling_frontend_invoke_seconds")}
	for i := range n.byClass {
		n.byClass[i] = set.NewCounter(`starling_frontend_invocations_total{class="` + string(rune('0'+i)) + `xx"}`)
	}
	set.NewGauge("starling_frontend_in_flight", func() float64 { return float64(s.inFlight.Load()) })
	set.NewGauge("starling_frontend_pressure", s.gate.Pressure)
	set.NewGauge("starling_frontend_calls_shed", func() float64 { return float64(s.gate.Shed()) })
	set.NewGauge("starling_frontend_payload_bytes", func() float64 { return float64(s.memory.Load()) })
	return n
}

func (n *numbers) answered(status int, took time.Duration) {
	n.byClass[min(status/100, len(n.byClass)-1)].Inc()
	n.duration.Update(took.Seconds())
}

// messageOf is the sentence of a typed error.
func messageOf(err error) string {
	var e *starling.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

func http3Config() *quic.Config {
	return &quic.Config{MaxIncomingStreams: streamsMax, MaxIdleTimeout: idleTime, HandshakeIdleTimeout: headerTime, Allow0RTT: false}
}

// quiet passes on warnings and worse: quic-go tells every connection as information.
type quiet struct{ slog.Handler }

// Enabled refuses what is below a warning.
func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}
