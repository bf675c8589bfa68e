package frontend

import (
	"context"
	"math"
	"math/rand/v2"
	"runtime/metrics"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/sched/flow"
)

// ReasonNodeOverload is the stable word of a refusal by a node that has more work than it can do.
const ReasonNodeOverload = "NodeOverload"

// The signal of overload is how long goroutines that could run wait for a processor: what a tenth of them exceeds, as
// the runtime counts it, and how late the watching goroutine itself is, which shows a kernel that is late. A sleeper's
// lateness alone was tried first and shows little: the Go scheduler runs who was woken by a timer before its queue.
const (
	lateMax  = 10 * time.Millisecond // exceeded by a tenth of the waits of a window
	fullPart = 0.9                   // of the calls that may be in flight
	countMax = 65_536                // functions that are counted; more are counted from the next window on
)

// A gate refuses calls at the door of a node that cannot serve them all, before their payload is read. While
// the node is well it costs a call one atomic read. flow.Shedder decides; here is only counting.
type gate struct {
	counting atomic.Bool   // the node is near its limit: calls are counted
	tallies  sync.Map      // starling.FunctionRef → *tally
	pressure atomic.Uint64 // float64 bits, of the last window
	shed     atomic.Uint64 // calls refused
	shedder  flow.Shedder  // of the watching goroutine
}

// A tally counts the calls of one function in one window.
type tally struct {
	arrived, admitted atomic.Int64
	admit             atomic.Uint64 // bits of the part to let in; 0 for all
}

// pass lets a call in or refuses it.
func (g *gate) pass(f starling.FunctionRef) error {
	if !g.counting.Load() {
		return nil
	}
	v, ok := g.tallies.Load(f)
	if !ok {
		v, _ = g.tallies.LoadOrStore(f, &tally{})
	}
	t := v.(*tally)
	t.arrived.Add(1)
	if bits := t.admit.Load(); bits != 0 {
		if p := math.Float64frombits(bits); rand.Float64() >= p {
			g.shed.Add(1)
			return starling.Errorf(starling.Overloaded, "invoke function",
				"this node is overloaded and %s asks for more than its fair share: retry after a pause", f).With(ReasonNodeOverload).RetryAfter(pause(p))
		}
	}
	t.admitted.Add(1)
	return nil
}

// pause is how long a caller is asked to stay away: a second for who is let in mostly, up to half a minute for who asks
// for many times his share.
func pause(admit float64) time.Duration {
	return time.Duration(min(1/max(admit, 1.0/30), 30) * float64(time.Second)).Round(time.Second)
}

// watch measures the node and sets what is let in, until ctx ends.
func (g *gate) watch(ctx context.Context, inFlight func() float64) {
	window := time.NewTicker(flow.Window)
	defer window.Stop()
	q := newQueueing()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-window.C:
		}
		now := time.Now()
		late := max(q.tail(), now.Sub(last)-flow.Window)
		last = now
		g.decide(max(float64(late)/float64(lateMax), inFlight()/fullPart))
	}
}

// queueing reads how long goroutines that could run waited for a processor.
type queueing struct {
	sample [1]metrics.Sample
	before []uint64
}

func newQueueing() *queueing {
	q := &queueing{sample: [1]metrics.Sample{{Name: "/sched/latencies:seconds"}}}
	q.tail()
	return q
}

// tail returns what a tenth of the waits since the last call exceeded.
func (q *queueing) tail() time.Duration {
	metrics.Read(q.sample[:])
	h := q.sample[0].Value.Float64Histogram()
	total := uint64(0)
	q.before = slices.Grow(q.before, len(h.Counts))[:len(h.Counts)]
	for i, n := range h.Counts {
		h.Counts[i], q.before[i] = n-q.before[i], n
		total += h.Counts[i]
	}
	above := uint64(0)
	for i := len(h.Counts) - 1; i > 0; i-- {
		if above += h.Counts[i]; above*10 > total {
			return time.Duration(h.Buckets[i] * float64(time.Second))
		}
	}
	return 0
}

// decide takes the window that ended and sets what is let in during the next.
func (g *gate) decide(pressure float64) {
	g.pressure.Store(math.Float64bits(pressure))
	if pressure < 0.5 && !g.shedder.Active() {
		if g.counting.Swap(false) {
			g.tallies.Clear()
		}
		return
	}
	if !g.counting.Swap(true) {
		return // nothing was counted yet
	}
	var ds []flow.Demand
	g.tallies.Range(func(k, v any) bool {
		t := v.(*tally)
		d := flow.Demand{Function: k.(starling.FunctionRef), Arrived: int(t.arrived.Swap(0)), Admitted: int(t.admitted.Swap(0))}
		t.admit.Store(0)
		if ds = append(ds, d); d.Arrived == 0 || len(ds) > countMax {
			g.tallies.Delete(k)
		}
		return true
	})
	for _, p := range g.shedder.Decide(pressure, ds) {
		if v, ok := g.tallies.Load(p.Function); ok {
			v.(*tally).admit.Store(max(math.Float64bits(p.Admit), 1)) // 0 would be all
		}
	}
}
