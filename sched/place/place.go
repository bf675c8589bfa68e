// Package place says on which host a new instance goes. It is pure.
package place

import (
	"math/rand/v2"

	"starling"
)

// A Candidate is what is known of one host.
type Candidate struct {
	Node     starling.NodeID
	FreeMiB  int  // memory a new instance may claim
	TotalMiB int  // memory of all instances
	Starting int  // starts in flight there
	CPU      int  // busy share of all cores, in thousandths
	Warm     bool // the version's code is unpacked there
	Pooled   bool // a ready sandbox of the runtime waits there
	Same     int  // instances of the same version there
	SameZone int  // instances of the same version in the host's zone
	Bound    int  // CPU share that the instances there use while they work, by profile, in thousandths of all cores
}

// A Want is what the instance needs.
type Want struct {
	MemoryMiB   int
	StartingMax int // hosts with so many starts in flight are passed over
	CPU         int // share of its time that the version computes, by profile, in thousandths; 0 when unknown
}

// Weights turn what speaks for and against a host into one number. Each is in the same, arbitrary unit.
type Weights struct {
	Warm     int // code on the spot saves a fetch
	Pooled   int // a ready sandbox saves a clone
	Headroom int // for a host that is wholly free
	CPU      int // against a host that is wholly busy
	Same     int // against each instance of the version already there, up to 8
	Zone     int // against each instance of the version in the zone, up to 8
	Starting int // against each start in flight there
	Mix      int // against a version that only computes on a host whose instances only compute
}

// DefaultWeights prefer a warm host to a spread one for the first few instances, and spread after that.
func DefaultWeights() Weights {
	return Weights{Warm: 300, Pooled: 200, Headroom: 200, CPU: 200, Same: 60, Zone: 20, Starting: 20, Mix: 200}
}

// Choose returns the index of the best candidate that has room, or -1. rng breaks ties, so that schedulers that
// know the same reports do not all choose the same host.
func Choose(cands []Candidate, want Want, w Weights, rng *rand.Rand) int {
	best, bestScore, ties := -1, 0, 0
	for i := range cands {
		c := &cands[i]
		if c.FreeMiB < want.MemoryMiB || c.Starting >= want.StartingMax {
			continue
		}
		switch s := Score(c, want, w); {
		case best < 0 || s > bestScore:
			best, bestScore, ties = i, s, 1
		case s == bestScore:
			if ties++; rng.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best
}

// Score returns what speaks for c less what speaks against it, in the unit of the weights; c has room.
func Score(c *Candidate, want Want, w Weights) int {
	s := -w.Mix*min(c.Bound, 1000)*want.CPU/1_000_000 - w.CPU*c.CPU/1000 - w.Same*min(c.Same, 8) - w.Zone*min(c.SameZone, 8) - w.Starting*c.Starting
	if c.TotalMiB > 0 {
		s += w.Headroom * c.FreeMiB / c.TotalMiB
	}
	if c.Warm {
		s += w.Warm
	}
	if c.Pooled {
		s += w.Pooled
	}
	return s
}
