package scale

import "time"

// A Policy makes a Governor for each version. The scheduler's own is the default; the simulator puts others in its
// place to compare them on the same load.
type Policy interface {
	New(v Facts) Governor
}

// Facts are what is known of a version before its first call.
type Facts struct {
	Slots       int // calls one instance serves at once, at least 1
	MemoryMiB   int // of one instance
	Provisioned int // instances the owner wants at all times; a floor, 0 for none
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
}

// A Plan is the answer of a Governor. Limits are the scheduler's to hold: it starts fewer when they say so.
type Plan struct {
	Want     int           // instances, starting ones included; fewer are there: start the rest
	Keep     int           // of more than so many, one idle for IdleKeep is stopped; at most Want
	IdleKeep time.Duration // how long an instance above Keep stays idle before it is stopped
	Again    time.Duration // ask again after so long at the latest; 0: not before a call comes
}
