package advise

import (
	"math"
	"strings"
	"testing"
	"time"

	"starling"
)

const ms = time.Millisecond

// The numbers are worked out by hand from the comments of model.compute.
func TestAdvice(t *testing.T) {
	little := Observation{MemoryMiB: 1769, Timeout: 3 * time.Second, Calls: 1000, Run: 20 * ms, RunP99: 40 * ms, CPU: ms, CPUCalls: 1000, Demand: .05,
		PeakP99: 20 << 20, PeakMax: 21 << 20}
	with := func(change func(o *Observation)) Observation {
		o := little
		change(&o)
		return o
	}
	for name, c := range map[string]struct {
		o       Observation
		verdict Verdict
		best    int           // MiB
		run     time.Duration // there
		saves   float64       // share
	}{
		// 1 ms of CPU fits in the quota of a quarter CPU: no slower, 128/1769 of the memory.
		"waits, uses little": {little, Shrink, 128, 20 * ms, 1 - 128./1769},
		// 130 MiB and a quarter are 162.5: the next step is 192.
		"needs its memory": {with(func(o *Observation) { o.PeakP99, o.PeakMax = 130<<20, 131<<20 }), Shrink, 192, 20 * ms, 1 - 192./1769},
		// One peak above the p99 with its headroom must fit, too.
		"one high peak": {with(func(o *Observation) { o.PeakMax = 500 << 20 }), Shrink, 512, 20 * ms, 1 - 512./1769},
		// Computes all the time: half the memory would take twice as long and cost the same.
		"computes": {with(func(o *Observation) { o.CPU, o.Demand = 20*ms, .9 }), Keep, 1769, 20 * ms, 0},
		// One thread cannot use two CPUs: half of it is as quick, and a tenth slower is fine: 1664 MiB are 0.94 CPUs.
		"one thread with two CPUs": {with(func(o *Observation) { o.MemoryMiB, o.CPU, o.Demand = 3538, 20*ms, .9 }), Shrink, 1664, 21260 * time.Microsecond, .5},
		// All of a quarter CPU below 442 MiB: 128 have the same.
		"computes on the smallest share": {with(func(o *Observation) { o.MemoryMiB, o.CPU, o.Demand = 442, 5*ms, .25 }), Shrink, 128, 20 * ms, 1 - 128./442},
		// What is throttled now asks for more CPU the more it gets: half again as much is not enough to run at full speed.
		"computes on half a CPU": {with(func(o *Observation) {
			o.MemoryMiB, o.Run, o.CPU, o.Demand = 884, 19300*time.Microsecond, 10200*time.Microsecond, .5
		}), Keep, 884, 19300 * time.Microsecond, 0},
		"ran out": {with(func(o *Observation) { o.MemoryMiB, o.OutOfMemory, o.PeakMax = 256, 3, 256<<20 }), Grow, 512, 20 * ms, -1},
		// File cache fills what there is; without a call that ran out that is no reason to grow.
		"full but alive": {with(func(o *Observation) { o.MemoryMiB, o.PeakP99, o.PeakMax = 256, 250<<20, 256<<20 }), Keep, 256, 20 * ms, 0},
		"too few":        {with(func(o *Observation) { o.Calls = 99 }), Unknown, 0, 0, 0},
		"no CPU known":   {with(func(o *Observation) { o.CPUCalls = 19 }), Unknown, 0, 0, 0},
		"no peak known":  {with(func(o *Observation) { o.PeakP99 = 0 }), Unknown, 0, 0, 0},
	} {
		a := For(c.o, DefaultConfig())
		if a.Verdict != c.verdict || a.Best.MemoryMiB != c.best || (a.Best.Run-c.run).Abs() > ms/10 || math.Abs(a.SavesShare-c.saves) > .01 || a.Reason == "" {
			t.Errorf("%s: %s to %d MiB, %v, saves %.3f (%s)", name, a.Verdict, a.Best.MemoryMiB, a.Best.Run, a.SavesShare, a.Reason)
		}
	}
}

func TestAdviceTellsOtherSizes(t *testing.T) {
	o := Observation{MemoryMiB: 1769, Timeout: 3 * time.Second, Calls: 20_000, Run: 30 * ms, RunP99: 60 * ms, CPU: 20 * ms, CPUCalls: 5000, Demand: .6,
		PeakP99: 20 << 20, PeakMax: 21 << 20}
	a := For(o, DefaultConfig())
	if a.Confidence != "good" || len(a.Sizes) != 3 {
		t.Fatalf("%+v", a)
	}
	half := a.Sizes[0] // 10 ms of waiting and 20 ms on half a CPU
	if half.MemoryMiB != 884 || (half.Run-50*ms).Abs() > ms/10 || (half.RunP99-100*ms).Abs() > ms/5 || math.Abs(half.GiBSeconds-884./1024*.05*20_000) > 1 {
		t.Errorf("at half the memory: %+v", half)
	}
	quick := DefaultConfig()
	quick.Slower = 1 // twice as slow is fine, but computing costs the same everywhere: waiting on less memory is what saves
	if b := For(o, quick); b.Verdict != Shrink || b.Best.Run > 2*o.Run || b.SavesShare < .1 {
		t.Errorf("with time to spare: %s to %+v, saves %v", b.Verdict, b.Best, b.SavesShare)
	}
	o.Timeout = 80 * ms
	if b := For(o, quick); b.Best.RunP99 >= o.Timeout {
		t.Errorf("the p99 of %v is beyond the timeout", b.Best.RunP99)
	}
}

// A call that needs more than a quota stops until the next period, one that needs less does not.
func TestModelStopsAtTheQuota(t *testing.T) {
	o := Observation{MemoryMiB: starling.MemoryOfCPU, Calls: 100, Run: 60 * ms, RunP99: 60 * ms, CPU: 60 * ms, CPUCalls: 100, Demand: .01}
	m := modelOf(o)
	for mem, want := range map[int]float64{128: .1*2 + .06 - 2*.025, 1000: .1 + .06 - .05653, 1100: .06, 3538: .06} {
		if got := m.at(mem); math.Abs(got-want) > 1e-4 {
			t.Errorf("%d MiB: %v s, want %v", mem, got, want)
		}
	}
	o.Demand = .5 // much used: the average
	if got, want := modelOf(o).at(128), .24; math.Abs(got-want) > 1e-9 {
		t.Errorf("much used: %v s, want %v", got, want)
	}
}

func TestConfigRefusesWhatCannotBe(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for word, c := range map[string]Config{"calls": {0, .2, .1}, "headroom": {1, -1, .1}, "slower": {1, .2, math.NaN()}} {
		if err := c.Validate(); starling.KindOf(err) != starling.Invalid || !strings.Contains(err.Error(), word) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
