package sched

import (
	"starling"
	"starling/actors/wire"
)

// grant gives one slot of i to a frontend.
func (s *Scheduler) grant(v *version, i *instance, to starling.NodeID, call uint64, p starling.Phases) {
	l := s.newLease()
	s.bind(l, i, to)
	s.counts.Grants++
	if p.Cold() {
		s.counts.Cold++
		v.cold++
	}
	g := s.out.grants.next()
	*g = wire.Grant{Call: call, Lease: starling.Lease{ID: l.id, Partition: s.id, Epoch: s.epoch, Version: v.id, Instance: i.id,
		Host: i.node, Slots: 1, TTL: s.cfg.LeaseTTL, Phases: p, Key: i.key}}
	s.out.send(to, g)
}

// newLease takes a spare lease under a new id: the slot in the lower half of the id finds it without a search, the
// generation in the upper half tells a late message about its former life apart.
func (s *Scheduler) newLease() *lease {
	var l *lease
	if n := len(s.spare); n > 0 {
		l, s.spare = s.spare[n-1], s.spare[:n-1]
	} else {
		l = &lease{slot: uint32(len(s.leases)), gen: s.life}
		s.leases = append(s.leases, l)
	}
	l.gen++
	l.id = starling.LeaseID(uint64(l.gen)<<32 | uint64(l.slot))
	return l
}

// bind books l as one used slot of i in the hands of node.
func (s *Scheduler) bind(l *lease, i *instance, node starling.NodeID) {
	v := i.version
	l.instance, l.node, l.recalled = i, node, false
	l.ends = s.now + s.cfg.LeaseTTL + s.cfg.LeaseGrace
	s.expiry.pushBack(l)
	i.leases.pushBack(l)
	i.used++
	v.leased++
	v.peak = max(v.peak, v.leased)
	s.leased++
	if a := v.account; a != nil {
		a.leased++
		a.purse.Peak = max(a.purse.Peak, a.leased)
		if !v.alone {
			v.of.leased++
		}
	} else {
		s.permits.strangers++
	}
	v.holderOf(node, true).held++
	if i.isFree && i.used >= v.slots {
		v.free.remove(i)
		i.isFree = false
	}
}

// unbind gives the slot back and serves who waits for it.
func (s *Scheduler) unbind(l *lease) {
	i := l.instance
	v := i.version
	others := v.account != nil && (v.account.leased >= v.account.purse.Permits || !v.alone && v.of.waiting > int(v.waiting))
	s.forgetLease(l)
	if i.state == isReady {
		s.setFree(i)
	}
	if i.used == 0 {
		i.idle = s.now
		if i.moved {
			s.stop(i, false)
		}
	}
	if i.state == isLost {
		s.mayForget(v)
	}
	if v.account != nil && v.account.owes != nil && s.payBack(i) {
		return
	}
	if v.waiting > 0 {
		s.pump(v, nil, 0, 0)
	}
	if others {
		s.pumpAccount(v.of.account)
	}
}

// forgetLease takes l out of all books.
func (s *Scheduler) forgetLease(l *lease) {
	i := l.instance
	v := i.version
	s.expiry.remove(l)
	i.leases.remove(l)
	i.used--
	v.leased--
	s.leased--
	if v.account != nil {
		v.account.leased--
		if !v.alone {
			v.of.leased--
		}
	} else if s.permits.strangers--; s.permits.strangers == 0 {
		s.givePermits()
	}
	h := v.holderOf(l.node, false)
	h.held--
	v.drop(h)
	if l.key != nil {
		delete(s.adopted, *l.key)
		l.key = nil
	}
	l.id, l.instance = 0, nil
	s.spare = append(s.spare, l)
}

// setFree puts a ready instance with a free slot where the next call takes it. The one used last is taken first, so
// that the others grow idle and can retire.
func (s *Scheduler) setFree(i *instance) {
	v := i.version
	if i.used >= v.slots || v.gone || i.moved {
		return
	}
	if i.isFree {
		if v.free.front == i {
			return
		}
		v.free.remove(i)
	}
	v.free.pushFront(i)
	i.isFree = true
}

// find returns the living lease of that name which node may speak for, or nil.
func (s *Scheduler) find(node starling.NodeID, k leaseKey) *lease {
	if slot := uint32(k.id); k.epoch == s.epoch && k.partition == s.id && uint64(slot) < uint64(len(s.leases)) {
		if l := s.leases[slot]; l.id == k.id && l.node == node && l.key == nil {
			return l
		}
	}
	if len(s.adopted) == 0 {
		return nil
	}
	l := s.adopted[k]
	if l == nil || l.node != 0 && l.node != node {
		return nil
	}
	if l.node == 0 {
		s.claim(l, node)
	}
	return l
}

// claim books an adopted lease under the frontend that spoke of it first.
func (s *Scheduler) claim(l *lease, node starling.NodeID) {
	v := l.instance.version
	h := v.holderOf(l.node, false)
	h.held--
	v.drop(h)
	l.node = node
	v.holderOf(node, true).held++
}

func (s *Scheduler) release(from starling.NodeID, m *wire.Release) {
	for _, id := range m.Leases {
		if l := s.find(from, leaseKey{m.Partition, m.Epoch, id}); l != nil {
			s.counts.Releases++
			s.unbind(l)
		}
	}
	s.demand(m.Demand)
}

func (s *Scheduler) renew(from starling.NodeID, m *wire.Renew) {
	s.demand(m.Demand)
	if !s.granting() || len(m.Leases) == 0 {
		return // without an answer the frontend's leases end by themselves, as they must
	}
	r := s.out.renews.next()
	*r = wire.Renewed{Partition: m.Partition, Epoch: m.Epoch, TTL: s.cfg.LeaseTTL, Leases: r.Leases[:0]}
	strange := false
	for _, id := range m.Leases {
		l := s.find(from, leaseKey{m.Partition, m.Epoch, id})
		strange = strange || l == nil
		if l != nil && s.renewable(l) {
			l.ends = s.now + s.cfg.LeaseTTL + s.cfg.LeaseGrace
			s.expiry.remove(l)
			s.expiry.pushBack(l)
			l.recalled = false // when it is still wanted it is asked for again: a Recall may have been lost
			r.Leases = append(r.Leases, id)
		}
	}
	if strange && m.Epoch < s.epoch && s.now-s.begun < strays {
		return // some may be in the books of another successor of that life: the frontend asks again, and each for its own
	}
	s.out.send(from, r)
}

// renewable reports whether l may live on: its instance serves, and its function is within its share while the halves of its span
// settle. Of a function that is not known yet nobody can tell: its leases wait for their end.
func (s *Scheduler) renewable(l *lease) bool {
	i := l.instance
	if i.state == isLost {
		return false
	}
	e := s.settleOf(i.key)
	return e == nil || e.even <= s.now || i.version.of != nil && i.version.of.inUse() <= i.version.share
}

// demand takes a frontend's report of its versions.
func (s *Scheduler) demand(ds []wire.Demand) {
	for i := range ds {
		s.report(&ds[i])
	}
}

func (s *Scheduler) expireLeases() {
	for l := s.expiry.front; l != nil && l.ends <= s.now; l = s.expiry.front {
		s.counts.Expired++
		s.unbind(l)
	}
}

// recallFor asks frontends that hold more than an even share of v for the surplus, when others hold less than
// theirs and wait, and when starting instances will not serve them anyway.
func (s *Scheduler) recallFor(v *version) {
	if s.now-v.recalledAt < s.cfg.RecallPause || len(v.holders) < 2 || v.leased == 0 || int(v.waiting) <= v.starting*int(v.slots) || !s.granting() {
		return
	}
	interested := int32(0)
	for i := range v.holders {
		if v.holders[i].node != 0 {
			interested++
		}
	}
	low, high := v.leased/max(interested, 1), (v.leased+interested-1)/max(interested, 1)
	want := int32(0)
	for i := range v.holders {
		if h := &v.holders[i]; h.held < high {
			want += min(h.waiting, high-h.held)
		}
	}
	for i := range v.holders {
		h := &v.holders[i]
		if n := min(h.held-low, want); n > 0 && h.node != 0 && (h.waiting == 0 || h.held > high) {
			v.recalledAt = s.now
			want -= s.recall(v, h.node, n)
		}
	}
}

// recall asks one frontend for n leases of v, or as many as it was not asked for yet, and returns how many.
func (s *Scheduler) recall(v *version, node starling.NodeID, n int32) int32 {
	first, asked := s.out.recalls.used, int32(0)
	for i := v.all.front; i != nil && asked < n; i = i.in[byVersion].next {
		for l := i.leases.front; l != nil && asked < n; l = l.in[byInstance].next {
			if l.node != node {
				continue
			}
			asked++ // one asked for before still counts: it is on its way
			if !l.recalled {
				s.askBack(l, first)
			}
		}
	}
	for _, r := range s.out.recalls.items[first:s.out.recalls.used] {
		s.out.send(node, r)
	}
	return asked
}

// askBack puts l into the Recall of its life, among those made since the first.
func (s *Scheduler) askBack(l *lease, first int) {
	l.recalled = true
	s.counts.Recalls++
	k := s.nameOf(l)
	for _, r := range s.out.recalls.items[first:s.out.recalls.used] {
		if r.Partition == k.partition && r.Epoch == k.epoch {
			r.Leases = append(r.Leases, k.id)
			return
		}
	}
	r := s.out.recalls.next()
	*r = wire.Recall{Partition: k.partition, Epoch: k.epoch, Leases: append(r.Leases[:0], k.id)}
}

// nameOf returns the name under which the frontend of l knows it.
func (s *Scheduler) nameOf(l *lease) leaseKey {
	if l.key != nil {
		return *l.key
	}
	return leaseKey{s.id, s.epoch, l.id}
}
