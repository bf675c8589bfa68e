package scale

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const (
	loadEnd  = 24 * time.Hour
	loadRuns = 60 // functions of each shape
)

var timers = []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 20 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour}

var shapes = []struct {
	name string
	make func(rng *rand.Rand) []time.Duration
}{
	{"periodic", func(rng *rand.Rand) []time.Duration { return periodic(rng, timers[rng.IntN(len(timers))], loadEnd) }},
	{"poisson", func(rng *rand.Rand) []time.Duration {
		return poisson(rng, logUniform(rng, 20*time.Second, 6*time.Hour), loadEnd)
	}},
	{"bursty", func(rng *rand.Rand) []time.Duration {
		return sessions(rng, logUniform(rng, 10*time.Minute, 6*time.Hour), loadEnd)
	}},
}

// bill is what a policy cost and gave.
type bill struct {
	calls, cold int
	seconds     float64 // of instances
}

// day plays the same day to a policy for every function of one shape.
func day(p Policy, shape func(*rand.Rand) []time.Duration) (b bill) {
	for n := range loadRuns {
		rng := rand.New(rand.NewPCG(uint64(n), 7))
		at := shape(rng)
		mean := math.Exp(rng.NormFloat64()) * 0.3
		y := &yard{gov: p.New(Facts{Slots: 1}), start: 500 * time.Millisecond,
			exec: func() time.Duration { return time.Duration((0.5 + rng.Float64()) * mean * float64(time.Second)) }}
		y.run(at, loadEnd)
		b.calls, b.cold, b.seconds = b.calls+y.calls, b.cold+y.cold, b.seconds+y.idled.Seconds()
	}
	return b
}

// all plays every shape.
func all(t *testing.T, p Policy, name string) (sum bill) {
	for _, s := range shapes {
		b := day(p, s.make)
		t.Logf("%-14s %-9s %6d calls %5d cold %8.0f instance seconds", name, s.name, b.calls, b.cold, b.seconds)
		sum.calls, sum.cold, sum.seconds = sum.calls+b.calls, sum.cold+b.cold, sum.seconds+b.seconds
	}
	return sum
}

func TestFewerColdStartsForTheSameMemory(t *testing.T) {
	fixed := all(t, Fixed{10 * time.Minute}, "fixed 10m")
	same := Default()
	same.Worth = 90 * time.Minute // the price at which it spends about what the fixed rule does
	if b := all(t, same, "same memory"); b.seconds > fixed.seconds || 2*b.cold > fixed.cold {
		t.Errorf("%d cold starts in %.0f s, the fixed rule has %d in %.0f s: want half, in no more", b.cold, b.seconds, fixed.cold, fixed.seconds)
	}
	half := Default()
	half.Worth = 15 * time.Minute
	if b := all(t, half, "half memory"); 2*b.seconds > fixed.seconds || b.cold > fixed.cold {
		t.Errorf("%d cold starts in %.0f s, the fixed rule has %d in %.0f s: want no more, in half", b.cold, b.seconds, fixed.cold, fixed.seconds)
	}
}

// burst gives n calls within 100 ms to a function that was seen before, and returns its yard.
func burst(p Policy, n int, exec time.Duration) *yard {
	y := &yard{gov: p.New(Facts{Slots: 1}), start: 200 * time.Millisecond, exec: func() time.Duration { return exec }}
	var at []time.Duration
	for k := range 5 {
		at = append(at, time.Duration(k)*7*time.Second)
	}
	for k := range n {
		at = append(at, 3*time.Minute+time.Duration(k)*100*time.Millisecond/time.Duration(n))
	}
	y.run(at, 4*time.Minute)
	return y
}

func TestBurstIsSmoothedByTheQueue(t *testing.T) {
	y := burst(Default(), 1000, 50*time.Millisecond)
	slices.Sort(y.waits)
	p99 := y.waits[len(y.waits)*99/100]
	t.Logf("1000 calls of 50 ms: at most %d instances, p99 wait %v", y.most, p99)
	if y.most > 600 || p99 > 500*time.Millisecond {
		t.Errorf("%d instances, p99 wait %v: want at most 600 and 500 ms", y.most, p99)
	}
	if y := burst(Default(), 1000, 5*time.Millisecond); y.most > 120 {
		t.Errorf("%d instances for a burst of 5 s of work", y.most)
	}
	if y := burst(Default(), 100, 30*time.Second); y.most < 100 {
		t.Errorf("%d instances for 100 calls that run for half a minute: a queue cannot smooth those", y.most)
	}
}

func TestSteadyLoadHasRoom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	y := &yard{gov: Default().New(Facts{Slots: 1}), start: 300 * time.Millisecond, exec: func() time.Duration { return 100 * time.Millisecond }}
	y.run(poisson(rng, 5*time.Millisecond, 15*time.Minute), 15*time.Minute) // 20 at once
	late := 0
	for _, w := range y.waits[len(y.waits)/2:] {
		if w > 0 {
			late++
		}
	}
	t.Logf("%d of %d calls waited, %d instances at the end", late, len(y.waits)/2, len(y.ready))
	if late*20 > len(y.waits)/2 || len(y.ready) > 40 || len(y.ready) < 25 {
		t.Errorf("%d of %d calls waited with %d instances for 20 at once", late, len(y.waits)/2, len(y.ready))
	}
}

func TestSurplusGoesLateAndTheLastIsReleased(t *testing.T) {
	g := Default().New(Facts{Slots: 1})
	g.Note(0, Demand{Arrivals: 1})
	g.Note(time.Second, Demand{Arrivals: 99, Done: 100, Busy: 100 * time.Second, Peak: 50})
	if p := g.Plan(2*time.Second, Load{Ready: 50, Slots: 1}); p.Keep != 50 {
		t.Errorf("two seconds after the peak %d of 50 are kept", p.Keep)
	}
	now, p := 2*time.Second, Plan{Again: time.Second}
	for ready := 50; p.Again > 0; {
		now += p.Again
		p = g.Plan(now, Load{Ready: ready, Slots: 1})
		ready = min(ready, p.Keep)
	}
	if p.Keep != 0 || now > 20*time.Minute || now < 30*time.Second {
		t.Errorf("at %v %d are kept for ever", now, p.Keep)
	}
}
