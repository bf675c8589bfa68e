// Package guard decides what a host obeys: which epoch holds for a key, and which leases are honoured. It is pure:
// time is an argument, and the caller holds whatever lock there is.
package guard

import (
	"time"

	"starling"
	"starling/actors/wire"
)

// Fences are the highest epochs a host has seen. The zero value has seen none.
type Fences struct{ seen []fence }

// A fence is the highest epoch seen for a range, and who owns it.
type fence struct {
	over      starling.Range
	partition starling.PartitionID
	epoch     starling.Epoch
}

func overlap(a, b starling.Range) bool {
	return (b.Hi == 0 || a.Lo < b.Hi) && (a.Hi == 0 || b.Lo < a.Hi)
}

func covers(a, b starling.Range) bool {
	return a.Lo <= b.Lo && (a.Hi == 0 || b.Hi != 0 && b.Hi <= a.Hi)
}

// Raise makes the range obey m's epoch. It reports false, and changes nothing, when a later owner of any part of
// the range was seen: the sender has lost it. At most twice starling.PartitionMax fences are kept.
func (f *Fences) Raise(m *wire.Fence) bool {
	for _, o := range f.seen {
		if overlap(o.over, m.Range) && (o.epoch > m.Epoch || o.epoch == m.Epoch && o.partition != m.Partition) {
			return false
		}
	}
	keep := f.seen[:0]
	for _, o := range f.seen {
		if !covers(m.Range, o.over) {
			keep = append(keep, o)
		}
	}
	f.seen = append(keep, fence{m.Range, m.Partition, m.Epoch})
	if len(f.seen) > 2*starling.PartitionMax {
		f.seen = f.seen[1:]
	}
	return true
}

// Stale reports whether a higher epoch was seen for key than the one a message carries.
func (f *Fences) Stale(key starling.Key64, p starling.PartitionID, epoch starling.Epoch) bool {
	for _, o := range f.seen {
		if o.over.Contains(key) && (o.epoch > epoch || o.epoch == epoch && o.partition != p) {
			return true
		}
	}
	return false
}

// The refusals of a call that did not start.
var (
	ErrNoInstance = starling.Errorf(starling.Moved, "invoke", "the host does not run this instance: ask for another").With("NoInstance")
	ErrOldEpoch   = starling.Errorf(starling.Moved, "invoke", "the lease is of a past epoch: ask the partition's new owner").With("OldEpoch")
	ErrLeaseBusy  = starling.Errorf(starling.Overloaded, "invoke", "every slot of the lease is at work").With("SlotsBusy")
)

// A Tenure says whom one instance obeys and which leases of it are in use.
type Tenure struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Since     starling.Epoch // leases of it and later are in the owner's books, whatever partition granted them
	Slots     int            // of the instance, at least 1: more leases than that are never in use at once
	leases    []use
}

// use is a lease as this host knows it: learned when it is first shown.
type use struct {
	lease starling.Lease
	busy  uint16
	last  time.Time // when a call of it last began or ended
}

// alive reports whether a lease that nobody renews here still holds: it was used within its TTL.
func (u *use) alive(now time.Time) bool {
	ttl := u.lease.TTL
	if ttl <= 0 || ttl > starling.LeaseTTL {
		ttl = starling.LeaseTTL
	}
	return u.busy > 0 || now.Sub(u.last) < ttl
}

// Enter takes one slot of l, or says why not. A lease of Since or later is learned, also one of an epoch that no fence has
// told of yet: it has been handed over with its books. An earlier one is honoured only while it is in use.
func (t *Tenure) Enter(l *starling.Lease, now time.Time) error {
	if !t.Honours(l, now) {
		return ErrOldEpoch
	}
	u := t.use(l)
	if u == nil {
		u = t.learn(l, now)
	}
	if u.busy >= l.Slots {
		return ErrLeaseBusy
	}
	u.busy++
	u.last = now
	return nil
}

// Honours reports whether a call may begin under l, if a slot of it is free: it was granted since the last recovery, or is
// in use since before.
func (t *Tenure) Honours(l *starling.Lease, now time.Time) bool {
	if l.Epoch >= t.Since {
		return true
	}
	u := t.use(l)
	return u != nil && u.alive(now)
}

func (t *Tenure) use(l *starling.Lease) *use {
	for i := range t.leases {
		if u := &t.leases[i]; u.lease.ID == l.ID && u.lease.Epoch == l.Epoch && u.lease.Partition == l.Partition {
			return u
		}
	}
	return nil
}

// learn remembers a lease. The partition grants no more leases than there are slots, so when all places are taken
// the one idle for longest was given back without our hearing of it. Were it kept, a fence would report slots as
// used that nobody uses, and with calls of a few milliseconds more of them than a message may hold.
func (t *Tenure) learn(l *starling.Lease, now time.Time) *use {
	var idle *use
	for i := range t.leases {
		if u := &t.leases[i]; u.busy == 0 && (idle == nil || u.last.Before(idle.last)) {
			idle = u
		}
	}
	if idle == nil || len(t.leases) < t.Slots && idle.alive(now) {
		t.leases = append(t.leases, use{})
		idle = &t.leases[len(t.leases)-1]
	}
	*idle = use{lease: *l}
	return idle
}

// Leave gives back the slot that Enter took.
func (t *Tenure) Leave(l *starling.Lease, now time.Time) {
	if u := t.use(l); u != nil && u.busy > 0 {
		u.busy--
		u.last = now
	}
}

// Adopt gives the instance to the partition of a fence and returns the leases that are in use.
func (t *Tenure) Adopt(m *wire.Fence, now time.Time) (leases []starling.Lease) {
	t.Partition, t.Epoch, t.Since = m.Partition, m.Epoch, max(t.Since, min(m.Since, m.Epoch))
	for i := range t.leases {
		if u := &t.leases[i]; u.alive(now) {
			leases = append(leases, u.lease)
		}
	}
	return leases
}
