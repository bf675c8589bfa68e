package sim

import (
	"flag"
	"os"
	"strings"
	"testing"
	"time"
)

var (
	seeds  = flag.Uint64("seeds", 1000, "worlds to run")
	seed   = flag.Uint64("seed", 0, "run this world only, with its trace")
	from   = flag.Uint64("from", 1, "first seed")
	events = flag.Int("events", 2000, "events with faults in each world")
)

// TestWhateverHappens runs the worlds of many seeds: no checker may see anything.
func TestWhateverHappens(t *testing.T) {
	if *seed != 0 {
		if _, err := RunSeed(*seed, *events, os.Stdout); err != nil {
			t.Fatal(err)
		}
		return
	}
	began, steps, bad := time.Now(), uint64(0), 0
	sum, unused := newResult(), time.Duration(0)
	var still, faulty Planned // changes in worlds without and with faults
	for n := *from; n < *from+*seeds; n++ {
		w, err := RunSeed(n, *events, nil)
		steps += w.Steps()
		unused = max(unused, w.checks.unused.worst)
		r := w.Result()
		sum.Calls, sum.Answered, sum.Cold, sum.starts = sum.Calls+r.Calls, sum.Answered+r.Answered, sum.Cold+r.Cold, sum.starts+r.starts
		if n%8 == 0 {
			still.add(&w.planned.Planned)
		} else {
			faulty.add(&w.planned.Planned)
		}
		if err != nil {
			t.Errorf("%v; replay with: make sim SEED=%d", err, n)
			if bad++; bad == 20 {
				t.FailNow()
			}
		}
	}
	d := time.Since(began).Seconds()
	t.Logf("%d seeds, %d events in %.1f s: %.0f seeds/s, %.0f events/s; %d calls, %d answered, %d cold, %d starts; unused permits were back after %v at most", *seeds, steps, d, float64(*seeds)/d, float64(steps)/d, sum.Calls, sum.Answered, sum.Cold, sum.starts, unused)
	for _, p := range []*Planned{&still, &faulty} {
		t.Logf("planned changes: %d moves, %d splits, %d merges, %d aborted, %d settled; nobody granted for p50 %v p99 %v max %v", p.Moves, p.Splits, p.Merges, p.Aborted, p.Settled, p.gap(0.5), p.gap(0.99), p.gap(1))
	}
	if sum.Answered < sum.Calls/2 || sum.Cold < sum.Answered/50 {
		t.Errorf("the worlds are too quiet: %d calls, %d answered, %d cold", sum.Calls, sum.Answered, sum.Cold)
	}
}

// TestEveryCheckerCanFail plants one bug after the other; the checker that it breaks must see it within a few worlds,
// and must see nothing when it alone is switched on and nothing is planted.
func TestEveryCheckerCanFail(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant Plant
		check Check
		want  string
		tune  func(c *Config)
	}{
		{"answers", PlantTwoAnswers, Check{Answers: true}, "got 2 answers", nil},
		{"starved", PlantLoseAnswer, Check{Starved: true}, "after its bound", nil},
		{"owners", PlantNoGuard, Check{Owners: true}, "grant", nil},
		{"tenants", PlantCorruptNet, Check{Tenants: true}, "serves", nil},
		{"fences", PlantNoFence, Check{Fences: true}, "honours a lease of epoch", stoppedFronts},
		{"slots", PlantSlots, Check{Slots: true}, "calls in", nil},
		{"memory", PlantMemory, Check{Slots: true}, "has given out", nil},
		{"limits", PlantLimit, Check{Limits: true}, "its limit is", nil},
		{"account", PlantLimit, Check{Account: true}, "slots in all partitions", nil},
		{"map", PlantGap, Check{Map: true}, "the map of index", nil},
		{"books", PlantStale, Check{Books: 1}, "the books of", nil},
		{"thaw after an open proposal", PlantThaw, Check{Owners: true}, "grant", manyOrders},
		{"two changes at once", PlantTwice, Check{Owners: true}, "at epoch", manyOrders},
		{"all permits twice", PlantPermits, Check{Account: true}, "slots in all partitions", manyOrders},
		{"stale state", PlantStaleState, Check{Owners: true}, "with a state after which", manyOrders},
		{"made anew while handed over", PlantAgain, Check{Owners: true}, "with a state after which", failingActors},
		{"leases from before", PlantHonour, Check{Fences: true}, "honours a lease of epoch", stoppedFronts},
		{"dead hosts not asked about", PlantCensus, Check{Limits: true}, "its limit is", lostHosts},
		{"permits", PlantHoard, Check{Permits: true}, "permits are not back", nil},
		{"rest: instances", PlantZombie, Check{Rest: true}, "the schedulers know of", nil},
		{"rest: answers", PlantLoseAnswer, Check{Rest: true}, "calls have no answer", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seen error
			for n := uint64(1); n <= 3000 && seen == nil; n++ {
				cfg := ForSeed(n)
				cfg.Plant, cfg.Check = c.plant, c.check
				if c.tune != nil {
					c.tune(&cfg)
				}
				_, seen = run(cfg, n, *events)
			}
			if seen == nil || !strings.Contains(seen.Error(), c.want) {
				t.Fatalf("with the bug planted the checker saw: %v", seen)
			}
			t.Log(seen)
		})
	}
}

// TestSameSeedSameWorld: a seed is a bug report only if it always tells the same story.
func TestSameSeedSameWorld(t *testing.T) {
	for n := uint64(1); n <= 10; n++ {
		var a, b strings.Builder
		if _, err := RunSeed(n, 1000, &a); err != nil {
			t.Fatal(err)
		}
		if _, err := RunSeed(n, 1000, &b); err != nil {
			t.Fatal(err)
		}
		if a.String() != b.String() {
			t.Fatalf("seed %d tells two stories", n)
		}
		if len(a.String()) < 10_000 {
			t.Fatalf("seed %d tells %d bytes", n, len(a.String()))
		}
	}
}

// manyOrders makes worlds in which much is changed as planned, and few proposals are answered.
func manyOrders(c *Config) {
	c.Managers, c.Fronts, c.Accounts = 3, 1, 3
	c.Net.Slow, c.Faults.Orders = 0.3, 20
	c.Faults.Cut, c.Faults.Healed = 1, 500*time.Millisecond
}

// lostHosts makes worlds in which hosts are cut off while owners die, and calls take long.
func lostHosts(c *Config) {
	c.Managers, c.Fronts, c.Hosts, c.HostMiB, c.Partitions, c.Accounts, c.Instances = 1, 1, 4, 2048, 8, 40, 1
	c.Faults = Faults{Cut: 4, Healed: 2 * time.Second, Crash: 2, Down: 300 * time.Millisecond}
	l := c.Load.(*chatter)
	l.functions, l.exec = l.functions[:1], 1500*time.Millisecond
}

// stoppedFronts makes worlds in which grants often wait at a stopped frontend while the partition moves.
func stoppedFronts(c *Config) {
	c.Managers, c.Fronts = 3, 2
	c.Faults = Faults{Pause: 4, Stopped: 800 * time.Millisecond, Crash: 0.5}
}

// failingActors makes worlds in which schedulers fail while their states are handed over, which takes long.
func failingActors(c *Config) {
	manyOrders(c)
	c.Faults.ActorFails = 5
}
