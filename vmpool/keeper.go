package vmpool

import (
	"context"
	"slices"
	"sync"
	"time"

	"starling"
	"starling/vmpool/lifecycle"
)

const (
	idlePause  = 100 * time.Millisecond // without a call for so long an instance is frozen
	keeperTick = 50 * time.Millisecond
	settleTime = 50 * time.Millisecond // after the initialisation; the first call, which waits for it, still has the CPU of a start
)

// keeper freezes instances that nothing called for a moment and ends those that are too old. It looks only at instances that
// became idle since it last froze them, so a thousand frozen ones cost nothing, and a warm call costs one flag.
type keeper struct {
	mu     sync.Mutex // guards the rest; a leaf
	list   []*Instance
	aged   []*Instance // every living instance, to end the old ones
	agedAt time.Time
}

// watch makes the keeper look at i; i.watched is set.
func (k *keeper) watch(i *Instance) {
	k.mu.Lock()
	k.list = append(k.list, i)
	k.mu.Unlock()
}

func (k *keeper) add(i *Instance) {
	k.mu.Lock()
	k.aged = append(k.aged, i)
	k.mu.Unlock()
}

func (k *keeper) remove(i *Instance) {
	k.mu.Lock()
	if at := slices.Index(k.aged, i); at >= 0 {
		k.aged[at] = k.aged[len(k.aged)-1]
		k.aged[len(k.aged)-1] = nil
		k.aged = k.aged[:len(k.aged)-1]
	}
	k.mu.Unlock()
}

// run is the keeper's only goroutine.
func (k *keeper) run(ctx context.Context) {
	t := time.NewTicker(keeperTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			k.sweep(now)
		}
	}
}

func (k *keeper) sweep(now time.Time) {
	k.mu.Lock()
	list := k.list
	k.list = nil
	var old []*Instance
	if now.Sub(k.agedAt) >= time.Second {
		k.agedAt = now
		for _, i := range k.aged {
			if now.Sub(i.born) > i.cfg.LifeMax && !i.retired.Load() {
				old = append(old, i)
			}
		}
	}
	k.mu.Unlock()
	for _, i := range old {
		i.retired.Store(true)
		i.doom(lifecycle.Retire, "too old")
	}
	var keep []*Instance
	for _, i := range list {
		if i.rest(now) {
			keep = append(keep, i)
		}
	}
	k.mu.Lock()
	k.list = append(keep, k.list...)
	k.mu.Unlock()
}

// rest freezes the instance when it was idle long enough and reports whether the keeper must look again.
func (i *Instance) rest(now time.Time) bool {
	i.settle(now)
	i.mu.Lock()
	switch {
	case i.life.State == lifecycle.Ended:
		i.mu.Unlock()
		return false
	case i.life.State != lifecycle.Idle || now.Sub(i.lastUse) < idlePause:
		i.mu.Unlock()
		return true
	}
	i.life.Step(lifecycle.Pause)
	i.watched = false
	i.mu.Unlock()
	i.memoryMax(now, memoryLong)
	if err := i.pause(); err != nil {
		i.cfg.Log.Error("freeze instance", "instance", i.cfg.ID, "error", err)
		i.doom(lifecycle.Fault, "Sandbox.Failure")
	}
	return false
}

// settle ends the CPU of a start, once.
func (i *Instance) settle(now time.Time) {
	i.mu.Lock()
	due := !i.settled && now.Sub(i.readyAt) >= settleTime
	i.settled = i.settled || due
	i.mu.Unlock()
	s, ok := i.sandbox.(Settler)
	if !due || !ok {
		return
	}
	i.hold.Lock()
	defer i.hold.Unlock()
	select {
	case <-i.ending: // the sandbox is closed or about to be
		return
	case <-i.sandbox.Done():
		return
	default:
	}
	if err := s.Settle(); err != nil {
		i.cfg.Log.Error("settle instance", "instance", i.cfg.ID, "error", err)
		i.doom(lifecycle.Fault, starling.ErrSandboxFailure)
	}
}
