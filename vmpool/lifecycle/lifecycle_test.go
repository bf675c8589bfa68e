package lifecycle

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

func TestTranscripts(t *testing.T) {
	datadriven.RunTest(t, "testdata/instance", func(t *testing.T, d *datadriven.TestData) string {
		i := Instance{Slots: 1}
		if d.HasArg("slots") {
			d.ScanArgs(t, "slots", &i.Slots)
		}
		var out strings.Builder
		for _, word := range strings.Fields(d.Input) {
			ev, ok := parse(word)
			if !ok {
				d.Fatalf(t, "no event %q", word)
			}
			act := i.Step(ev)
			fmt.Fprintf(&out, "%-7s -> %s", word, i.State)
			if i.Busy > 0 {
				fmt.Fprintf(&out, " %d", i.Busy)
			}
			if act != Nothing {
				fmt.Fprintf(&out, ", %s", act)
			}
			out.WriteByte('\n')
			if err := i.Check(); err != nil {
				d.Fatalf(t, "%v", err)
			}
		}
		return out.String()
	})
}

func parse(word string) (Event, bool) {
	for ev, n := range eventNames {
		if n == word {
			return Event(ev), true
		}
	}
	return 0, false
}

// Whatever happens, an instance is destroyed at most once, never serves after it, and never more than its slots.
func TestRandomLives(t *testing.T) {
	for seed := uint64(1); seed <= 500; seed++ {
		rng := rand.New(rand.NewPCG(seed, 0))
		i := Instance{Slots: 1 + rng.IntN(4)}
		destroyed, frozen := 0, false
		for range 60 {
			ev := Event(rng.IntN(len(eventNames)))
			before := i
			switch act := i.Step(ev); act {
			case Destroy:
				destroyed++
			case Freeze:
				frozen = true
			case Thaw:
				if !frozen {
					t.Fatalf("seed %d: thawed what was not frozen", seed)
				}
				frozen = false
			case Refuse:
				if i != before {
					t.Fatalf("seed %d: a refused %s changed %+v to %+v", seed, ev, before, i)
				}
			}
			if err := i.Check(); err != nil || destroyed > 1 || destroyed == 1 && i.State != Ended {
				t.Fatalf("seed %d: %+v destroyed %d times: %v", seed, i, destroyed, err)
			}
			if i.Busy > 0 && frozen && i.State != Ended {
				t.Fatalf("seed %d: a frozen instance works", seed)
			}
		}
	}
}
