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

const countMax = 65_536 // functions that are counted

// A Gate refuses calls before their payload is read. It counts them always, one look-up and one atomic addition a call: who
// jumps to many times his calls is known when the first queue shows. Pass may be called from many goroutines, Look and
// Decide from one. Set Now before the first call.
type Gate struct {
	Now func() int64 // ns since any fixed instant, never falling

	mu      sync.RWMutex // guards what follows; a leaf
	tallies map[starling.FunctionRef]*tally

	pressure atomic.Uint64 // float64 bits, of the last window
	shed     atomic.Uint64 // calls refused
	shedder  flow.Shedder  // of the goroutine that decides, as what follows
	queued   int           // looks in a row at which processors were queued for
}

// Pressure returns that of the last window; from 1 on the node has too much work.
func (g *Gate) Pressure() float64 { return math.Float64frombits(g.pressure.Load()) }

// Shed returns how many calls were refused.
func (g *Gate) Shed() uint64 { return g.shed.Load() }

// A tally counts the calls of one function in one window.
type tally struct {
	arrived, refused atomic.Int64
	limit            atomic.Pointer[limit] // nil while all are let in
	usual            float64               // calls in a window lately; of the goroutine that decides
}

// newest is the weight of the newest window in what is usual: the mean of about the last second. Who called less often than
// rarely lately is forgotten.
const (
	newest = 0.1
	rarely = 0.01
)

// A limit lets calls in evenly: a part of a window's calls that is drawn by lot comes in bursts as the calls do, and each
// burst is a queue in which everybody waits. This is the cell rate algorithm (ITU-T I.371) on an atomic.
type limit struct {
	refusal  *starling.Error // made once: who is refused is so often
	interval int64           // ns between two calls
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
	t := g.tally(f)
	if t == nil {
		return nil
	}
	t.arrived.Add(1)
	if l := t.limit.Load(); l != nil && !l.take(g.Now()) {
		t.refused.Add(1)
		g.shed.Add(1)
		return l.refusal
	}
	return nil
}

// tally returns that of f; nil where too many functions are counted.
func (g *Gate) tally(f starling.FunctionRef) *tally {
	g.mu.RLock()
	t := g.tallies[f]
	g.mu.RUnlock()
	if t != nil {
		return t
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.tallies == nil {
		g.tallies = map[starling.FunctionRef]*tally{}
	}
	if t = g.tallies[f]; t == nil && len(g.tallies) < countMax {
		t = &tally{}
		g.tallies[f] = t
	}
	return t
}

// refusal is what the callers of f hear of whose calls the part admit is let in.
func refusal(f starling.FunctionRef, admit float64) *starling.Error {
	return starling.Errorf(starling.Overloaded, "invoke function",
		"this node is overloaded and %s asks for more than its fair share: retry after a pause", f).With(Reason).RetryAfter(pause(admit))
}

// pause is how long a caller is asked to stay away: a second for who is let in mostly, up to half a minute for who asks
// for many times his share.
func pause(admit float64) time.Duration {
	return time.Duration(min(1/max(admit, 1.0/30), 30) * float64(time.Second)).Round(time.Second)
}

// Look takes how many threads want to run for each processor at this instant; call it every SampleTime. Where processors are
// queued for at two looks in a row, an account whose calls have just jumped is held at once.
func (g *Gate) Look(perCPU float64) {
	if g.queued++; perCPU < crowdMax {
		g.queued = 0
	}
	if g.queued >= 2 && !g.shedder.Active() {
		g.set(g.shedder.Surge(g.asked()))
	}
}

// Decide takes the window that ended and what other nodes asked of this one in it, and sets what is let in during the
// next. Those other nodes refuse for themselves.
func (g *Gate) Decide(pressure float64, others []flow.Demand) {
	g.pressure.Store(math.Float64bits(pressure))
	if pressure < 0.5 && !g.shedder.Active() {
		g.next()
		return
	}
	ds := g.asked()
	g.next()
	g.set(g.shedder.Decide(pressure, flow.Sum(ds, others)))
}

// asked returns what was asked in the window up to now.
func (g *Gate) asked() []flow.Demand {
	g.mu.RLock()
	defer g.mu.RUnlock()
	ds := make([]flow.Demand, 0, len(g.tallies))
	for f, t := range g.tallies {
		n := int(t.arrived.Load())
		ds = append(ds, flow.Demand{Function: f, Arrived: n, Admitted: n - int(t.refused.Load()), Usual: t.usual})
	}
	return ds
}

// calling is how many calls in a window of about the last second make an account one that calls: one a second.
const calling = 0.1

// Callers returns the accounts that called here lately, in no order and some of them more than once.
func (g *Gate) Callers() (out []starling.AccountID) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for f, t := range g.tallies {
		if t.usual >= calling {
			out = append(out, f.Account)
		}
	}
	return out
}

// next begins a window.
func (g *Gate) next() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for f, t := range g.tallies {
		t.usual += newest * (float64(t.arrived.Swap(0)) - t.usual)
		t.refused.Store(0)
		if t.usual < rarely {
			delete(g.tallies, f)
		}
	}
}

// set replaces the limits.
func (g *Gate) set(ps []flow.Portion) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	limits := make(map[*tally]*limit, len(ps))
	for _, p := range ps {
		t := g.tallies[p.Function]
		if t == nil {
			continue // it called another node only
		}
		l := &limit{refusal: refusal(p.Function, p.Admit), interval: int64(float64(flow.Window) / max(p.Calls, least))}
		if was := t.limit.Load(); was != nil {
			l.next.Store(was.next.Load()) // what came early in the last window counts in this one
		}
		limits[t] = l
	}
	for _, t := range g.tallies {
		t.limit.Store(limits[t])
	}
}

// least is how many calls of a function a window lets in at least: whoever tries is served now and then.
const least = 0.1
