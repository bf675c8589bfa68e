package rival

import (
	"testing"
	"time"

	"starling/sched/scale"
)

const (
	s = time.Second
	m = time.Minute
)

var one = scale.Facts{Slots: 1, MemoryMiB: 128}

func TestKeepAliveStartsWhatTheQueueLacks(t *testing.T) {
	g := KeepAlive{10 * m}.New(one)
	for _, c := range []struct {
		l    scale.Load
		want int
	}{
		{scale.Load{Waiting: 3, Slots: 1}, 3},
		{scale.Load{Waiting: 3, Starting: 2, Ready: 5, Busy: 5, Slots: 1}, 8},
		{scale.Load{Waiting: 11, Slots: 10}, 2},
		{scale.Load{Ready: 4, Slots: 1}, 4},
	} {
		p := g.Plan(0, c.l)
		if p.Want != c.want || p.Keep != 0 || p.IdleKeep != 10*m || p.Again != 0 {
			t.Errorf("%+v: %+v, want %d instances, idle for 10 min", c.l, p, c.want)
		}
	}
}

// drive tells calls of one length at a steady pace, as a scheduler does: their arrivals, and their ends a run later.
func drive(g scale.Governor, from, to, every, run time.Duration, ready func() int) (p scale.Plan) {
	for now := from; now < to; now += every {
		d := scale.Demand{Arrivals: 1}
		if now-from >= run {
			d.Done, d.Busy = 1, run
		}
		g.Note(now, d)
		p = g.Plan(now, scale.Load{Ready: ready(), Busy: min(ready(), int(run/every)), Slots: 1})
	}
	return p
}

// 7 calls in flight on average need 7 / 0.7 = 10 instances.
func TestKnativeFollowsTheStableWindow(t *testing.T) {
	g := DefaultKnative().New(one)
	p := drive(g, 0, 3*m, 100*time.Millisecond, 700*time.Millisecond, func() int { return 10 })
	if p.Want != 10 && p.Want != 11 { // the last 0.1 s are not over
		t.Errorf("want %d, 10 expected", p.Want)
	}
	if p.Keep != p.Want || p.Again > 2*s {
		t.Errorf("%+v: the rule decides every 2 s and keeps what it wants", p)
	}
}

// 20 calls in flight for 6 s are 20/0.7 = 29 in the panic window, of which one instance is less than half; in the
// stable window they are a tenth of that. It panics, and does not scale down before 60 s without reason to.
func TestKnativePanics(t *testing.T) {
	g := DefaultKnative().New(one)
	g.Note(100*s, scale.Demand{Arrivals: 20})
	if p := g.Plan(100*s, scale.Load{Waiting: 20, Slots: 1}); p.Want != 1 {
		t.Fatalf("want %d at the first call, 1 expected: there is no history", p.Want)
	}
	var p scale.Plan
	for now := 101 * s; now <= 106*s; now += s {
		g.Note(now, scale.Demand{})
		p = g.Plan(now, scale.Load{Ready: 1, Busy: 1, Waiting: 19, Slots: 1})
	}
	if p.Want < 24 || p.Want > 29 {
		t.Fatalf("want %d after 6 s, the panic window asks for 24 to 29", p.Want)
	}
	panicked := p.Want
	g.Note(107*s, scale.Demand{Done: 20, Busy: 140 * s})
	for now := 108 * s; now <= 160*s; now += 2 * s {
		g.Note(now, scale.Demand{})
		if p = g.Plan(now, scale.Load{Ready: panicked, Slots: 1}); p.Want < panicked {
			t.Fatalf("down to %d at %s: still in panic", p.Want, now)
		}
	}
	for now := 162 * s; now <= 180*s; now += 2 * s {
		g.Note(now, scale.Demand{})
		p = g.Plan(now, scale.Load{Ready: max(p.Want, 1), Slots: 1})
	}
	if p.Want >= panicked/2 {
		t.Errorf("still %d of %d after the panic", p.Want, panicked)
	}
}

// At most half at each decision; the last one goes after the stable window and the grace.
func TestKnativeScalesToZero(t *testing.T) {
	g := DefaultKnative().New(one)
	g.Note(0, scale.Demand{Arrivals: 1})
	g.Plan(0, scale.Load{Waiting: 1, Slots: 1})
	g.Note(s, scale.Demand{Done: 1, Busy: s})
	gone := time.Duration(0)
	for now := 2 * s; now <= 120*s && gone == 0; now += s {
		g.Note(now, scale.Demand{})
		if p := g.Plan(now, scale.Load{Ready: 1, Slots: 1}); p.Want == 0 {
			gone = now
		}
	}
	if gone < 90*s || gone > 94*s {
		t.Errorf("the last instance goes after %s, want about 60 + 30 s", gone)
	}
	if p := g.Plan(130*s, scale.Load{Slots: 1}); p != (scale.Plan{}) {
		t.Errorf("with nothing there and nothing wanted: %+v, want rest", p)
	}
}

// 8 calls in flight on 4 instances are 2 each, wanted 0.7: 4 × 2 / 0.7 = 12 by proportion, but no more than max(8, 8).
func TestThresholdGrowsInProportionWithinItsBounds(t *testing.T) {
	g := DefaultThreshold().New(one)
	var p scale.Plan
	ready := 0
	for now := time.Duration(0); now <= 46*s; now += s {
		d := scale.Demand{}
		if now == 0 {
			d.Arrivals = 8 // run on and on
		}
		g.Note(now, d)
		p = g.Plan(now, scale.Load{Ready: ready, Busy: min(ready, 8), Waiting: max(8-ready, 0), Slots: 1})
		want := []int{1, 5, 10, 12}[min(now/(15*s), 3)] // 1 + 4, ×2, then 8 / 0.7
		if p.Want != want {
			t.Fatalf("at %s: want %d, %d expected", now, p.Want, want)
		}
		ready = p.Want
	}
	for now := 47 * s; now < 340*s; now += s {
		g.Note(now, scale.Demand{Done: btoi(now == 47*s) * 7, Busy: 47 * s * time.Duration(btoi(now == 47*s)*7)})
		p = g.Plan(now, scale.Load{Ready: ready, Busy: 1, Slots: 1})
		if p.Want < 12 {
			t.Fatalf("down to %d at %s: not settled for 5 min", p.Want, now)
		}
	}
	for now := 340 * s; now < 400*s; now += s {
		g.Note(now, scale.Demand{})
		p = g.Plan(now, scale.Load{Ready: p.Want, Busy: 1, Slots: 1})
	}
	if p.Want != 2 {
		t.Errorf("want %d in the end, one call in flight needs 1/0.7, so 2", p.Want)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestThresholdCoolsDown(t *testing.T) {
	g := DefaultThreshold().New(one)
	g.Note(0, scale.Demand{Arrivals: 1})
	g.Plan(0, scale.Load{Waiting: 1, Slots: 1})
	g.Note(s, scale.Demand{Done: 1, Busy: s})
	g.Plan(s, scale.Load{Ready: 1, Slots: 1})
	for now := 2 * s; ; now += s {
		g.Note(now, scale.Demand{})
		if p := g.Plan(now, scale.Load{Ready: 1, Slots: 1}); p.Want == 0 {
			if now < 300*s || now > 302*s {
				t.Errorf("gone at %s, want 300 s after the last call", now)
			}
			return
		}
		if now > 400*s {
			t.Fatal("never gone")
		}
	}
}

// call runs one call of a second at now and returns the plan of the moment after it.
func call(g scale.Governor, now time.Duration) scale.Plan {
	g.Note(now, scale.Demand{Arrivals: 1})
	g.Plan(now, scale.Load{Waiting: 1, Slots: 1})
	g.Note(now+s, scale.Demand{Done: 1, Busy: s})
	return g.Plan(now+s, scale.Load{Ready: 1, Slots: 1})
}

// Calls every 30 min of 1 s: idle for 29:59, so bin 29. Loaded at 29 min × 0.9 = 26:06 after the last, kept until
// 30 min × 1.1 = 33 min.
func TestHybridLoadsBeforeThePredictedCall(t *testing.T) {
	g := DefaultHybrid().New(one)
	var p scale.Plan
	for k := range 4 {
		p = call(g, time.Duration(k)*30*m)
		if p.Want != 1 || p.Keep != 1 || p.Again != 4*time.Hour-s+s {
			t.Fatalf("call %d: %+v, want the long keep-alive while little is known", k, p)
		}
	}
	for k := 4; k < 6; k++ {
		p = call(g, time.Duration(k)*30*m)
	}
	last := 150 * m
	if p.Want != 0 || p.Keep != 0 || p.IdleKeep != 0 || p.Again < 26*m || p.Again > 26*m+6*s {
		t.Fatalf("after the sixth call: %+v, want to be unloaded for 26:06", p)
	}
	p = g.Plan(last+s+p.Again, scale.Load{Slots: 1})
	if p.Want != 1 || p.Keep != 1 || p.Again < 6*m+50*s || p.Again > 6*m+58*s {
		t.Errorf("then: %+v, want one instance for 6:54", p)
	}
	if p = g.Plan(last+34*m, scale.Load{Ready: 1, Slots: 1}); p.Want != 0 || p.Again != 0 {
		t.Errorf("after the window: %+v, want nothing", p)
	}
}

// Idle times in every bin alike, then all beyond the range: neither says when the next call comes.
func TestHybridFallsBack(t *testing.T) {
	even, outside := DefaultHybrid().New(one).(*hybrid), DefaultHybrid().New(one).(*hybrid)
	for b := range 240 {
		even.learn(time.Duration(b) * m)
		outside.learn(5 * time.Hour)
	}
	for _, g := range []*hybrid{even, outside} {
		if load, keep := g.windows(); load != 0 || keep != 4*time.Hour {
			t.Errorf("load after %s, keep %s; want the keep-alive of 4 h", load, keep)
		}
	}
	even.learn(m) // one more changes little
	if v := even.variation(); v > 0.1 {
		t.Errorf("variation %.2f of even bins", v)
	}
}
