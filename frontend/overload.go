package frontend

import (
	"context"
	"time"

	"starling/frontend/overload"
)

// ReasonNodeOverload is the stable word of a refusal by a node that has more work than it can do.
const ReasonNodeOverload = overload.Reason

// watch measures the node and sets what its gate lets in, until ctx ends. What other nodes ask of this one counts; those
// nodes refuse for themselves.
func (s *Server) watch(ctx context.Context) {
	p := newPressure()
	defer p.close()
	tick := time.NewTicker(overload.SampleTime)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.gate.Look(p.sample(now))
		}
		if n%overload.Samples == 0 {
			full := overload.Full(float64(s.inFlight.Load()) / float64(s.deps.InFlightMax))
			s.gate.Decide(max(p.window(), full), s.deps.Visits())
			s.deps.Callers(s.gate.Callers())
		}
	}
}
