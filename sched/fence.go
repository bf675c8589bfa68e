package sched

import (
	"starling"
	"starling/actors/wire"
)

// activate begins the partition's life: it asks every host what runs there and has it refuse older epochs.
func (s *Scheduler) activate(ev Activate) {
	if s.phase != Fresh {
		return
	}
	s.id, s.epoch, s.since, s.keys, s.phase = ev.Partition, ev.Epoch, ev.Epoch, ev.Range, Activating
	s.seq, s.first, s.life, s.permits.seq = ev.Seq, ev.Seq, uint32(ev.Seq), ev.Seq
	s.settleCut(ev.Cut.Sub(s.base))
	if ev.Again {
		s.quiet = s.now + s.cfg.LeaseTTL + s.cfg.LeaseGrace
	}
	for _, n := range ev.Hosts {
		if h := s.addHost(n); !h.gate {
			h.gate = true
			s.gates++
		}
	}
	for _, h := range s.order {
		s.fence(h)
	}
	s.beginCensus(&ev)
	s.mayBecomeActive()
}

func (s *Scheduler) fence(h *host) {
	h.asked = s.now
	m := s.out.fences.next()
	*m = wire.Fence{Partition: s.id, Epoch: s.epoch, Range: s.keys, Since: s.since}
	s.out.send(h.node, m)
}

// openGate notes that activation need not wait for h any more.
func (s *Scheduler) openGate(h *host) {
	if h.gate {
		h.gate = false
		s.gates--
	}
}

func (s *Scheduler) mayBecomeActive() {
	if s.phase == Activating && s.gates == 0 && s.census.open == 0 && s.now >= s.quiet {
		s.phase = Active
		s.answerAudits() // first: the ledger takes no Borrow of one that it has not heard yet
		s.settleSoon()
		s.pumpHungry()
	}
}

// deactivate hands every waiting call to the next owner, unless they were handed over.
func (s *Scheduler) deactivate() {
	if s.phase == Frozen {
		s.phase = Ended
		return
	}
	for len(s.hungry) > 0 {
		v := s.hungry[0]
		s.rejectWaiting(v, int(v.waiting), starling.Moved, ReasonMoved, "ask the partition's new owner", 0)
	}
	s.phase = Ended
}

// fenced takes a host's list of what runs there. The first one in our epoch is the truth to start from; later ones
// are compared with our books, so that a lost message cannot leave them apart for longer than the audit's pause.
func (s *Scheduler) fenced(from starling.NodeID, m *wire.Fenced) {
	if m.Partition != s.id || m.Epoch != s.epoch || s.phase != Activating && s.phase != Active {
		return
	}
	h := s.addHost(from)
	first := !h.fenced
	h.fenced, h.strange = true, false
	for i := h.all.front; i != nil; i = i.in[byHost].next {
		i.seen = false
	}
	for k := range m.Instances {
		s.reported(h, &m.Instances[k], first)
	}
	s.strange = s.strange || h.strange
	for _, r := range m.Runs {
		if v := s.versions.find(r.Version); v != nil && v.governor == nil { // which learns it when there is one
			v.news.Done, v.news.Busy = v.news.Done+1, v.news.Busy+r.Mean
		}
	}
	for i := h.all.front; i != nil; {
		next := i.in[byHost].next
		s.missed(h, i)
		i = next
	}
	s.openGate(h)
	s.mayBecomeActive()
	if first && h.reported && !h.draining {
		s.moreRoom() // its report came before it could be used
	}
}

// reported compares one line of a host's list with our books.
func (s *Scheduler) reported(h *host, r *wire.InstanceReport, first bool) {
	i := s.instances[r.Instance]
	switch {
	case i == nil && first && s.keys.Contains(r.Key):
		s.adopt(h, r)
	case i == nil && s.keys.Contains(r.Key):
		h.strange = true
		s.sendStop(h.node, r.Instance, false) // given up before
	case i == nil || i.host != h:
	case i.state == isStarting && r.Ready:
		i.seen = true
		s.started(h.node, i.id, 0, 0) // its Started was lost
	case i.state == isStopping:
		i.seen = true
		s.sendStop(h.node, i.id, false) // its Stop was lost, or is under way
	default:
		i.seen = true
	}
}

// missed acts on an instance of ours that is not on its host's list, if the host had time to hear of it.
func (s *Scheduler) missed(h *host, i *instance) {
	switch {
	case i.seen:
	case i.state == isReady && i.readyAt < h.asked, i.state == isStopping && i.sent < h.asked:
		s.gone(i)
	case i.state == isStarting && i.sent < h.asked:
		s.repeatStart(i)
	}
}

// adopt takes over an instance of an older epoch with the leases that are in use.
func (s *Scheduler) adopt(h *host, r *wire.InstanceReport) {
	v := s.addVersion(r.Version)
	if v.gone {
		s.sendStop(h.node, r.Instance, false)
		return
	}
	i := &instance{id: r.Instance, version: v, host: h, key: r.Key, state: isReady, leases: leaseList{which: byInstance},
		instanceRest: &instanceRest{began: s.now, sent: s.now, look: s.now + s.cfg.StartAgain, heapAt: -1, seen: true}}
	if !r.Ready {
		i.state = isStarting
	}
	s.enter(i)
	if i.state == isStarting {
		return
	}
	for k := range r.Leases {
		s.adoptLease(i, &r.Leases[k])
	}
	s.becomeReady(i, s.now-r.Idle)
}

// adoptLease books a slot that a lease of an older epoch uses. Its frontend is known when it speaks of it; until
// then, and unless it renews it, the slot is taken for one lease's time.
func (s *Scheduler) adoptLease(i *instance, r *starling.Lease) {
	k := leaseKey{r.Partition, r.Epoch, r.ID}
	if l := s.booked(k); l != nil {
		s.rebind(l, i)
		return
	}
	if r.Epoch > s.epoch {
		return
	}
	l := s.newLease()
	l.key = &k
	s.adopted[k] = l
	s.bind(l, i, 0)
	if a := i.version.account; a != nil {
		s.wake(a)
	}
}

// booked returns the lease that has the name k, or nil.
func (s *Scheduler) booked(k leaseKey) *lease {
	if slot := uint32(k.id); k.partition == s.id && k.epoch == s.epoch && uint64(slot) < uint64(len(s.leases)) {
		if l := s.leases[slot]; l.id == k.id && l.key == nil {
			return l
		}
	}
	return s.adopted[k]
}

// rebind books l under i, which came back with its host, if it was lost with it.
func (s *Scheduler) rebind(l *lease, i *instance) {
	if o := l.instance; o.state == isLost && o.id == i.id {
		o.leases.remove(l)
		l.instance = i
		i.leases.pushBack(l)
		i.used++
	}
}

// hostReport takes a host's room. A host that is new, or came back, is fenced before it is used.
func (s *Scheduler) hostReport(from starling.NodeID, m *wire.HostReport) {
	if s.phase != Activating && s.phase != Active {
		return
	}
	h := s.addHost(from)
	if h.zone != m.Zone {
		s.rezone(h, m.Zone)
	}
	roomier := int(m.FreeMiB) > h.free || h.full || !h.reported
	h.reported, h.full = true, false
	h.free, h.total, h.cpu, h.others, h.draining = int(m.FreeMiB), int(m.TotalMiB), int(m.CPU), int(m.Starting), m.Draining
	h.gives = gives(m.Isolations)
	h.pools = h.pools[:0]
	for _, p := range m.Pools {
		if p.Ready > 0 {
			h.pools = append(h.pools, stock{p.Isolation, p.Runtime})
		}
	}
	h.code = append(h.code[:0], m.Versions...)
	// Fewer instances than we alone believe to have there: it was started anew, or a message was lost.
	if (!h.fenced || int(m.Instances) < h.ready) && s.now-h.asked >= s.cfg.FenceAgain {
		s.fence(h)
	}
	if roomier && h.fenced && !h.draining {
		s.moreRoom()
	}
}

func (s *Scheduler) rezone(h *host, z starling.Zone) {
	for i := h.all.front; i != nil; i = i.in[byHost].next {
		if i.state != isStopping {
			count(i.version.onZone, h.zone)
			i.version.onZone[z]++
		}
	}
	h.zone = z
}

// nodeDown forgets what the dead node had: instances, and calls that nobody waits for any more. A host that only seems
// dead goes on with the calls of frontends that reach it, so slots of it stay leased, and count, until they are given
// back or their time is over; they are not renewed.
func (s *Scheduler) nodeDown(node starling.NodeID) {
	s.frontDown(node)
	if h := s.hosts[node]; h != nil {
		s.dropHost(h)
	}
	for n := len(s.hungry) - 1; n >= 0; n-- {
		v := s.hungry[n]
		for h := v.holderOf(node, false); h != nil && h.queue.front != nil; h = v.holderOf(node, false) {
			s.counts.Cancelled++
			s.leaveQueue(h.queue.front)
		}
		s.mayForget(v)
	}
	s.mayBecomeActive()
	s.pumpHungry()
}

func (s *Scheduler) dropHost(h *host) {
	if h.gate && s.phase == Activating {
		s.miss(h.node) // it did not say which leases are in use there, and may only seem dead
	}
	s.openGate(h)
	h.fenced, h.avoid = false, never
	for i := h.all.front; i != nil; i = h.all.front {
		s.leave(i)
		i.state = isLost
	}
	delete(s.hosts, h.node)
	for k, o := range s.order {
		if o == h {
			s.order = append(s.order[:k], s.order[k+1:]...)
			break
		}
	}
}

// fenceAgain repeats unanswered fences, and walks round the hosts that have instances of ours to compare books.
func (s *Scheduler) fenceAgain() {
	if s.gates > 0 && s.now >= s.fenceAt {
		s.fenceAt = never
		for _, h := range s.order {
			if h.gate && s.now-h.asked >= s.cfg.FenceAgain {
				s.fence(h)
			}
			if h.gate {
				s.fenceAt = min(s.fenceAt, h.asked+s.cfg.FenceAgain)
			}
		}
	}
	if s.census.open > 0 {
		s.censusAgain()
		s.mayBecomeActive()
	}
	s.strange = false
	for _, h := range s.order {
		s.strange = s.strange || h.strange
	}
	for range min(16, len(s.order)) {
		s.cursor = (s.cursor + 1) % len(s.order)
		h := s.order[s.cursor]
		if h.fenced && (h.all.n > 0 || h.strange) && s.now-h.asked >= s.cfg.Audit {
			s.fence(h)
		}
	}
}

// versionKnown sets the limits of a version and serves the calls that waited for them.
func (s *Scheduler) versionKnown(c *starling.Version, most int) {
	v := s.versions.find(c.ID)
	if v == nil || v.gone || s.phase != Activating && s.phase != Active {
		return
	}
	if v.of == nil {
		s.place(v, c)
	}
	s.knowAccount(v.of.account, most)
	s.setLimits(v, c)
	if len(s.memory.inherited) > 0 {
		for _, o := range v.of.members {
			s.setLimits(o, o.config)
		}
	}
	s.pump(v, nil, 0, 0)
	if v.slot < 0 {
		s.plan(v)
	}
}

// lookupAgain repeats lookups that were not answered.
func (s *Scheduler) lookupAgain() {
	kept := s.unknown[:0]
	for _, v := range s.unknown {
		if v.of != nil || v.gone {
			continue
		}
		kept = append(kept, v)
		if s.now-v.lookupAt >= s.cfg.LookupAgain {
			s.lookup(v)
		}
	}
	clear(s.unknown[len(kept):])
	s.unknown = kept
}

// versionGone refuses the calls of a deleted version and stops its instances when their calls have ended.
func (s *Scheduler) versionGone(id starling.VersionID) {
	v := s.versions.find(id)
	if v == nil {
		return
	}
	v.gone = true
	s.rejectWaiting(v, int(v.waiting), starling.NotFound, ReasonVersionGone, "the version was deleted", 0)
	for i := v.all.front; i != nil; i = v.all.front {
		s.stop(i, false)
	}
	s.mayForget(v)
}
