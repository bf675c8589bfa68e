package transport

import (
	"math/rand/v2"
	"time"
)

const (
	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
)

// A Backoff says when to try a peer again: 50 ms after the first failure, doubling to 1 s, with half of each
// pause drawn at random so that the callers of a peer that comes back do not all arrive at once. The zero
// Backoff allows a try. Its owner guards it.
type Backoff struct {
	fails int
	until time.Time
}

// Ready reports whether a try is due.
func (b *Backoff) Ready(now time.Time) bool { return !now.Before(b.until) }

// Down reports whether the last try failed.
func (b *Backoff) Down() bool { return b.fails > 0 }

// Wait is how long until the next try is due.
func (b *Backoff) Wait(now time.Time) time.Duration { return max(0, b.until.Sub(now)) }

// Fail notes a failure.
func (b *Backoff) Fail(now time.Time) {
	pause := min(backoffMin<<min(b.fails, 10), backoffMax)
	b.fails++
	b.until = now.Add(pause/2 + rand.N(pause/2+1))
}

// Succeed forgets all failures.
func (b *Backoff) Succeed() { *b = Backoff{} }
