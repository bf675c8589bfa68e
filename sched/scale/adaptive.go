// Package scale says how many instances of a version there should be. It is pure.
//
// The scheduler asks a Governor for each version. The default, Adaptive, takes four steps: measure the arrival rate in
// a window that the density of calls chooses; derive the rate of service that it and the queue need; derive
// instances from that, the run time and the slots of an instance; and say what to start and what may go. When nothing
// arrives the version's own history of gaps says until when, and from when on again, an instance is worth its memory.
package scale

import (
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
	DownAfter   time.Duration // what is started ahead of a growing activity stays for so long
	IdleMin     time.Duration // none is stopped that worked within this
}

// Default returns the settings that serve without tuning.
func Default() *Adaptive {
	return &Adaptive{Worth: 36 * time.Minute, Latency: 250 * time.Millisecond, Utilization: 0.7, Events: 16, WindowMin: time.Second,
		WindowMax: 5 * time.Minute, DownAfter: 10 * time.Second, IdleMin: 2 * time.Second}
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
	return &governor{cfg: a, slots: uint16(min(max(v.Slots, 1), math.MaxUint16)), arrived: never, usual: 1}
}

const (
	never     = time.Duration(math.MinInt64 / 2)
	pace      = 100 * time.Millisecond // between plans while much happens
	idlePace  = 900 * time.Millisecond // while little happens, but arrivals are still summed; below Lively
	startSeen = 0.5                    // seconds; what a start takes before one was measured
	bridge    = 60                     // seconds; a release for less is not worth the start after it
	blend     = 0.2                    // weight of a new mean of run or start times
)

// A governor is the memory of one version: 256 bytes, because a million of them live at once.
type governor struct {
	cfg     *Adaptive
	noted   time.Duration // last Note
	arrived time.Duration // last arrival
	gaps    gaps
	levels  levels
	rate    float32 // arrivals a second
	exec    float32 // seconds; 0 while unknown
	start   float32 // seconds; 0 while unknown
	loss    float32 // share of ready instances that go away by themselves, per second
	grown   uint32  // when active rose, in ticks
	usual   float32 // slots in use at once in an activity, at its peak; a mean over activities
	slots   uint16
	active  uint16 // most instances in this activity; 0 while nothing happens
	ready   uint16 // at the last plan
	guess   bool   // nobody saw that arrival
	gone    bool   // the last instance was released; the next one is a pre-warmed one
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
	g.use(now, d.Peak)
	if d.Arrivals == 0 {
		return
	}
	if gap := (now - g.arrived).Seconds(); g.arrived != never && !g.guess && gap >= Lively.Seconds() {
		g.gaps.add(gap)
	}
	g.arrived, g.guess, g.gone = now, false, false
	g.use(now, 1)
}

// use notes that so many slots are in use.
func (g *governor) use(now time.Duration, slots int) {
	n := min(g.instances(float64(slots)), math.MaxUint16)
	g.levels.see(now, n)
	if uint16(n) > g.active {
		g.active, g.grown = uint16(n), uint32(now/tick)
	}
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
	g.ready = uint16(min(l.Ready, math.MaxUint16))
	g.use(now, l.Busy+min(l.Waiting, l.Starting*int(g.slots)))
	idle := now - g.arrived
	if l.Busy > 0 || l.Waiting > 0 || l.Starting > 0 && g.arrived != never && !g.gone || idle < Lively {
		return g.atWork(now, l)
	}
	return g.resting(now, l)
}

// atWork plans while calls run or wait, or came within a moment. An activity that grows beyond what is there is met by
// as many starts as those before it came to need: the calls of a batch come faster than an instance starts.
func (g *governor) atWork(now time.Duration, l Load) Plan {
	held, _ := g.levels.held(now, g.cfg.Worth.Seconds())
	have := l.Ready + l.Starting
	// The rate alone starts nothing above what idle times justify: its noise would start and stop instances all day.
	p := Plan{Want: max(g.burst(l), min(g.steady(l), held)), IdleKeep: g.cfg.IdleMin, Again: idlePace}
	if now-time.Duration(g.grown)*tick < g.cfg.DownAfter {
		ahead := g.levels.ahead(int(g.active))
		if int(g.active) > l.Ready {
			p.Want = max(p.Want, ahead)
		}
		held = max(held, ahead)
	}
	p.Keep = max(min(held, have), p.Want)
	p.Want = max(p.Want, min(p.Keep, have))
	if l.Waiting > 0 || l.Starting > 0 || p.Want > l.Ready {
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
	return max(int(n), 1)
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
		g.levels.ended(int(g.active))
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
	n := max(int(math.Round(float64(g.usual))), 1)
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
	if g.gone {
		p.Keep, p.Want = n, n
		return p
	}
	held, again := g.levels.held(now, worth)
	p.Keep = min(held, have)
	p.Want = p.Keep
	if wake := time.Duration(min(again, 1e8) * float64(time.Second)); held > 1 && (p.Again == 0 || wake < p.Again) {
		p.Again = max(wake, pace)
	}
	return p
}
