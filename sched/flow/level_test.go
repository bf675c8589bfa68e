package flow

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestLevels replays testdata/level: each command is some looks at a host, the crowd in per cent of the processors; each
// line is an account with its calls at work, those refused since the last look and what part of a processor a call gets. The
// starts are those of the first account on eight processors, 99 for as many as come, and its rest is after a start of
// 100 ms in a sandbox of 40.
func TestLevels(t *testing.T) {
	l, tenants := &Level{}, map[string]*Tenant{}
	datadriven.RunTest(t, "testdata/level", func(t *testing.T, d *datadriven.TestData) string {
		percent, looks := 0, 1
		d.ScanArgs(t, "crowd", &percent)
		if d.HasArg("times") {
			d.ScanArgs(t, "times", &looks)
		}
		var ts []*Tenant
		var b strings.Builder
		var names []string
		for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
			var who string
			var now Tenant
			if _, err := fmt.Sscanf(line, "%s %d %d %g", &who, &now.Running, &now.Refused, &now.Part); err != nil {
				d.Fatalf(t, "%s: %v", line, err)
			}
			if tenants[who] == nil {
				tenants[who] = &Tenant{}
			}
			m := tenants[who]
			m.Running, m.Refused, m.Part = now.Running, now.Refused, now.Part
			ts, names = append(ts, m), append(names, who)
		}
		for range looks {
			l.Look(float64(percent)/100, ts)
		}
		fmt.Fprintf(&b, "crowd %.2f level %.2f starts %d rest %v\n", l.Crowd(), l.Height(), min(l.Starts(ts[0], 8), 99), l.Rest(ts[0], 100*time.Millisecond, 40*time.Millisecond))
		for i, m := range ts {
			if m.Bound != NoBound {
				fmt.Fprintf(&b, "%s: %d\n", names[i], m.Bound)
			}
		}
		return b.String()
	})
}

// TestALevelFillsTheProcessors: four quiet accounts and one that would have forty calls at work, on two processors: the
// quiet are never bounded, the processors are neither idle nor queued for, whatever a call takes.
func TestALevelFillsTheProcessors(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		rng := rand.New(rand.NewPCG(seed, seed))
		l, ts := &Level{}, []*Tenant{}
		for range 5 {
			ts = append(ts, &Tenant{Part: 1, Bound: NoBound})
		}
		idle, queue, looks := 0.0, 0.0, 30*int(time.Second/LookTime)
		for n := range looks {
			threads := 0
			for i, m := range ts {
				m.Running, m.Refused = 0, 0
				if i < 4 && rng.Float64() < 0.2 {
					m.Running = 1 + rng.IntN(2)
				}
				if i == 4 {
					m.Running = int(min(40, m.Bound))
					m.Refused = 40 - m.Running
				}
				threads += m.Running
			}
			l.Look(float64(threads)/2, ts)
			for i, m := range ts[:4] {
				if m.Bound != NoBound {
					t.Fatalf("seed %d: quiet account %d is bounded to %d", seed, i, m.Bound)
				}
			}
			if n > looks/3 {
				idle, queue = idle+max(2-float64(threads), 0), queue+max(float64(threads)-2, 0)
			}
		}
		if n := float64(looks) * 2 / 3; idle/n > 0.5 || queue/n > 1.5 {
			t.Errorf("seed %d: %.2f processors idle and %.2f threads queued on average", seed, idle/n, queue/n)
		}
	}
}
