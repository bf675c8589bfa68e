package scale

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// A yard is the smallest world that a governor can rule: the instances of one version, calls that come, run and end,
// and a scheduler that does what the plan says.
type yard struct {
	gov      Governor
	exec     func() time.Duration
	start    time.Duration
	now      time.Duration
	slots    int
	ramp     int
	starting []birth
	ready    []inst
	running  []running
	waiting  []time.Duration // since when
	plan     Plan
	planned  time.Duration // last plan
	demand   Demand

	calls, cold, starts, most int
	idled                     time.Duration // summed life of all instances, starts included
	waits                     []time.Duration
}

type birth struct {
	at   time.Duration // ready
	told time.Duration // decided
}

type inst struct {
	id   int
	used int
	born time.Duration
	idle time.Duration // since
	cold bool          // no call yet, and started for one that waited
}

type running struct {
	id   int
	ends time.Duration
	took time.Duration
}

// run plays the arrivals, sorted, and then lets the yard rest until end.
func (y *yard) run(arrivals []time.Duration, end time.Duration) {
	y.slots, y.ramp = max(y.slots, 1), max(y.ramp, 4)
	y.plan = Plan{}
	next := 0
	for {
		at := end
		if next < len(arrivals) {
			at = min(at, arrivals[next])
		}
		at = min(at, y.due())
		y.now = max(y.now, at)
		if at >= end {
			break
		}
		for next < len(arrivals) && arrivals[next] <= y.now {
			next++
			y.arrive()
		}
		y.advance()
	}
	for _, i := range y.ready {
		y.idled += y.now - i.born
	}
}

// due returns when something happens by itself.
func (y *yard) due() time.Duration {
	at := time.Duration(math.MaxInt64)
	if y.plan.Again > 0 {
		at = y.planned + y.plan.Again
	}
	for _, b := range y.starting {
		at = min(at, b.at)
	}
	for _, r := range y.running {
		at = min(at, r.ends)
	}
	if len(y.ready)+len(y.starting) > y.plan.Keep {
		for _, i := range y.ready {
			if i.used == 0 {
				at = min(at, max(i.idle+y.plan.IdleKeep, y.now+time.Millisecond))
			}
		}
	}
	return at
}

func (y *yard) arrive() {
	y.calls++
	y.demand.Arrivals++
	y.waiting = append(y.waiting, y.now)
	if y.serve(); len(y.waiting) > 0 || y.plan.Again == 0 || y.plan.Again >= Lively {
		y.ask()
	}
}

// advance does what is due now.
func (y *yard) advance() {
	for k := 0; k < len(y.running); {
		r := y.running[k]
		if r.ends > y.now {
			k++
			continue
		}
		y.running = slices.Delete(y.running, k, k+1)
		y.demand.Done, y.demand.Busy = y.demand.Done+1, y.demand.Busy+r.took
		n := slices.IndexFunc(y.ready, func(i inst) bool { return i.id == r.id })
		i := y.ready[n]
		i.used, i.idle = i.used-1, y.now
		y.ready = append(slices.Delete(y.ready, n, n+1), i) // last used last
	}
	for len(y.starting) > 0 && y.starting[0].at <= y.now {
		b := y.starting[0]
		y.starting = y.starting[1:]
		y.starts++
		y.ready = append(y.ready, inst{id: y.starts, born: b.told, idle: y.now, cold: len(y.waiting) > 0})
		y.demand.Started, y.demand.Start = y.demand.Started+1, y.demand.Start+b.at-b.told
	}
	y.serve()
	if len(y.waiting) > 0 || y.plan.Again > 0 && y.now >= y.planned+y.plan.Again {
		y.ask()
	}
	y.retire()
}

func (y *yard) serve() {
	for k := len(y.ready) - 1; k >= 0 && len(y.waiting) > 0; k-- {
		for i := &y.ready[k]; i.used < y.slots && len(y.waiting) > 0; {
			d := y.exec()
			y.waits = append(y.waits, y.now-y.waiting[0])
			y.waiting = y.waiting[1:]
			i.used++
			if i.cold {
				y.cold++
				i.cold = false
			}
			y.running = append(y.running, running{i.id, y.now + d, d})
		}
	}
	y.demand.Peak = max(y.demand.Peak, len(y.running))
}

func (y *yard) ask() {
	y.gov.Note(y.now, y.demand)
	y.demand = Demand{Peak: len(y.running)}
	l := Load{Waiting: len(y.waiting), Starting: len(y.starting), Ready: len(y.ready), Busy: len(y.running), Ramp: y.ramp, Slots: y.slots, Left: 1000, StartsLeft: 128 - len(y.starting)}
	y.plan, y.planned = y.gov.Plan(y.now, l), y.now
	for range l.Bound(y.plan.Want - l.Ready - l.Starting) {
		y.starting = append(y.starting, birth{y.now + y.start, y.now})
	}
	y.most = max(y.most, len(y.ready)+len(y.starting))
}

func (y *yard) retire() {
	for k := 0; k < len(y.ready) && len(y.ready)+len(y.starting) > y.plan.Keep; {
		i := y.ready[k]
		if i.used > 0 || y.now-i.idle < y.plan.IdleKeep {
			k++
			continue
		}
		y.idled += y.now - i.born
		y.ready = slices.Delete(y.ready, k, k+1)
	}
}

// The loads, after the shapes that Shahrad et al. (Serverless in the Wild, ATC 2020) report of Azure: timers, Poisson
// streams whose frequency spans orders of magnitude, and sessions of several calls.

func periodic(rng *rand.Rand, period, end time.Duration) (at []time.Duration) {
	for t := time.Duration(rng.Float64() * float64(period)); t < end; t += period {
		at = append(at, t+time.Duration(rng.Float64()*float64(200*time.Millisecond)))
	}
	return at
}

func poisson(rng *rand.Rand, mean, end time.Duration) (at []time.Duration) {
	for t := time.Duration(rng.ExpFloat64() * float64(mean)); t < end; t += time.Duration(rng.ExpFloat64() * float64(mean)) {
		at = append(at, t)
	}
	return at
}

// sessions come at random; in one, up to three users call a few seconds apart.
func sessions(rng *rand.Rand, mean, end time.Duration) (at []time.Duration) {
	for _, t := range poisson(rng, mean, end) {
		for range 1 + rng.IntN(3) {
			u := t
			for range 5 + rng.IntN(20) {
				at = append(at, u)
				u += time.Duration(rng.ExpFloat64() * float64(8*time.Second))
			}
		}
	}
	slices.Sort(at)
	return at
}

// logUniform draws between a and b, each octave as likely as the other.
func logUniform(rng *rand.Rand, a, b time.Duration) time.Duration {
	return time.Duration(float64(a) * math.Pow(float64(b)/float64(a), rng.Float64()))
}
