package partition

import (
	"context"
	"slices"
	"time"

	"starling"
	"starling/sched"
)

const (
	// beat is how often a partition with calls or instances is looked at, whatever it wants: metrics and rates are as old
	// as this at most.
	beat = 100 * time.Millisecond

	// restBeats is after how many beats one without is looked at, a part of them at each: a node may have thousands, and
	// waking all of them ten times a second held up its heartbeats.
	restBeats = 10
)

// clock wakes the actors when their schedulers want it: one timer for the node, not one for each partition.
func (k *Keeper) clock(ctx context.Context) {
	t := time.NewTimer(beat)
	defer t.Stop()
	nextBeat, beats := k.cfg.Now().Add(beat), uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-t.C:
		}
		now := k.cfg.Now()
		all := !now.Before(nextBeat)
		rate := 0.0
		if all {
			nextBeat = now.Add(beat)
			beats++
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
			due := all && (!a.idle.Load() || (uint64(a.entry.ID)+beats)%restBeats == 0)
			switch {
			case due || want != 0 && want <= now.UnixNano():
				k.ring(a)
			case want != 0:
				first = min(first, want)
			}
			if all {
				rate += a.status.Load().Rate
			}
		}
		if all {
			k.rate.Store(uint32(rate))
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

// A Status is the state of one partition as operators see it: at most 100 ms old, and 1 s where nothing happens.
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
