package scale

import (
	"testing"
	"time"
	"unsafe"
)

func TestWithoutKnowledgeStartsAreRamped(t *testing.T) {
	for _, c := range []struct {
		name string
		load Load
		want int
	}{
		{"one for each waiting call", Load{Waiting: 3, Slots: 1, Left: 10, StartsLeft: 10}, 3},
		{"those on their way count", Load{Waiting: 3, Starting: 2, Slots: 1, Left: 10, StartsLeft: 10}, 1},
		{"slots are filled", Load{Waiting: 11, Slots: 10, Left: 10, StartsLeft: 10}, 2},
		{"never below zero", Load{Waiting: 1, Starting: 5, Slots: 1, Left: 10, StartsLeft: 10}, 0},
		{"the limit holds", Load{Waiting: 9, Slots: 1, Left: 2, StartsLeft: 10}, 2},
		{"storms are bounded", Load{Waiting: 9, Slots: 1, Left: 9, StartsLeft: 4}, 4},
		{"over the limit already", Load{Waiting: 9, Slots: 1, Left: -1, StartsLeft: 4}, 0},
		{"a queue is no proof of need", Load{Waiting: 200, Slots: 1, Ramp: 4, Left: 900, StartsLeft: 128}, 4},
		{"as many again as serve", Load{Waiting: 200, Slots: 1, Ready: 16, Ramp: 4, Left: 900, StartsLeft: 128}, 16},
		{"those on their way are of the ramp", Load{Waiting: 200, Starting: 4, Slots: 1, Ramp: 4, Left: 900, StartsLeft: 128}, 0},
		{"one at a time after a failure", Load{Waiting: 9, Slots: 1, Left: 9, StartsLeft: 9, OnProbation: true}, 1},
		{"and not a second one", Load{Waiting: 9, Starting: 1, Slots: 1, Left: 9, StartsLeft: 9, OnProbation: true}, 0},
	} {
		for _, p := range []Policy{Default(), Fixed{time.Minute}} {
			plan := p.New(Facts{Slots: c.load.Slots}).Plan(0, c.load)
			if got := c.load.Bound(plan.Want - c.load.Ready - c.load.Starting); got != c.want {
				t.Errorf("%s, %T: %d, want %d", c.name, p, got, c.want)
			}
		}
	}
}

func TestGovernorIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(governor{}); n > 256 {
		t.Errorf("a governor has %d bytes: a million of them live at once", n)
	}
}

func TestPeriodIsLearned(t *testing.T) {
	var g gaps
	for range 4 {
		g.add(3600)
	}
	const worth = 1200
	if keep, _ := g.hold(60, worth); keep {
		t.Error("an instance is kept a minute after a call that comes each hour")
	}
	keep, until := g.hold(600, worth)
	if keep || until > 3600 || until < 3300 {
		t.Errorf("after ten minutes: keep %t until %.0f s, want released until shortly before the hour", keep, until)
	}
	keep, until = g.hold(until, worth)
	if !keep || until < 3600 || until > 3900 {
		t.Errorf("shortly before the hour: keep %t until %.0f s", keep, until)
	}
	for range 8 {
		g.add(900) // the timer was changed
	}
	if keep, _ := g.hold(900, worth); !keep {
		t.Error("a new period is not learned")
	}
}

func TestDenseCallsHoldTheInstance(t *testing.T) {
	var often, seldom gaps
	for k := range 60 {
		often.add(20 + float64(k%30)*4)
		seldom.add(5000 + float64(k)*700)
	}
	for _, at := range []time.Duration{2, 10, 60, 110} {
		g := Default().New(Facts{Slots: 1}).(*governor)
		g.gaps, g.arrived = often, 0
		if p := g.Plan(at*time.Second, Load{Ready: 1, Slots: 1}); p.Keep != 1 {
			t.Errorf("released after %d s, with calls every minute or so", at)
		}
	}
	if keep, until := seldom.hold(60, 600); keep || until < 1000 {
		t.Errorf("kept a minute after one of a few calls a day: %t until %.0f s", keep, until)
	}
}

func TestGapsNeverOverflow(t *testing.T) {
	var g gaps
	for k := range 100_000 {
		g.add(1 + float64(k*k%100_003))
		sum := int(g.near) + int(g.beyond)
		for _, n := range g.bins {
			sum += int(n)
		}
		if sum != int(g.total) || sum > gapsMax+1 {
			t.Fatalf("after %d gaps: %d counted, total %d", k+1, sum, g.total)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	for n, spoil := range []func(*Adaptive){
		func(a *Adaptive) { a.Worth = 0 }, func(a *Adaptive) { a.Utilization = 1.5 }, func(a *Adaptive) { a.Events = 0 },
		func(a *Adaptive) { a.WindowMax = a.WindowMin - 1 }, func(a *Adaptive) { a.DownAfter = -1 },
	} {
		a := Default()
		if spoil(a); a.Validate() == nil {
			t.Errorf("bad setting %d passes", n)
		}
	}
}

// BenchmarkPlan is one question to a governor with a full history, at rest: the dearest one.
func BenchmarkPlan(b *testing.B) {
	g := Default().New(Facts{Slots: 1}).(*governor)
	for k := range 100 {
		g.gaps.add(1 + float64(k*k%5000))
	}
	g.arrived = 0
	b.ReportAllocs()
	for b.Loop() {
		g.Plan(3*time.Minute, Load{Ready: 1, Slots: 1})
	}
}
