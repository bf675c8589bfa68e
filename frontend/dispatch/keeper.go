package dispatch

import (
	"context"
	"sync/atomic"
	"time"

	"starling/frontend/leases"
)

// A keeper does for a dispatcher what no call does: it returns idle leases, renews the others, asks again and
// ends waits that took too long. It is one goroutine, at rest while nothing is held.
type keeper struct {
	d      *Dispatcher
	parked atomic.Bool
	signal chan struct{} // of capacity 1
}

func (k *keeper) init(d *Dispatcher) {
	k.d = d
	k.signal = make(chan struct{}, 1)
}

// wake ends the rest of the keeper; it costs one load when the keeper is at work.
func (k *keeper) wake() {
	if k.parked.Load() {
		k.hurry()
	}
}

// hurry makes the keeper look at once.
func (k *keeper) hurry() {
	select {
	case k.signal <- struct{}{}:
	default:
	}
}

// run is the dispatcher's only goroutine.
func (k *keeper) run(ctx context.Context) {
	t := time.NewTimer(leases.Tick)
	defer t.Stop()
	changed := k.d.cfg.Topology.Changed()
	k.d.cache.MapChanged(k.d.now())
	for {
		pace := t.C
		if !k.d.cache.Busy() {
			k.parked.Store(true)
			if k.d.cache.Busy() {
				k.parked.Store(false)
			} else {
				pace = nil
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = k.d.cfg.Topology.Changed()
			k.d.cache.MapChanged(k.d.now())
		case <-k.signal:
			k.d.cache.Collect(k.d.now())
		case <-pace:
			k.d.cache.Look(k.d.now())
			t.Reset(leases.Tick)
		}
		if k.parked.Swap(false) {
			t.Reset(leases.Tick)
		}
	}
}
