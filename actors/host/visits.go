package host

import (
	"starling"
	"starling/sched/flow"
)

// Visits returns what frontends of other nodes asked of this host since the last call, a Demand for each function in no
// order. This node's own frontend adds it to what it sees itself: a division of a machine's work among accounts that
// leaves out who comes from elsewhere would call the quiet ones of this node its heaviest. One caller at a time.
func (h *Host) Visits() []flow.Demand {
	counts := map[starling.FunctionRef]int{}
	for _, e := range h.all() {
		if e.visits.Load() == 0 {
			continue
		}
		e.mu.Lock()
		i := e.instance
		e.mu.Unlock()
		if i != nil {
			counts[i.Version().Function] += int(e.visits.Swap(0))
		}
	}
	out := make([]flow.Demand, 0, len(counts))
	for f, n := range counts {
		out = append(out, flow.Demand{Function: f, Arrived: n, Admitted: n})
	}
	return out
}

// Callers takes the accounts that call at this node's door, in any order: their calls pass this machine wherever they run, so an
// account beside them has not the machine for itself, either.
func (h *Host) Callers(ids []starling.AccountID) {
	h.accounts.mu.Lock()
	defer h.accounts.mu.Unlock()
	h.accounts.door = ids
}
