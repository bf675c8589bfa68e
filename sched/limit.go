package sched

import (
	"starling"
	"starling/sched/flow"
)

// place books a version under its function and account, with what was booked for it before they were known.
func (s *Scheduler) place(v *version, c *starling.Version) {
	f := s.functions[c.Function]
	if f == nil {
		a := s.accounts[c.Function.Account]
		if a == nil {
			a = &account{id: c.Function.Account}
			s.accounts[a.id] = a
		}
		a.versions++
		f = &function{ref: c.Function, account: a}
		s.functions[f.ref] = f
	}
	f.versions++
	v.of, v.config, v.slots = f, c, max(c.Config.Concurrency, 1)
	f.instances += v.all.n
	f.starting += v.starting
	f.leased += v.leased
	f.waiting += v.waiting
	f.account.leased += v.leased
	f.account.starting += v.starting * v.slots
	for i := v.all.front; i != nil; i = i.in[byVersion].next {
		i.memory = c.Config.MemoryMiB
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
	slots := v.of.account.max
	if n := c.Config.InstanceMax; n > 0 && n*v.slots < slots {
		slots = n * v.slots
	}
	v.limit = flow.Share(slots, c.Key(), s.keys)
	v.most = (v.limit + v.slots - 1) / v.slots
}
