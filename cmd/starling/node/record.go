package node

import (
	"context"
	"time"

	"starling"
	"starling/frontend"
	"starling/store/trace"
)

// A recorded dispatcher hands calls on and records how they went. Without a folder to record to there is none, so
// that a node which does not record pays nothing.
type recorded struct {
	frontend.Dispatcher
	to *trace.Recorder
}

// record puts a recorder before d when the settings name a folder for it.
func (n *Node) record(ctx context.Context, d frontend.Dispatcher) (frontend.Dispatcher, error) {
	if n.cfg.Record == "" {
		return d, nil
	}
	cfg := trace.DefaultConfig()
	cfg.Dir, cfg.Log = n.cfg.Record, n.log("trace")
	r := trace.New(cfg)
	if err := r.Open(ctx); err != nil {
		return nil, err
	}
	n.opened("trace", r.Metrics(), r.Close)
	return recorded{d, r}, nil
}

// Invoke brings the call to its instance and records it when it is over.
func (r recorded) Invoke(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error) {
	began := time.Now()
	out, phases, err := r.Dispatcher.Invoke(ctx, v, inv, sink)
	c := trace.Call{Start: began.UnixMicro(), Account: string(v.Function.Account), Function: string(v.Function.Name), Version: uint64(v.ID),
		Run: out.Run.Microseconds(), Cold: phases.Cold(), Begin: (phases.Place + phases.Start).Microseconds(), Init: phases.Init.Microseconds(),
		Outcome: outcome(out, err), MemoryMiB: int32(v.Config.MemoryMiB), PeakMiB: int32(out.MemoryMax >> 20), Slots: int32(max(v.Config.Concurrency, 1))}
	c.Wait = max(time.Since(began).Microseconds()-c.Run, 0)
	r.to.Add(c)
	return out, phases, err
}

func outcome(out starling.Outcome, err error) string {
	switch {
	case err != nil:
		return starling.KindOf(err).String()
	case out.Status == starling.Handled:
		return "handled"
	case out.Status == starling.Unhandled:
		return "unhandled"
	}
	return "ok"
}
