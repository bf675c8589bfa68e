// Package flow says whom to admit: shares of limits, bounds of queues and pauses after failures. It is pure.
package flow

import (
	"math/bits"
	"math/rand/v2"
	"time"

	"starling"
)

// ReasonOverload is the stable word of a refusal by a node that has more work than it can do.
const ReasonOverload = "NodeOverload"

// Share returns the part of limit that belongs to the part of f's span inside r, where key is any key of the span.
// The shares of ranges that tile the span sum to the limit exactly.
func Share(limit int, key starling.Key64, r starling.Range) int {
	const span = 1 << 32
	lo := uint64(key) >> 32 << 32
	from, to := uint64(0), uint64(span)
	if uint64(r.Lo) > lo {
		from = min(uint64(r.Lo)-lo, span)
	}
	if r.Hi != 0 && uint64(r.Hi)-lo < span && uint64(r.Hi) > lo {
		to = uint64(r.Hi) - lo
	} else if r.Hi != 0 && uint64(r.Hi) <= lo {
		to = 0
	}
	if from >= to {
		return 0
	}
	return part(limit, to) - part(limit, from)
}

// part returns limit×x / 2^32, rounded down, without overflow.
func part(limit int, x uint64) int {
	hi, lo := bits.Mul64(uint64(max(limit, 0)), x)
	return int(hi<<32 | lo>>32)
}

// Bounds are the limits of waiting.
type Bounds struct {
	Function int           // calls waiting for one function
	Total    int           // calls waiting in the partition
	Age      time.Duration // longest wait
}

// Admit reports whether one more call may wait, given how many wait for its function and in all.
func (b Bounds) Admit(function, total int) bool { return function < b.Function && total < b.Total }

// Backoff returns the pause after the n-th failure in a row (from 1): first doubled n-1 times, at most limit, of
// which the upper half is drawn at random so that many versions that failed together do not return together.
func Backoff(n int, first, limit time.Duration, rng *rand.Rand) time.Duration {
	d := limit
	if n < 32 && first<<(n-1) < limit {
		d = first << (n - 1)
	}
	return d/2 + time.Duration(rng.Int64N(int64(d/2)+1))
}
