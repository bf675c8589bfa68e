package scale

import "time"

// Fixed starts an instance for each slot that the queue lacks and stops one that was idle for KeepAlive: the rule of
// most platforms, and the measure of better ones.
type Fixed struct {
	KeepAlive time.Duration // more than 0
}

// New returns the rule itself: it learns nothing.
func (f Fixed) New(Facts) Governor { return f }

// Note does nothing.
func (f Fixed) Note(time.Duration, Demand) {}

// Plan asks for what the queue lacks.
func (f Fixed) Plan(_ time.Duration, l Load) Plan {
	return Plan{Want: l.ramped(), IdleKeep: f.KeepAlive}
}
