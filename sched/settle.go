package sched

import (
	"math"
	"slices"

	"starling"
)

// A settle is what a part of a cut span observes until the leases from before the cut, of which one part may have more than its
// share of the function's limit, have ended. The parts' sums never pass the limit then: who has too many renews none of them, and
// the others leave as many unused.
type settle struct {
	span     starling.Key64 // the first key of the span
	withheld int            // slots of our share that others may still use
	open     instant        // until then they are withheld
	even     instant        // until then no lease is renewed while the function has more than its share here
}

// settleOf returns what the span of k observes, or nil.
func (s *Scheduler) settleOf(k starling.Key64) *settle {
	for n := range s.settles {
		if e := &s.settles[n]; e.span == spanOf(k) {
			return e
		}
	}
	return nil
}

// settleCut has a scheduler that begins without the state of the life before settle at its borders, which were drawn at the instant cut or
// earlier. It does not know what the other parts have, so until all leases from before the cut must have ended it grants nothing of
// a function that is cut there. Those that it takes over it may keep as far as they are within its share.
func (s *Scheduler) settleCut(cut instant) {
	end := cut + s.cfg.LeaseTTL + s.cfg.LeaseGrace
	if end <= s.now {
		return
	}
	for _, border := range []starling.Key64{s.keys.Lo, s.keys.Hi} {
		if spanOf(border) != border && s.settleOf(border) == nil {
			s.settles = append(s.settles, settle{spanOf(border), math.MaxInt32, end, never})
		}
	}
}

// settleSoon sets the end of settling at the beginning of granting: what was taken over is renewed from now on.
func (s *Scheduler) settleSoon() {
	for n := range s.settles {
		if e := &s.settles[n]; e.even == never {
			e.even = s.now + s.cfg.LeaseTTL + s.cfg.LeaseGrace
		}
	}
}

// settle gives versions their full share when the other parts of their span must be within their own.
func (s *Scheduler) settle() {
	for n := range s.settles {
		if e := &s.settles[n]; e.withheld > 0 && e.open <= s.now {
			e.withheld = 0
			s.relimit(e.span)
		}
	}
	s.settles = slices.DeleteFunc(s.settles, func(e settle) bool { return e.withheld == 0 && e.even <= s.now })
}

// relimit sets the limits of the versions of a span, and serves those that waited for them.
func (s *Scheduler) relimit(span starling.Key64) {
	for _, v := range s.inOrder() {
		if v.known() && spanOf(v.config.Key()) == span {
			s.setLimits(v, v.config)
			s.wake(v.account)
			s.pump(v, nil, 0, 0)
		}
	}
}

// snapSettles copies what spans observe. What was to be observed from another instant on is observed as long as both.
func (s *Scheduler) snapSettles(out *Snapshot, at instant) {
	for _, e := range s.settles {
		if left := max(e.open, e.even) - at; left > 0 {
			out.Settling = append(out.Settling, SettleState{Key: e.span, Withheld: e.withheld, Left: left})
		}
	}
}

// restoreSettles goes on with what the life before observed.
func (s *Scheduler) restoreSettles(list []SettleState) {
	for _, st := range list {
		if st.Left > 0 && s.settleOf(st.Key) == nil {
			s.settles = append(s.settles, settle{spanOf(st.Key), st.Withheld, s.now + st.Left, s.now + st.Left})
		}
	}
}
