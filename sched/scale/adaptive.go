// Package scale says how many instances of a version there should be. It is pure.
//
// The scheduler asks a Governor for each version. The default, Adaptive, takes four steps: measure the arrival rate in
// a window that the density of calls chooses; derive the rate of service that it and the queue need; derive
// instances from that, the run time and the slots of an instance; and say what to start and what may go. When nothing
// arrives the version's own history of gaps says until when, and from when on again, an instance is worth its memory.
package scale

import (
	"cmp"
	"math"
	"time"

	"starling"
)

// Adaptive is the default policy: the settings of its governors. It is never changed after its first use.
type Adaptive struct {
	Worth       time.Duration // idling of an instance that sparing one cold start is worth; the one price of the policy
	Latency     time.Duration // a burst shall not wait longer than this, where starts allow
	Utilization float64       // wanted busy share of few instances, in (0, 1]; many need less room, see steady
	Events      float64       // calls that the window of the rate should hold
	WindowMin   time.Duration // of dense calls
	WindowMax   time.Duration // of sparse calls
	DownAfter   time.Duration // instances that were needed at once within so long, or twice that, stay
	IdleMin     time.Duration // none is stopped that worked within this
}

// Default returns the settings that serve without tuning.
func Default() *Adaptive {
	return &Adaptive{Worth: 20 * time.Minute, Latency: 250 * time.Millisecond, Utilization: 0.7, Events: 16, WindowMin: time.Second,
		WindowMax: 5 * time.Minute, DownAfter: 30 * time.Second, IdleMin: 2 * time.Second}
}

// Validate reports the first setting that cannot work, by its name.
func (a *Adaptive) Validate() error {
	const op = "check scaling settings"
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"Worth", a.Worth}, {"Latency", a.Latency}, {"WindowMin", a.WindowMin}, {"DownAfter", a.DownAfter}, {"IdleMin", a.IdleMin}} {
		if d.v <= 0 {
			return starling.Errorf(starling.Invalid, op, "%s is %v: use more than 0", d.name, d.v)
		}
	}
	if a.WindowMax < a.WindowMin {
		return starling.Errorf(starling.Invalid, op, "WindowMax %v is below WindowMin %v", a.WindowMax, a.WindowMin)
	}
	if !(a.Utilization > 0 && a.Utilization <= 1) {
		return starling.Errorf(starling.Invalid, op, "Utilization is %v: use more than 0 and at most 1", a.Utilization)
	}
	if !(a.Events >= 1) {
		return starling.Errorf(starling.Invalid, op, "Events is %v: use 1 or more", a.Events)
	}
	return nil
}

// New returns the governor of a version that was never seen.
func (a *Adaptive) New(v Facts) Governor {
	return &governor{cfg: a, slots: int32(max(v.Slots, 1)), arrived: never, usual: 1}
}

const (
	never     = time.Duration(math.MinInt64 / 2)
	pace      = 100 * time.Millisecond // between plans while much happens
	idlePace  = 900 * time.Millisecond // while little happens, but arrivals are still summed; below Lively
	startSeen = 0.5                    // seconds; what a start takes before one was measured
	bridge    = 30                     // seconds; a release for less is not worth the start after it
	blend     = 0.2                    // weight of a new mean of run or start times
)

// A governor is the memory of one version: about 200 bytes, because a million of them live at once.
type governor struct {
	cfg     *Adaptive
	noted   time.Duration // last Note
	arrived time.Duration // last arrival
	turned  time.Duration // peak became before
	gaps    gaps
	rate    float32 // arrivals a second
	exec    float32 // seconds; 0 while unknown
	start   float32 // seconds; 0 while unknown
	loss    float32 // share of ready instances that go away by themselves, per second
	usual   float32 // slots in use at once in an activity, at its peak; a mean over activities
	slots   int32
	peak    int32 // most slots needed at once since turned
	before  int32 // in the window before that
	active  int32 // most in this activity; 0 while nothing happens
	ready   int32 // at the last plan
	guess   bool  // nobody saw that arrival
	gone    bool  // the last instance was released; the next one is a pre-warmed one
}

// Note learns.
func (g *governor) Note(now time.Duration, d Demand) {
	if d.Done > 0 && d.Busy > 0 {
		mix(&g.exec, d.Busy.Seconds()/float64(d.Done))
	}
	if d.Started > 0 {
		mix(&g.start, d.Start.Seconds()/float64(d.Started))
	}
	g.measure(now, d)
	g.peak = max(g.peak, int32(d.Peak))
	g.active = max(g.active, int32(d.Peak))
	if d.Arrivals == 0 {
		return
	}
	if gap := (now - g.arrived).Seconds(); g.arrived != never && !g.guess && gap >= Lively.Seconds() {
		g.gaps.add(gap)
	}
	g.arrived, g.guess, g.gone = now, false, false
	g.peak, g.active = max(g.peak, 1), max(g.active, 1)
}

// mix moves a mean towards x; the first x is the mean.
func mix(mean *float32, x float64) {
	if *mean == 0 {
		*mean = float32(x)
	}
	*mean += blend * (float32(x) - *mean)
}

// measure is step 1: the arrival rate over a window that holds about Events calls.
func (g *governor) measure(now time.Duration, d Demand) {
	dt := (now - g.noted).Seconds()
	if dt <= 0 { // the same instant: counted as if it were a window's least part
		g.rate += float32(float64(d.Arrivals) / g.window())
		return
	}
	g.noted = now
	w := g.window()
	g.rate += float32((float64(d.Arrivals)/dt - float64(g.rate)) * -math.Expm1(-dt/w))
	if g.ready > 0 {
		g.loss += float32((float64(d.Lost)/dt/float64(g.ready) - float64(g.loss)) * -math.Expm1(-dt/60))
	}
}

// window returns the time constant of the rate, seconds.
func (g *governor) window() float64 {
	return min(max(g.cfg.Events/max(float64(g.rate), 1e-9), g.cfg.WindowMin.Seconds()), g.cfg.WindowMax.Seconds())
}

// Plan takes the steps 2 to 4.
func (g *governor) Plan(now time.Duration, l Load) Plan {
	g.ready = int32(l.Ready)
	needed := int32(l.Busy + min(l.Waiting, l.Starting*int(g.slots)))
	g.peak, g.active = max(g.peak, needed), max(g.active, needed)
	if age := now - g.turned; age >= g.cfg.DownAfter {
		if g.before = g.peak; age >= 2*g.cfg.DownAfter {
			g.before = needed
		}
		g.peak, g.turned = needed, now
	}
	idle := now - g.arrived
	if l.Busy > 0 || l.Waiting > 0 || l.Starting > 0 && g.arrived != never && !g.gone || idle < Lively {
		return g.atWork(l)
	}
	return g.resting(now, l)
}

// atWork plans while calls run or wait, or came within a moment.
func (g *governor) atWork(l Load) Plan {
	want := max(g.burst(l), g.steady(l))
	recent := g.instances(float64(max(g.peak, g.before)))
	p := Plan{Want: want, Keep: max(min(recent, l.Ready+l.Starting), want), IdleKeep: g.cfg.IdleMin, Again: idlePace}
	p.Want = max(p.Want, min(p.Keep, l.Ready+l.Starting))
	if l.Waiting > 0 || l.Starting > 0 || want > l.Ready || p.Keep < l.Ready {
		p.Again = pace
	}
	return p
}

// instances returns how many give so many slots.
func (g *governor) instances(slots float64) int { return int(math.Ceil(slots / float64(g.slots))) }

// steady returns the instances that the arrival rate needs in the long run, at least 1. By Little's law rate × run
// time calls run at once; the room above that keeps the wait short: a fixed share for few instances, and two standard
// deviations of a Poisson stream for many (Halfin and Whitt, Operations Research 29, 1981). What dies by itself is
// replaced before it is missed: as much as is lost within a start.
func (g *governor) steady(l Load) int {
	if g.exec == 0 {
		return 1
	}
	busy := float64(g.rate * g.exec)
	n := float64(g.instances(min(busy/g.cfg.Utilization, busy+2*math.Sqrt(busy))))
	n += math.Floor(n * float64(g.loss) * g.startTime())
	// The rate is a mean over a window: it may outlive its calls, but no more than what was in use at once.
	most := g.instances(float64(max(g.peak, g.before))/g.cfg.Utilization) + 1
	return max(min(int(n), most), 1)
}

// startTime returns how long a start takes, seconds.
func (g *governor) startTime() float64 {
	if g.start == 0 {
		return startSeen
	}
	return float64(g.start)
}

// burst returns the fewest instances that let every waiting call begin within Latency, or, where a start takes longer
// than that, within a quarter of Latency after it. Instances that serve already work meanwhile; an instance that
// is there for w seconds begins w / run time + 1 calls for each of its slots.
func (g *governor) burst(l Load) int {
	if l.Waiting == 0 {
		return 0
	}
	if g.exec == 0 {
		return l.ramped()
	}
	slots, exec, start := float64(g.slots), float64(g.exec), g.startTime()
	w := max(g.cfg.Latency.Seconds()-start, g.cfg.Latency.Seconds()/4)
	served := float64(l.Ready) * slots * (start + w) / exec
	n := math.Ceil((float64(l.Waiting) - served) / (slots * (w/exec + 1)))
	n = min(n, math.Ceil(float64(l.Waiting)/slots))
	if l.Ready == 0 {
		n = max(n, 1)
	}
	return l.Ready + max(l.Starting, int(n))
}

// resting plans while nothing happens: as many as the function uses at once are kept while the next call is likely
// enough, released, and started again just before it is.
func (g *governor) resting(now time.Duration, l Load) Plan {
	if g.active > 0 {
		g.usual += (float32(g.active) - g.usual) * 0.25
		g.active = 0
	}
	have := l.Ready + l.Starting
	if g.arrived == never {
		if have == 0 {
			return Plan{IdleKeep: g.cfg.IdleMin}
		}
		g.arrived, g.guess = now, true // taken over from another owner: somebody had a use for it
	}
	t, worth := (now - g.arrived).Seconds(), g.cfg.Worth.Seconds()
	n := max(g.instances(math.Round(float64(g.usual))), 1)
	keep, until := g.gaps.hold(t, worth)
	lead := 2*g.startTime() + pace.Seconds()
	if !g.gone && !keep && until <= t+bridge || !keep && until <= t+lead { // kept again soon: not stopped, or started, now
		keep, until = g.gaps.hold(until, worth)
	} else if !keep {
		until -= lead
	}
	p := Plan{IdleKeep: g.cfg.IdleMin}
	if until < 1e8 {
		p.Again = max(time.Duration((until-t)*float64(time.Second)), pace)
	}
	if !keep {
		g.gone = true
		return p
	}
	if p.Keep, p.Want = n, min(n, have); g.gone {
		p.Want = n
	}
	p.Keep = min(p.Keep, p.Want)
	// More than usual are not stopped at once: an activity may only pause.
	if recent := g.instances(float64(max(g.peak, g.before))); recent > p.Keep && have > p.Keep {
		p.Keep = min(recent, have)
		p.Want = p.Keep
		p.Again = min(cmp.Or(p.Again, g.cfg.DownAfter), max(g.turned+g.cfg.DownAfter-now, pace))
	}
	return p
}
