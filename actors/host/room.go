package host

import (
	"slices"
	"time"
)

const (
	roomMiB  = 512         // kept free of idle instances, at most a quarter of the host
	roomPart = 64          // and one part in so many of the instances
	roomIdle = time.Second // an instance is not idle before: its frontend may still hold a lease
	roomMax  = 64          // instances ended at once
)

// keepRoom ends the instances that are idle longest while less than the wanted room is free. A partition can stop only
// its own; a host full of idle instances of many partitions would let a function of yet another one wait in vain.
func (h *Host) keepRoom(now time.Time) {
	h.mu.Lock()
	memory := h.used - h.cfg.MemoryMiB + min(roomMiB, h.cfg.MemoryMiB/4)
	count := h.count - h.cfg.InstanceMax + h.cfg.InstanceMax/roomPart
	h.mu.Unlock()
	if memory <= 0 && count <= 0 {
		return
	}
	type idler struct {
		e    *entry
		idle time.Duration
	}
	var idlers []idler
	for _, e := range h.all() {
		e.mu.Lock()
		i, stopping, mib := e.instance, e.stopping, e.memoryMiB
		e.mu.Unlock()
		if stopping { // its room is coming
			memory, count = memory-mib, count-1
		} else if i != nil {
			if busy, idle := i.Use(now); busy == 0 && idle >= roomIdle {
				idlers = append(idlers, idler{e, idle})
			}
		}
	}
	slices.SortFunc(idlers, func(a, b idler) int { return int(b.idle - a.idle) })
	for _, o := range idlers[:min(len(idlers), roomMax)] {
		if memory <= 0 && count <= 0 {
			break
		}
		o.e.mu.Lock()
		mib := o.e.memoryMiB
		o.e.mu.Unlock()
		memory, count = memory-mib, count-1
		h.meters.madeRoom.Inc()
		o.e.stop(false) // a call that comes at this moment is told Moved, and starts elsewhere
	}
}
