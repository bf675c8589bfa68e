// Package rival holds the scaling policies of other platforms as scale.Policy, each from its published description,
// so that a simulation can put them in the place of ours on the same load. It is pure.
//
// What the platforms leave to their surroundings (how long a container takes to start, how many the nodes can hold)
// is the simulator's and equal for all.
package rival

import (
	"time"

	"starling/sched/scale"
)

// Named is a policy with its name in tables.
type Named struct {
	Name   string
	Policy scale.Policy
}

// All returns every rival with its published defaults.
func All() []Named {
	return []Named{
		{"fixed 10 min", KeepAlive{10 * time.Minute}},
		{"fixed 20 min", KeepAlive{20 * time.Minute}},
		{"knative", DefaultKnative()},
		{"threshold", DefaultThreshold()},
		{"hybrid histogram", DefaultHybrid()},
	}
}

// KeepAlive starts an instance for every call that finds no slot and stops one that was idle for Idle: what the large
// clouds are known to do. Ten minutes is what OpenWhisk keeps, twenty what Azure kept (Shahrad et al., "Serverless in
// the Wild", USENIX ATC 2020, section 2).
type KeepAlive struct{ Idle time.Duration }

// New returns the rule itself, which remembers nothing.
func (k KeepAlive) New(scale.Facts) scale.Governor { return k }

// Note learns nothing.
func (k KeepAlive) Note(time.Duration, scale.Demand) {}

// Plan starts what the queue lacks.
func (k KeepAlive) Plan(_ time.Duration, l scale.Load) scale.Plan {
	return scale.Plan{Want: onDemand(l), IdleKeep: k.Idle}
}

// onDemand returns the instances that give every waiting call a slot of its own.
func onDemand(l scale.Load) int {
	return l.Ready + max(l.Starting, ceil(l.Waiting, max(l.Slots, 1)))
}

func ceil(a, b int) int { return (a + b - 1) / b }

// A flight counts calls in flight from what a governor is told, and their integral over time. The seam tells sums, at
// the latest when asked again, and an arrival at once after a longer rest (scale.Lively). What was told in sums is
// taken to be spread evenly, but ended calls never to have run longer than the run times that were told with them.
type flight struct {
	at    time.Duration
	calls int
}

// note returns the calls in flight × time since the note before, in seconds.
func (f *flight) note(now time.Duration, d scale.Demand) float64 {
	dt := now - f.at
	during := float64(f.calls) - float64(d.Done)/2
	if dt < scale.Lively {
		during += float64(d.Arrivals) / 2
	}
	f.at, f.calls = now, max(f.calls+d.Arrivals-d.Done, 0)
	after := f.calls
	if dt >= scale.Lively {
		after = max(after-d.Arrivals, 0)
	}
	return max(min(during*dt.Seconds(), d.Busy.Seconds()+float64(after)*dt.Seconds()), 0)
}
