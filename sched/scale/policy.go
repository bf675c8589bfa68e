package scale

import "time"

// A Policy makes a Governor for each version. The scheduler's own is the default; the simulator puts others in its
// place to compare them on the same load. One policy serves many schedulers at once: New must not change it.
type Policy interface {
	New(v Facts) Governor
}

// Facts are what is known of a version before its first call.
type Facts struct {
	Slots       int // calls one instance serves at once, at least 1
	MemoryMiB   int // of one instance
	Provisioned int // instances the owner wants at all times; a floor that the scheduler holds itself, 0 for none
}

// A Governor decides how many instances one version has. It has one caller, reads no clock and draws no numbers:
// now is the time since the scheduler's first event and never falls.
type Governor interface {
	// Note hears what happened since it was last called.
	Note(now time.Duration, d Demand)
	// Plan says how many instances there should be. It is asked every Plan.Again, and at once when a call has to wait.
	Plan(now time.Duration, l Load) Plan
}

// Demand is what happened to one version.
type Demand struct {
	Arrivals int           // calls that came
	Done     int           // calls that ended
	Busy     time.Duration // summed run time of those that ended
	Started  int           // instances that became ready
	Start    time.Duration // summed time from the decision to start them to ready
	Lost     int           // ready instances that went away without being told to
	Peak     int           // most slots in use at one instant
}

// A Load is the state of one version at the instant of the question.
type Load struct {
	Waiting     int  // calls without a slot
	Starting    int  // instances on their way
	Ready       int  // instances that serve
	Busy        int  // slots of them at work or leased
	Ramp        int  // instances on their way that Ready need not justify; 0 for no bound at all
	Slots       int  // calls one instance serves at once
	Left        int  // instances that limits still allow
	StartsLeft  int  // starts that may still be in flight
	OnProbation bool // the last start failed: one start at a time until one succeeds
}

// A Plan is the answer of a Governor. Limits are the scheduler's to hold: it starts fewer when they say so.
type Plan struct {
	Want     int           // instances, starting ones included; fewer are there: start the rest
	Keep     int           // of more than so many, one idle for IdleKeep is stopped; at most Want
	IdleKeep time.Duration // how long an instance above Keep stays idle before it is stopped
	Again    time.Duration // ask again after so long at the latest; 0: not before a call comes
}

// Lively is the Again below which a governor hears of arrivals in sums, when it is asked again. With a longer one,
// or none, the next arrival is told at once.
const Lively = time.Second

// Bound returns how many of n wanted starts the limits allow now, 0 or more.
func (l Load) Bound(n int) int {
	if l.OnProbation {
		n = min(n, 1-l.Starting)
	}
	return max(min(n, l.Left, l.StartsLeft), 0)
}

// ramped returns how many instances a queue asks for while nothing is known of the run time: one for every slot that
// it lacks, but no more on their way than serve already, or than Ramp at the beginning. A queue that a take-over or a
// burst left is often served by the first few instances while a start for each of its calls would keep the hosts from
// finishing any; where more are needed, each round of starts doubles what there is.
func (l Load) ramped() int {
	slots := max(l.Slots, 1)
	n := (l.Waiting+slots-1)/slots - l.Starting
	if l.Ramp > 0 {
		n = min(n, max(l.Ramp, l.Ready)-l.Starting)
	}
	return l.Ready + l.Starting + max(n, 0)
}
