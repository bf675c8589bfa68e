package sched

import "time"

// protectIdle is how long an idle instance of an account is kept from accounts that have more memory here: a tenant
// who calls at least so often stays warm beside one who could use every host.
const protectIdle = 10 * time.Second

// mayTake reports whether v may have the memory of i, which is idle.
func (s *Scheduler) mayTake(v *version, i *instance) bool {
	idle := s.now - i.idle
	o := i.version.account
	switch {
	case o == nil || o == v.account:
		return idle >= s.cfg.EvictIdle
	case o.memory < v.account.memory:
		return idle >= protectIdle
	}
	return idle >= s.cfg.EvictIdle
}

// takeFor gets v an instance's memory from the account that has most, if that account still has no less than v's after
// it: this is a step towards max-min fair shares. An idle instance goes at once. Where all are busy, frontends are
// asked for the leases of one; the account owes, and its next instance that comes free is stopped.
func (s *Scheduler) takeFor(v *version) {
	if s.now-v.claimedAt < s.cfg.RecallPause {
		return
	}
	v.claimedAt = s.now
	need := v.config.Config.MemoryMiB
	var most *account
	for _, a := range s.permits.purses {
		if a != v.account && a.memory >= v.account.memory+2*need && (most == nil || a.memory > most.memory) {
			most = a
		}
	}
	if most == nil {
		return
	}
	var busy *version
	for _, f := range most.functions {
		for _, o := range f.members {
			for i := o.all.front; i != nil; i = i.in[byVersion].next {
				if i.state != isReady || !i.frees(need) || !i.host.suits(v) {
					continue
				}
				if i.spare() {
					s.evict(i, v)
					return
				}
				busy = o
			}
		}
	}
	if busy == nil {
		return
	}
	most.owes = v
	for k := range busy.holders {
		if h := busy.holders[k]; h.node != 0 && h.held > 0 && s.recall(busy, h.node, 1) > 0 {
			return
		}
	}
}

// frees reports whether the end of i makes room for need MiB on its host.
func (i *instance) frees(need int) bool {
	return i.host.fenced && i.host.reported && !i.host.draining && max(i.host.free, 0)+i.memory >= need
}

// payBack stops i, which has just come free, when its account owes memory to another. It reports whether it did.
func (s *Scheduler) payBack(i *instance) bool {
	a := i.version.account
	if a == nil || a.owes == nil || !i.spare() || i.state != isReady {
		return false
	}
	v := a.owes
	if v.waiting == 0 || !v.known() || v.evicting > 0 || a.memory < v.account.memory+2*v.config.Config.MemoryMiB {
		a.owes = nil
		return false
	}
	if !i.frees(v.config.Config.MemoryMiB) || !i.host.suits(v) {
		return false
	}
	a.owes = nil
	s.evict(i, v)
	return true
}

// lightest returns, of a few versions with waiting calls, the one whose account has the least memory: those above their
// share are served behind those below.
func (s *Scheduler) lightest() *version {
	s.turn++
	best := s.hungry[s.turn%len(s.hungry)]
	for k := 1; k < min(16, len(s.hungry)); k++ {
		v := s.hungry[(s.turn+k)%len(s.hungry)]
		if v.account != nil && best.account != nil && v.account.memory < best.account.memory {
			best = v
		}
	}
	return best
}
