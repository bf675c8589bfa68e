// Package scale says how many instances of a version to start now. It is pure.
//
// The policy is the first one: an instance for every slot the queue lacks, but no more on their way than serve
// already, or than Ramp at the beginning. A queue that a take-over or a burst left is often served by the first few
// instances while a start for each of its calls would keep the hosts from finishing any; where more are needed, each
// round of starts doubles what there is. Windows, rates and learned idle times come in here, behind the same question.
package scale

// A Load is the state of one version.
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

// Starts returns how many instances to start now, 0 or more.
func Starts(l Load) int {
	slots := max(l.Slots, 1)
	n := (l.Waiting+slots-1)/slots - l.Starting
	if l.Ramp > 0 {
		n = min(n, max(l.Ramp, l.Ready)-l.Starting)
	}
	if l.OnProbation {
		n = min(n, 1-l.Starting)
	}
	return max(min(n, l.Left, l.StartsLeft), 0)
}
