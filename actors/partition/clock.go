package partition

import (
	"context"
	"slices"
	"time"

	"starling"
	"starling/sched"
)

// beat is how often every partition is looked at, whatever it wants: metrics and rates are as old as this at most.
const beat = 100 * time.Millisecond

// clock wakes the actors when their schedulers want it: one timer for the node, not one for each partition.
func (k *Keeper) clock(ctx context.Context) {
	t := time.NewTimer(beat)
	defer t.Stop()
	nextBeat := k.cfg.Now().Add(beat)
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-t.C:
		}
		now := k.cfg.Now()
		all := !now.Before(nextBeat)
		if all {
			nextBeat = now.Add(beat)
			if k.anyBroken() {
				k.lookAgain()
			}
			k.sweep(now)
		}
		// What an actor wants from here on is either seen below or wakes the clock again.
		k.planned.Store(nextBeat.UnixNano())
		first := nextBeat.UnixNano()
		for _, a := range *k.actors.Load() {
			want := a.next.Load()
			switch {
			case all || want != 0 && want <= now.UnixNano():
				k.ring(a)
			case want != 0:
				first = min(first, want)
			}
		}
		k.planned.Store(first)
		t.Reset(time.Duration(max(first-now.UnixNano(), 0)))
	}
}

// ring puts one tick into an actor's mailbox, never two.
func (k *Keeper) ring(a *actor) {
	if a.ticking.CompareAndSwap(false, true) && !a.ref.Tell(tick{}, 1) {
		a.ticking.Store(false)
	}
}

// wakeBy has the clock go off at ns, Unix nanoseconds, if it would not before.
func (k *Keeper) wakeBy(ns int64) {
	if p := k.planned.Load(); p != 0 && p <= ns {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// A Status is the state of one partition as operators see it, at most 100 ms old.
type Status struct {
	sched.Status
	Owner   starling.NodeID
	Mailbox int     // events waiting for the actor
	Rate    float64 // acquires per second, over about a second
}

// Status returns the partitions that live on this node, by id.
func (k *Keeper) Status() []Status {
	all := *k.actors.Load()
	out := make([]Status, 0, len(all))
	for _, a := range all {
		out = append(out, *a.status.Load())
	}
	slices.SortFunc(out, func(a, b Status) int {
		if a.Partition < b.Partition {
			return -1
		}
		return 1
	})
	return out
}
