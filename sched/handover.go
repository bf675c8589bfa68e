package sched

import (
	"cmp"
	"slices"
	"time"

	"starling"
	"starling/sched/ledger"
	"starling/sched/scale"
)

// past is how long before the hand-over the time of a restored scheduler begins, so that what was before has an instant.
const past = 366 * 24 * time.Hour

// strays is how long after a hand-over messages may come that were meant for the life before.
const strays = 2 * time.Second

// heardFrozen reports whether a frozen scheduler takes ev.
func heardFrozen(ev Event) bool {
	switch ev.(type) {
	case Thaw, Deactivate, LeaseUntil:
		return true
	}
	return false
}

// Phase returns the part of its life the scheduler is in.
func (s *Scheduler) Phase() Phase { return s.phase }

// GrantsUntil returns the instant before which the scheduler may grant and start, by what it knows now, or the zero time
// when it may not at all.
func (s *Scheduler) GrantsUntil() time.Time {
	if s.phase != Active {
		return time.Time{}
	}
	return s.base.Add(s.until)
}

// freeze ends all deciding until Thaw. What is known of demand goes to the governors, so that a snapshot has it.
func (s *Scheduler) freeze() {
	if s.phase != Active {
		return
	}
	for _, x := range s.versions.slots {
		if v := x.v; v != nil && v.governor != nil && !v.gone {
			if v.untell(); v.news != (scale.Demand{}) {
				v.governor.Note(s.now, v.news)
				v.news = scale.Demand{}
			}
		}
	}
	s.phase = Frozen
}

// thaw goes on as if messages had come late: what has ended meanwhile is seen by the next tick, behind those that were kept.
func (s *Scheduler) thaw() {
	if s.phase == Frozen {
		s.phase = Active
		s.pumpHungry()
	}
}

// restore begins a life that goes on from a snapshot.
func (s *Scheduler) restore(ev Restore) {
	if s.phase != Fresh {
		return
	}
	from := &ev.Snapshot
	s.base, s.now = s.base.Add(-past), s.now+past
	if s.until != 0 {
		s.until += past
	}
	s.wheel.at = int64(s.now / wheelPace)
	s.id, s.epoch, s.since, s.keys, s.phase, s.begun = ev.Partition, ev.Epoch, ev.Since, ev.Range, Active, s.now
	s.seq, s.first, s.life = ev.Seq, ev.Seq, max(uint32(ev.Seq), from.Generation)
	if ev.Partition == from.Partition && ev.Epoch == from.Epoch {
		s.seq, s.first = max(s.seq, from.Seq), max(s.first, from.Seq+1)
	}
	s.permits.seq, s.permits.number = max(ev.Seq, from.Seq), from.Number
	for k := range from.Accounts {
		st := &from.Accounts[k]
		if s.accounts[st.ID] == nil {
			a := s.openAccount(st.ID)
			a.max, a.purse = st.Max, *ledger.RevivePurse(s.now, s.permits.seq, st.Purse)
		}
	}
	for k := range from.Hosts {
		s.restoreHost(&from.Hosts[k])
	}
	s.restoreSettles(from.Settling)
	s.restoreVersions(from, ev.Versions)
	s.restoreInstances(from.Instances)
	s.restoreLeases(from.Leases)
	for k := range from.Waiting {
		s.restoreWaiting(&from.Waiting[k])
	}
	s.holdPermits()
	s.restoreBooks(from.Books)
	s.resume(from)
}

func (s *Scheduler) restoreHost(st *HostState) {
	h := s.addHost(st.Node)
	h.zone, h.fenced, h.reported, h.draining, h.full = st.Zone, st.Fenced, st.Reported, st.Draining, st.Full
	h.free, h.total, h.cpu, h.others, h.avoid = st.FreeMiB, st.TotalMiB, st.CPU, st.Others, s.now+st.Avoid
	h.gives, h.code = gives(st.Gives), slices.Clone(st.Code)
	for _, rt := range st.Pools {
		h.pools = append(h.pools, stock{runtime: rt})
	}
	if !h.gate { // it is told of the epoch until it answers
		h.gate = true
		s.gates++
	}
}

func (s *Scheduler) restoreVersions(from *Snapshot, list []VersionKnown) {
	for k := range from.Remembered {
		r := from.Remembered[k]
		s.memory.keep(r.ID, learned{handed: &r.Learned, at: s.now, key: r.Key, homes: r.Homes})
	}
	known := make(map[starling.VersionID]*VersionKnown, len(list))
	for k := range list {
		known[list[k].Version.ID] = &list[k]
	}
	for k := range from.Versions {
		st := &from.Versions[k]
		if s.versions.find(st.ID) != nil {
			continue
		}
		v := s.newVersion(st.ID)
		v.gone, v.floored = st.Gone, st.Floored
		v.failures, v.troubles, v.deaths, v.hold = st.Failures, st.Troubles, st.Dead, s.now+st.Hold
		v.holdReason, v.holdText, v.trouble = st.Reason, st.Text, st.Trouble
		v.retries, v.ahead, v.idleKeep = min(max(st.Retries, 0), retryMax), st.Ahead, st.IdleKeep
		v.want, v.keep, v.untold, v.given = max(st.Want, 0), max(st.Keep, 0), 1, 1
		s.wanted += v.want
		if v.floored {
			s.floors = append(s.floors, v)
		}
		handed := st.Learned
		s.memory.inherited[v.id] = learned{handed: &handed, at: s.now, key: st.Key, account: st.Account, limit: st.Limit, homes: st.Homes}
		s.memory.kin[spanRef{st.Account, st.Key}]++
		if c := known[v.id]; c != nil {
			s.place(v, c.Version)
			s.knowAccount(v.account, c.ConcurrencyMax)
			s.setLimits(v, c.Version)
		} else if !v.gone {
			s.unknown = append(s.unknown, v)
			s.lookup(v)
		}
	}
}

// restoreInstances books instances; of each version the one used last comes to the front.
func (s *Scheduler) restoreInstances(list []InstanceState) {
	var ready []*instance
	for k := range list {
		st := &list[k]
		if s.instances[st.ID] != nil {
			continue
		}
		i := &instance{id: st.ID, version: s.addVersion(st.Version), node: st.Host, key: st.Key, state: isReady, leases: leaseList{which: byInstance},
			idle: s.now - st.Idle, instanceRest: &instanceRest{began: s.now - st.Age, sent: s.now, look: s.now + s.cfg.StartAgain, readyAt: s.now - st.Age, heapAt: -1, seen: true}}
		switch st.Phase {
		case Lost:
			i.state, i.host = isLost, &host{node: st.Host}
			s.lost = append(s.lost, i)
			continue
		case Starting:
			i.state = isStarting
		}
		i.host = s.addHost(st.Host)
		s.enter(i)
		switch st.Phase {
		case Ready:
			ready = append(ready, i)
		case Stopping:
			i.host.ready++
			s.retire(i)
		}
	}
	slices.SortStableFunc(ready, func(a, b *instance) int { return cmp.Compare(a.idle, b.idle) })
	for _, i := range ready {
		at := i.readyAt
		s.becomeReady(i, i.idle)
		i.readyAt = at
	}
}

// restoreLeases books leases under the names that their frontends know, soonest end first.
func (s *Scheduler) restoreLeases(list []LeaseState) {
	lost := make(map[starling.InstanceID]*instance, len(s.lost))
	for _, i := range s.lost {
		lost[i.id] = i
	}
	s.lost = nil
	if !slices.IsSortedFunc(list, sooner) {
		list = slices.SortedStableFunc(slices.Values(list), sooner)
	}
	for k := range list {
		st := &list[k]
		name := leaseKey{st.Partition, st.Epoch, st.ID}
		i := s.instances[st.Instance]
		if i == nil {
			i = lost[st.Instance]
		}
		if i == nil || i.state == isStarting || s.adopted[name] != nil {
			continue
		}
		l := s.newLease()
		l.key = &name
		s.adopted[name] = l
		s.bind(l, i, st.Frontend)
		l.recalled = st.Recalled
		l.ends = s.now + min(max(st.Left, 0), s.cfg.LeaseTTL+s.cfg.LeaseGrace)
	}
}

// holdPermits takes the permits of leases whose versions are not known yet out of the purses: their accounts do not count them.
func (s *Scheduler) holdPermits() {
	for _, v := range s.unknown {
		l := s.memory.inherited[v.id]
		if a := s.accounts[l.account]; a != nil && v.leased > 0 {
			l.permits = min(int(v.leased), a.purse.Permits)
			a.purse.Permits -= l.permits
			s.memory.inherited[v.id] = l
		}
	}
	for _, x := range s.versions.slots {
		if v := x.v; v != nil && v.known() && s.memory.kin[spanRef{v.account.id, spanOf(v.config.Key())}] > 0 {
			s.setLimits(v, v.config)
		}
	}
}

// givePermits puts back what holdPermits took: the leases it was for have ended. It comes before the ledger hears of the purse.
func (s *Scheduler) givePermits() {
	for id, l := range s.memory.inherited {
		if a := s.accounts[l.account]; a != nil && l.permits > 0 {
			a.purse.Permits += l.permits
			l.permits = 0
			s.memory.inherited[id] = l
		}
	}
}

func sooner(a, b LeaseState) int { return cmp.Compare(a.Left, b.Left) }

func (s *Scheduler) restoreWaiting(st *WaitingState) {
	v := s.versions.find(st.Version)
	if v == nil || v.gone || s.waiters[callKey{st.Frontend, st.Call}] != nil {
		return // of a deleted version none waits
	}
	w := s.newWaiter()
	*w = waiter{call: st.Call, node: st.Frontend, version: v, key: st.Key, since: s.now - st.Age, deadline: s.now + min(max(st.Left, 0), s.cfg.Bounds.Age)}
	s.enqueue(w)
}

func (s *Scheduler) restoreBooks(list []ledger.BookState) {
	for _, st := range list {
		if s.permits.books[st.Account] != nil {
			continue
		}
		b := &book{Book: ledger.ReviveBook(s.now, st), lookupAt: s.now, usedAt: s.now, awake: true}
		s.permits.books[st.Account] = b
		s.permits.shelf = append(s.permits.shelf, b)
		s.permits.lending.add(b)
	}
}

// resume tells the hosts whom they obey now, repeats what may not have reached them, and goes on.
func (s *Scheduler) resume(from *Snapshot) {
	for _, h := range s.order {
		s.fence(h)
	}
	for k := range from.Versions {
		st := &from.Versions[k]
		v := s.versions.find(st.ID)
		if v.governor != nil && st.Again >= 0 {
			s.wheel.arm(v, s.now+st.Again)
		}
		v.homes = st.Homes // hosts were noted in another order
		s.mayForget(v)
	}
	for i := s.starting.front; i != nil; i = i.in[byCheck].next {
		s.repeatStart(i)
	}
	s.pumpHungry()
}
