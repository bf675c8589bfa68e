// Package overload refuses calls at the door of a node that cannot serve them all. flow.Shedder decides; here calls are
// counted and let in evenly. Time is an argument and there is no goroutine, so that the simulator runs the very same code.
package overload

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/sched/flow"
)

// Reason is the stable word of a refusal by a node that has more work than it can do.
const Reason = flow.ReasonOverload

const countMax = 65_536 // functions that are counted; more are counted from the next window on

// A Gate refuses calls before their payload is read. While the node is well it costs a call one atomic read. Pass may be
// called from many goroutines, Decide from one. Set Now before the first call.
type Gate struct {
	Now func() int64 // ns since any fixed instant, never falling

	counting atomic.Bool   // the node is near its limit: calls are counted
	tallies  sync.Map      // starling.FunctionRef → *tally
	pressure atomic.Uint64 // float64 bits, of the last window
	shed     atomic.Uint64 // calls refused
	shedder  flow.Shedder  // of the goroutine that decides
}

// Pressure returns that of the last window; from 1 on the node has too much work.
func (g *Gate) Pressure() float64 { return math.Float64frombits(g.pressure.Load()) }

// Shed returns how many calls were refused.
func (g *Gate) Shed() uint64 { return g.shed.Load() }

// A tally counts the calls of one function in one window.
type tally struct {
	arrived, admitted atomic.Int64
	limit             atomic.Pointer[limit] // nil while all are let in
}

// A limit lets calls in evenly: a part of a window's calls that is drawn by lot comes in bursts as the calls do, and each
// burst is a queue in which everybody waits. This is the cell rate algorithm (ITU-T I.371) on an atomic.
type limit struct {
	admit    float64 // part of what was asked, in (0, 1)
	interval int64   // ns between two calls
	next     atomic.Int64
}

// burstTime is how far a limit lets calls come early.
const burstTime = 5 * time.Millisecond

// take reports whether a call at now, in ns since any fixed instant, is let in.
func (l *limit) take(now int64) bool {
	for {
		next := l.next.Load()
		if next > now+max(int64(burstTime), l.interval) {
			return false
		}
		if l.next.CompareAndSwap(next, max(next, now)+l.interval) {
			return true
		}
	}
}

// Pass lets a call in or refuses it.
func (g *Gate) Pass(f starling.FunctionRef) error {
	if !g.counting.Load() {
		return nil
	}
	v, ok := g.tallies.Load(f)
	if !ok {
		v, _ = g.tallies.LoadOrStore(f, &tally{})
	}
	t := v.(*tally)
	t.arrived.Add(1)
	if l := t.limit.Load(); l != nil && !l.take(g.Now()) {
		g.shed.Add(1)
		return starling.Errorf(starling.Overloaded, "invoke function",
			"this node is overloaded and %s asks for more than its fair share: retry after a pause", f).With(Reason).RetryAfter(pause(l.admit))
	}
	t.admitted.Add(1)
	return nil
}

// pause is how long a caller is asked to stay away: a second for who is let in mostly, up to half a minute for who asks
// for many times his share.
func pause(admit float64) time.Duration {
	return time.Duration(min(1/max(admit, 1.0/30), 30) * float64(time.Second)).Round(time.Second)
}

// Decide takes the window that ended and what other nodes asked of this one in it, and sets what is let in during the
// next. Those other nodes refuse for themselves.
func (g *Gate) Decide(pressure float64, others []flow.Demand) {
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
	arrived := map[starling.FunctionRef]int{}
	limits := map[starling.FunctionRef]*limit{}
	g.tallies.Range(func(k, v any) bool {
		t, f := v.(*tally), k.(starling.FunctionRef)
		d := flow.Demand{Function: f, Arrived: int(t.arrived.Swap(0)), Admitted: int(t.admitted.Swap(0))}
		arrived[f], limits[f] = d.Arrived, t.limit.Swap(nil)
		if ds = append(ds, d); d.Arrived == 0 || len(ds) > countMax {
			g.tallies.Delete(k)
		}
		return true
	})
	for _, p := range g.shedder.Decide(pressure, flow.Sum(ds, others)) {
		v, ok := g.tallies.Load(p.Function)
		if !ok {
			continue
		}
		l := &limit{admit: p.Admit, interval: int64(float64(flow.Window) / max(p.Admit*float64(arrived[p.Function]), least))}
		if was := limits[p.Function]; was != nil {
			l.next.Store(was.next.Load()) // what came early in the last window counts in this one
		}
		v.(*tally).limit.Store(l)
	}
}

// least is how many calls of a function a window lets in at least: whoever tries is served now and then.
const least = 0.1
