package sim

import (
	"flag"
	"os"
	"testing"
	"time"
)

var (
	seeds  = flag.Uint64("seeds", 300, "worlds to run")
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
	sum := newResult()
	for n := *from; n < *from+*seeds; n++ {
		w, err := RunSeed(n, *events, nil)
		steps += w.Steps()
		r := w.Result()
		sum.Calls, sum.Answered, sum.Cold, sum.starts = sum.Calls+r.Calls, sum.Answered+r.Answered, sum.Cold+r.Cold, sum.starts+r.starts
		if err != nil {
			t.Errorf("%v; replay with: make sim SEED=%d", err, n)
			if bad++; bad == 20 {
				t.FailNow()
			}
		}
	}
	d := time.Since(began).Seconds()
	t.Logf("%d seeds, %d events in %.1f s: %.0f seeds/s, %.0f events/s; %d calls, %d answered, %d cold, %d starts", *seeds, steps, d, float64(*seeds)/d, float64(steps)/d, sum.Calls, sum.Answered, sum.Cold, sum.starts)
	if sum.Answered < sum.Calls/2 || sum.Cold < sum.Answered/50 {
		t.Errorf("the worlds are too quiet: %d calls, %d answered, %d cold", sum.Calls, sum.Answered, sum.Cold)
	}
}
