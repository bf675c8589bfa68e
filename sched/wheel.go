package sched

import (
	"math/bits"
	"time"
)

// The wheel says which versions to plan at a tick. A version stands in it once, in the slot of its next plan, or in
// the last one before it when that is more than a turn away: then it is moved on when the slot comes, once in 51 s. So
// a tick costs what is due, and a version costs the same among a million others.
const (
	wheelPace  = 100 * time.Millisecond
	wheelSlots = 512 // a multiple of 64
)

type wheel struct {
	slots  [wheelSlots]*version
	filled [wheelSlots / 64]uint64 // a bit for each slot that is not empty
	at     int64                   // the slot looked at last, counted from the beginning of time
}

// arm has v planned at the instant given, and not before.
func (w *wheel) arm(v *version, at instant) {
	w.disarm(v)
	v.wakeAt = at
	n := int64((at + wheelPace - 1) / wheelPace)
	n = min(max(n, w.at+1), w.at+wheelSlots-1)
	k := n % wheelSlots
	v.slot, v.next, v.prev = int32(k), w.slots[k], nil
	if v.next != nil {
		v.next.prev = v
	}
	w.slots[k] = v
	w.filled[k/64] |= 1 << (k % 64)
}

// disarm takes v out.
func (w *wheel) disarm(v *version) {
	if v.slot < 0 {
		return
	}
	if v.next != nil {
		v.next.prev = v.prev
	}
	if v.prev != nil {
		v.prev.next = v.next
	} else if w.slots[v.slot] = v.next; v.next == nil {
		w.filled[v.slot/64] &^= 1 << (v.slot % 64)
	}
	v.slot, v.next, v.prev = -1, nil, nil
}

// turn calls due for every version whose instant has come.
func (w *wheel) turn(now instant, due func(*version)) {
	to := int64(now / wheelPace)
	w.at = max(w.at, to-wheelSlots) // each slot once is enough
	for w.at < to {
		w.at++
		for v := w.slots[w.at%wheelSlots]; v != nil; v = w.slots[w.at%wheelSlots] {
			w.disarm(v)
			if v.wakeAt > now {
				w.arm(v, v.wakeAt)
				continue
			}
			due(v)
		}
	}
}

// nextTurn returns when the next slot that is not empty comes, or never.
func (w *wheel) nextTurn() instant {
	from := w.at + 1
	for n := int64(0); n <= wheelSlots; {
		k := (from + n) % wheelSlots
		if word := w.filled[k/64] >> (k % 64); word != 0 {
			return instant(from+n+int64(bits.TrailingZeros64(word))) * wheelPace
		}
		n += 64 - k%64
	}
	return never
}
