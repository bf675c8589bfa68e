// Package compare runs scaling policies side by side on the same calls: each function alone, in the smallest world that
// a governor can rule, as fast as a core allows. It answers what a policy costs (instance-seconds) and what callers
// feel (cold starts, waits); what hosts, networks and neighbours add is the business of the whole simulator.
// It is pure: the same calls give the same figures.
package compare

import (
	"time"

	"starling"
	"starling/sim/load"
)

// A Span is one call of one function.
type Span struct{ At, Exec time.Duration }

// A Trace is the calls of a load by function, so that functions can be replayed one after another, many times and
// by several readers at once. Nothing changes it.
type Trace struct {
	Functions []load.Function
	Calls     [][]Span // by function, in order of At
	Count     int
	Seconds   float64       // of run time, summed: no policy costs fewer, where instances have one slot
	End       time.Duration // when the last call was over, at least
}

// CallsMax is the most calls that Gather holds by default: 16 bytes each.
const CallsMax = 40_000_000

// Gather reads a load to its end. It refuses one of more than most calls, with kind TooLarge.
func Gather(l load.Load, most int) (*Trace, error) {
	t := &Trace{Functions: l.Functions()}
	t.Calls = make([][]Span, len(t.Functions))
	for c, more := l.Next(); more; c, more = l.Next() {
		if t.Count == most {
			return nil, starling.Errorf(starling.TooLarge, "gather load", "more than %d calls: replay a shorter time, or fewer functions", most)
		}
		t.Calls[c.Function] = append(t.Calls[c.Function], Span{c.At, c.Exec})
		t.Count++
		t.Seconds += c.Exec.Seconds()
		t.End = max(t.End, c.At+c.Exec)
	}
	return t, nil
}
