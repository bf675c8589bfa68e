package sched

import (
	"math"

	"starling"
	"starling/sched/flow"
)

// place books a version under its function and account, with what was booked for it before they were known.
func (s *Scheduler) place(v *version, c *starling.Version) {
	f := s.functions[c.Function]
	if f == nil {
		a := s.accounts[c.Function.Account]
		if a == nil {
			a = s.openAccount(c.Function.Account)
		}
		a.versions++
		f = &function{ref: c.Function, account: a}
		s.functions[f.ref] = f
		a.functions = append(a.functions, f)
	}
	f.members = append(f.members, v)
	v.account, v.alone = f.account, len(f.members) == 1
	f.members[0].alone = v.alone
	v.of, v.config, v.slots = f, c, int32(max(c.Config.Concurrency, 1))
	v.governor = s.remembered(v)
	f.instances += int(v.all.n)
	f.starting += v.starting
	if len(f.members) == 2 {
		f.leased = int(f.members[0].leased)
	}
	f.leased += int(v.leased)
	f.waiting += int(v.waiting)
	f.account.leased += int(v.leased)
	s.wake(f.account)
	if s.permits.strangers -= int(v.leased); s.permits.strangers == 0 {
		s.givePermits()
	}
	f.account.starting += v.starting * int(v.slots)
	for i := v.all.front; i != nil; i = i.in[byVersion].next {
		i.memory = c.Config.MemoryMiB
		f.account.memory += i.memory
		if i.state == isReady {
			s.setFree(i)
		}
	}
	if v.waiting > 0 {
		s.becomeHungry(v)
	}
}

// setLimits derives what v may use from its configuration, its account and the partition's share of its span.
func (s *Scheduler) setLimits(v *version, c *starling.Version) {
	share := flow.Share(v.spanLimit(), c.Key(), s.keys)
	if len(s.memory.inherited) > 0 {
		share = max(share-s.unplaced(v), 0)
	}
	v.share = share
	if e := s.settleOf(c.Key()); e != nil {
		share = max(share-e.withheld, 0)
	}
	v.limit = int32(min(share, math.MaxInt32))
	v.most = (share + int(v.slots) - 1) / int(v.slots)
}

// unplaced returns the slots leased of other versions of v's function whose configuration a restored scheduler does not know yet.
func (s *Scheduler) unplaced(v *version) (n int) {
	f := spanRef{v.account.id, spanOf(v.config.Key())}
	if s.memory.kin[f] == 0 {
		return 0
	}
	for _, o := range s.unknown {
		if l, ok := s.memory.inherited[o.id]; ok && o.of == nil && (spanRef{l.account, l.key}) == f {
			n += int(o.leased)
		}
	}
	return n
}

// spanLimit returns how many slots the function may have leased in all of its span, as far as v says.
func (v *version) spanLimit() int {
	slots := v.of.account.max
	if n := v.config.Config.InstanceMax; n > 0 && n*int(v.slots) < slots {
		slots = n * int(v.slots)
	}
	return slots
}
