package sched

import (
	"time"

	"starling"
)

// A stock is a pool with ready sandboxes.
type stock struct {
	isolation starling.Isolation // empty for process
	runtime   starling.Runtime
}

// stocked returns the runtimes with ready sandboxes of isolation process, which is what a hand-over tells of the pools: the rest
// comes with the next report.
func (h *host) stocked() (out []starling.Runtime) {
	for _, p := range h.pools {
		if p.isolation == "" {
			out = append(out, p.runtime)
		}
	}
	return out
}

// gives reads what a host says of itself; one that says nothing gives process.
func gives(said starling.Isolations) starling.Isolations {
	if said == 0 {
		return starling.OnlyProcess
	}
	return said
}

// suits reports whether h can give v's isolation.
func (h *host) suits(v *version) bool { return h.gives.Has(v.config.Config.Isolation) }

// isStarved reports whether some start found no room since the last news of room.
func (s *Scheduler) isStarved() bool { return s.starved != [starling.IsolationCount]int{} }

// feed lets every start look for room again.
func (s *Scheduler) feed() { s.starved = [starling.IsolationCount]int{} }

// oldestFor returns the ready instance that is idle for the longest time on a host that suits v, or nil. Where the oldest of
// all is elsewhere it looks through the instances of the hosts that do.
func (s *Scheduler) oldestFor(v *version) *instance {
	i := s.oldest()
	if i == nil || i.host.suits(v) {
		return i
	}
	i = nil
	for _, h := range s.order {
		if !h.usable(s.now) || !h.suits(v) {
			continue
		}
		for o := h.all.front; o != nil; o = o.in[byHost].next {
			if o.state == isReady && o.spare() && (i == nil || o.idle < i.idle) {
				i = o
			}
		}
	}
	return i
}

// isolationPatience is how long calls wait for a host that gives their isolation: one that is started anew is back by then.
const isolationPatience = 2 * time.Second

// rejectHopeless refuses the calls that wait for an isolation which no host of this cluster gives any more. While no host
// was heard at all nothing is known.
func (s *Scheduler) rejectHopeless() {
	if len(s.hungry) == 0 || s.phase != Active {
		return
	}
	var given starling.Isolations
	for _, h := range s.order {
		if h.reported {
			given |= h.gives
		}
	}
	if given == 0 {
		return
	}
	for rank, i := range starling.IsolationKinds {
		switch {
		case given.Has(i):
			s.missing[rank] = 0
		case s.missing[rank] == 0:
			s.missing[rank] = s.now
		}
	}
	for n := len(s.hungry) - 1; n >= 0; n-- {
		if n >= len(s.hungry) || !s.hungry[n].known() {
			continue
		}
		v := s.hungry[n]
		if since := s.missing[v.config.Config.Isolation.Rank()]; since != 0 && s.now-since >= isolationPatience {
			s.rejectWaiting(v, int(v.waiting), starling.Unavailable, ReasonNoIsolation,
				"no living host gives isolation "+string(v.config.Isolation())+": start one, or deploy the function with another", isolationPatience)
		}
	}
}
