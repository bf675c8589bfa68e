package sched

import "slices"

// dueOf returns since when a ready instance is idle, or, while it is in use or its owner's floor needs it, a bound below.
func (s *Scheduler) dueOf(i *instance) instant {
	if !i.spare() {
		return s.now
	}
	return i.idle
}

// spare reports whether a ready instance could go.
func (i *instance) spare() bool { return i.used == 0 && int(i.version.all.n) > i.version.floor }

// oldest returns the ready instance that is idle for the longest time, or nil. Bounds that passed are corrected on
// the way, a few in each call: while thousands of instances are busy, finding the idle one takes several calls.
func (s *Scheduler) oldest() *instance {
	for n := 0; n < 64 && len(s.idle) > 0; n++ {
		i := s.idle[0]
		due := s.dueOf(i)
		if due == i.due && i.spare() {
			return i
		}
		if due == i.due {
			return nil // the rest is in use, too
		}
		i.due = due
		s.idle.fix(i)
	}
	return nil
}

// retireSurplus stops what v has more than its plan keeps and was idle for long enough, least recently used first. It
// returns when the next one may go, or never.
func (s *Scheduler) retireSurplus(v *version) instant {
	for i := v.free.back; i != nil && int(v.all.n) > v.keep; {
		prev := i.free.prev
		if i.used == 0 {
			if due := i.idle + v.idleKeep; due > s.now {
				return due
			}
			s.stop(i, false)
		}
		i = prev
	}
	if int(v.all.n) > v.keep && v.ready > 0 {
		return s.now + v.idleKeep // all in use, until then at least
	}
	return never
}

// drainHosts stops the idle instances of hosts that want to leave.
func (s *Scheduler) drainHosts() {
	for _, h := range s.order {
		if h.draining {
			s.drain(h)
		}
	}
}

// drain stops the idle instances of a host that wants to leave.
func (s *Scheduler) drain(h *host) {
	for i := h.all.front; i != nil; {
		next := i.in[byHost].next
		if i.state == isReady && i.used == 0 {
			s.stop(i, false)
		}
		i = next
	}
}

// evictFor makes room for one instance of v where hosts are full: on the host of the instance that is idle for the
// longest time, it and, when that is not enough, the next ones are stopped. Their memory is free when the host says so.
func (s *Scheduler) evictFor(v *version) {
	if v.evicting > 0 || s.roomComing(v.config.Config.MemoryMiB) {
		return
	}
	i := s.oldestFor(v)
	if i == nil || !s.mayTake(v, i) {
		s.takeFor(v)
		return
	}
	h := i.host
	need := v.config.Config.MemoryMiB - max(h.free, 0)
	if h.full {
		need = max(need, 1)
	}
	if h.draining || !h.fenced || !h.reported || need <= 0 {
		return
	}
	var idle []*instance
	for i := h.all.front; i != nil; i = i.in[byHost].next {
		if i.state == isReady && i.spare() && s.mayTake(v, i) {
			idle = append(idle, i)
		}
	}
	slices.SortStableFunc(idle, func(a, b *instance) int { return int(a.idle - b.idle) })
	n := 0
	for ; n < len(idle) && need > 0; n++ {
		need -= idle[n].memory
	}
	if need > 0 {
		return
	}
	for _, i := range idle[:n] {
		if spare := -need; i.memory <= spare { // a larger one behind it suffices
			need += i.memory
			continue
		}
		s.evict(i, v)
	}
}

// roomComing reports whether a host with too many starts in flight, not a lack of memory, is what stands in the way.
func (s *Scheduler) roomComing(need int) bool {
	for k := range s.cands {
		if c := &s.cands[k]; c.FreeMiB >= need && c.Starting >= s.cfg.HostMax {
			return true
		}
	}
	return false
}

// evict stops an idle instance for the sake of v.
func (s *Scheduler) evict(i *instance, v *version) {
	s.counts.Evictions++
	i.forWhom = v
	v.evicting++
	s.stop(i, false)
}

// mayForget notes that v serves nobody now, so that forget finds it.
func (s *Scheduler) mayForget(v *version) {
	if v.isEmpty() && !v.listed {
		v.listed, v.emptyAt = true, s.now
		s.empty = append(s.empty, v)
	}
}

func (v *version) isEmpty() bool {
	return v.waiting == 0 && v.leased == 0 && v.all.n == 0 && v.leaving == 0 && v.evicting == 0 && v.slot < 0 && !v.floored
}

// forget drops versions that served nobody for a long time, and deleted ones at once.
func (s *Scheduler) forget() {
	for len(s.empty) > 0 && (s.empty[0].gone || s.now-s.empty[0].emptyAt >= s.cfg.Forget) {
		v := s.empty[0]
		s.empty = s.empty[1:]
		v.listed = false
		if v.isEmpty() {
			s.dropVersion(v)
		}
	}
}

func (s *Scheduler) dropVersion(v *version) {
	s.versions.remove(v)
	s.wheel.disarm(v)
	s.wanted -= v.want
	if v.governor != nil && !v.gone {
		s.memory.put(v)
	}
	if k := slices.Index(s.unknown, v); k >= 0 {
		s.unknown = slices.Delete(s.unknown, k, k+1)
	}
	f := v.of
	if f == nil {
		return
	}
	f.members = slices.DeleteFunc(f.members, func(o *version) bool { return o == v })
	if len(f.members) == 1 {
		f.members[0].alone = true
	}
	if len(f.members) == 0 {
		delete(s.functions, f.ref)
		a := f.account
		a.functions = slices.DeleteFunc(a.functions, func(o *function) bool { return o == f })
		if a.versions--; a.versions == 0 {
			s.closeAccount(a)
		}
	}
}
