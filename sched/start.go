package sched

import (
	"math/bits"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/flow"
)

// held reports whether failures keep v from starting instances now.
func (s *Scheduler) held(v *version) bool { return v.hold > s.now }

// halfOpen reports whether the breaker of v is half open: its instances kept dying young, the pause is over, and one
// instance may show by its life whether others are started. One that lived for DeathYoung closes the breaker.
func (s *Scheduler) halfOpen(v *version) bool {
	if v.deaths < s.cfg.DeathMax {
		return false
	}
	if i := v.all.front; i != nil && i.state == isReady && s.now-i.readyAt >= s.cfg.DeathYoung {
		v.deaths, v.hold = 0, 0
		return false
	}
	return true
}

// rampMin and rampHost say how many starts of a version may be on their way before it has proven a need of more.
const (
	rampMin  = 4
	rampHost = 2 // for each host
)

func (s *Scheduler) ramp() int { return max(rampMin, rampHost*len(s.order)) }

// makeWay stops up to n idle instances of other versions of the same function, whose limit they fill. It looks
// once in a while only: while they are busy, every call that waits would look through all of them.
func (s *Scheduler) makeWay(v *version, n int) {
	if s.now-v.lookedAt < s.cfg.RecallPause {
		return
	}
	v.lookedAt = s.now
	for _, o := range v.of.members {
		if o == v {
			continue
		}
		for i := o.all.front; i != nil && v.evicting < n; {
			next := i.in[byVersion].next
			if i.state == isReady && i.used == 0 {
				s.evict(i, v)
			}
			i = next
		}
	}
}

// startOne chooses a host and asks it for an instance of v; began is when the decision to start was taken first.
func (s *Scheduler) startOne(v *version, began instant) bool {
	h := s.choose(v)
	if h == nil {
		if v.waiting > 0 || int(v.all.n) < v.floor {
			s.evictFor(v)
		}
		return false
	}
	s.startAt(v, h, began)
	return true
}

// startAt asks h for an instance of v.
func (s *Scheduler) startAt(v *version, h *host, began instant) *instance {
	s.seq++
	i := &instance{id: starling.InstanceID{Partition: s.id, Epoch: s.epoch, Seq: s.seq}, version: v, host: h, state: isStarting,
		leases: leaseList{which: byInstance}, instanceRest: &instanceRest{began: began, look: s.now + s.cfg.StartAgain, heapAt: -1}}
	i.key = s.keyFor(v.config.Key(), i.id.Seq)
	s.enter(i)
	h.free -= i.memory
	s.counts.Starts++
	s.sendStart(i)
	return i
}

// keyFor returns a key of the part of a span that is ours, another one for each number: where the span is cut, each part gets its
// share of the instances. Multiples of the golden ratio lie evenly (Knuth, The Art of Computer Programming 3, 6.4).
func (s *Scheduler) keyFor(span starling.Key64, seq uint64) starling.Key64 {
	from := max(spanOf(span), s.keys.Lo)
	to := spanOf(span) + 1<<32 // 0 for the last span of all
	if s.keys.Hi != 0 && s.keys.Hi-1 < to-1 {
		to = s.keys.Hi
	}
	if to-1 < from {
		return from // a span that is not ours at all
	}
	k, _ := bits.Mul64(seq*0x9E3779B97F4A7C15, uint64(to-from))
	return from + starling.Key64(k)
}

// sendStart sends, or sends again, what starts i. A host that runs i already answers Started again.
func (s *Scheduler) sendStart(i *instance) {
	i.sent = s.now
	m := s.out.starts.next()
	*m = wire.Start{Partition: s.id, Epoch: s.epoch, Instance: i.id, Key: i.key, Version: i.version.id}
	s.out.send(i.host.node, m)
}

// enter books a new instance under its version and host.
func (s *Scheduler) enter(i *instance) {
	v, h := i.version, i.host
	i.node = h.node
	v.stale = true
	s.instances[i.id] = i
	h.all.pushBack(i)
	v.all.pushBack(i)
	if v.onHost == nil {
		v.onHost, v.onZone = map[starling.NodeID]int{}, map[starling.Zone]int{}
	}
	v.homes.note(h.node)
	v.onHost[h.node]++
	v.onZone[h.zone]++
	if v.config != nil {
		i.memory = v.config.Config.MemoryMiB
	}
	if v.of != nil {
		v.of.instances++
		v.account.memory += i.memory
	}
	if i.state == isStarting {
		s.starting.pushBack(i)
		s.countStarting(i, 1)
	} else {
		v.ready++
	}
}

func (s *Scheduler) countStarting(i *instance, n int) {
	i.version.starting += n
	i.host.starting += n
	if f := i.version.of; f != nil {
		f.starting += n
		f.account.starting += n * int(i.version.slots)
		s.wake(f.account)
	}
}

// retire takes i out of the books of its version: it serves and counts no more. Its host may still keep it, and slots
// of it that are leased stay so until they are given back or their time is over.
func (s *Scheduler) retire(i *instance) {
	v := i.version
	switch i.state {
	case isStarting:
		s.starting.remove(i)
		s.countStarting(i, -1)
		if o := i.replaces; o != nil {
			o.moving, i.replaces = false, nil
		}
	case isReady:
		v.ready--
		i.host.ready--
		if i.isFree {
			v.free.remove(i)
			i.isFree = false
		}
		if i.heapAt >= 0 {
			s.idle.remove(i)
		}
	case isStopping:
		return
	}
	v.all.remove(i)
	v.stale = true
	if v.floor > 0 {
		s.wheel.arm(v, s.now)
	}
	count(v.onHost, i.host.node)
	count(v.onZone, i.host.zone)
	if v.of != nil {
		v.of.instances--
	}
	i.state = isStopping
	v.leaving++
}

// count takes one from m[k] and keeps no zeros.
func count[K comparable](m map[K]int, k K) {
	if m[k]--; m[k] == 0 {
		delete(m, k)
	}
}

// remove forgets an instance that its host does not have any more: nobody can use its slots.
func (s *Scheduler) remove(i *instance) {
	for l := i.leases.front; l != nil; l = i.leases.front {
		s.forgetLease(l)
	}
	s.leave(i)
}

// leave takes i off the books of its host; its memory is free again.
func (s *Scheduler) leave(i *instance) {
	s.retire(i)
	i.version.leaving--
	if a := i.version.account; a != nil {
		a.memory -= i.memory
	}
	delete(s.instances, i.id)
	i.host.all.remove(i)
	i.host.free += i.memory
	i.host.full = false
	if v := i.forWhom; v != nil {
		v.evicting--
		s.pump(v, nil, 0, 0)
	}
	s.mayForget(i.version)
}

// stop tells the host to end i.
func (s *Scheduler) stop(i *instance, now bool) {
	if i.state == isReady {
		i.version.deaths = 0
	}
	s.retire(i)
	i.sent = s.now
	s.counts.Stops++
	s.sendStop(i.host.node, i.id, now)
}

func (s *Scheduler) sendStop(to starling.NodeID, id starling.InstanceID, now bool) {
	m := s.out.stops.next()
	*m = wire.Stop{Partition: s.id, Epoch: s.epoch, Instance: id, Now: now}
	s.out.send(to, m)
}

// started books an instance as ready and serves the calls that waited for it.
func (s *Scheduler) started(from starling.NodeID, id starling.InstanceID, start, init time.Duration) {
	i := s.instances[id]
	switch {
	case i == nil && id.Partition == s.id && id.Epoch == s.epoch && s.phase == Active:
		s.sendStop(from, id, true) // given up long ago
		return
	case i == nil && s.phase == Active && s.hosts[from] != nil && s.hosts[from].fenced:
		// Perhaps one that a life before ours started, of which we heard that it failed while we repeated its Start: the host's
		// list tells whether its key is ours.
		s.fence(s.hosts[from])
		return
	case i == nil || i.host.node != from || i.state != isStarting:
		return
	}
	v := i.version
	s.starting.remove(i)
	s.countStarting(i, -1)
	i.state = isReady
	v.ready++
	v.failures, v.troubles, v.trouble = 0, 0, ""
	if v.deaths < s.cfg.DeathMax {
		v.hold = 0
	}
	v.stale = true
	v.news.Started++
	v.news.Start += s.now - i.began
	s.becomeReady(i, s.now)
	if o := i.replaces; o != nil {
		i.replaces = nil
		s.replaced(o)
	}
	s.pump(v, i, start, init)
	if v.governor != nil && v.slot < 0 {
		s.wheel.arm(v, s.now) // nobody waited: whether it stays is to be planned
	}
	s.moreRoom() // its host may take the next start
	if v.of != nil && v.of.waiting > int(v.waiting) {
		s.pumpAccount(v.of.account)
	}
}

// becomeReady gives a ready instance its place among the free and the idle; idle is since when it is idle.
func (s *Scheduler) becomeReady(i *instance, idle instant) {
	i.host.ready++
	i.readyAt, i.idle = s.now, idle
	i.due = idle
	s.idle.push(i)
	s.setFree(i)
}

// startFailed takes the next host when this one is full or broken, and holds the version back when the fault is
// its own.
func (s *Scheduler) startFailed(from starling.NodeID, m *wire.StartFailed) {
	i := s.instances[m.Instance]
	if i == nil || i.host.node != from || m.Fault == starling.Moved && i.former(s) {
		return // a Start of the life before came behind our Fence; ours follows
	}
	v, h, began, wasStarting := i.version, i.host, i.began, i.state == isStarting
	s.remove(i)
	if !wasStarting {
		return
	}
	switch {
	case m.Fault == starling.Failed:
		s.counts.StartsFailed++
		v.failures++
		s.holdBack(v, v.failures, m.Reason, m.Message)
		s.rejectWaiting(v, int(v.slots), starling.Failed, m.Reason, m.Message, 0)
		if v.ready == 0 && v.starting == 0 {
			s.rejectWaiting(v, int(v.waiting), starling.Failed, m.Reason, m.Message, v.hold-s.now)
		}
		s.moreRoom()
	case m.Reason == "Full" || m.Reason == reasonStopped:
		h.full = true // nothing came free: the host never had it, or takes no more
		s.startAgain(v, began)
	default:
		s.counts.StartsFailed++
		v.trouble = m.Message
		h.avoid = s.now + time.Second
		if v.troubles++; v.troubles%3 == 0 {
			s.holdBack(v, v.troubles/3, m.Reason, m.Message)
		}
		s.startAgain(v, began)
		s.moreRoom()
	}
	s.mayForget(v)
}

// startAgain replaces a start that a host refused, when it is still wanted: at once while the version has retries to
// spend, and else with the next tick.
func (s *Scheduler) startAgain(v *version, began instant) {
	if int(v.waiting) > v.starting*int(v.slots) && s.granting() && v.known() && !s.held(v) {
		if v.untell(); v.retries < 1 {
			s.counts.RetriesSpared++
			return
		}
		v.retries--
		s.startOne(v, began)
	}
}

// holdBack starts nothing of v for a while that doubles with each failure in a row.
func (s *Scheduler) holdBack(v *version, failures int, reason, text string) {
	v.hold = s.now + flow.Backoff(failures, s.cfg.BackoffFirst, s.cfg.BackoffMax, s.rng)
	v.holdReason, v.holdText = reason, text
}

// reasonStopped is how a host names the end of an instance that somebody asked for.
const reasonStopped = "stopped"

// exited replaces an instance that went away. One that died young, again and again, holds its version back.
func (s *Scheduler) exited(from starling.NodeID, m *wire.Exited) {
	i := s.instances[m.Instance]
	if i == nil || i.host.node != from {
		return
	}
	v := i.version
	if i.state == isReady {
		s.counts.Exits++
		v.news.Lost++
		switch {
		case m.Reason == reasonStopped: // the host closes, say: that tells nothing of the function
		case s.now-i.readyAt >= s.cfg.DeathYoung || v.ready > 1:
			v.deaths = 0 // others of it live
		default:
			if v.deaths++; v.deaths >= s.cfg.DeathMax {
				s.holdBack(v, v.deaths-s.cfg.DeathMax+1, m.Reason, "instances of this function keep dying soon after their start")
			}
		}
	}
	s.gone(i)
}

// gone removes i and lets the limits it filled serve others.
func (s *Scheduler) gone(i *instance) {
	v := i.version
	s.remove(i)
	s.pump(v, nil, 0, 0)
	if v.of != nil {
		s.pumpAccount(v.of.account)
	}
	s.moreRoom()
}

// moreRoom starts what no host had room for, a few versions in turn; the tick goes on with the rest.
func (s *Scheduler) moreRoom() {
	if !s.isStarved() {
		return
	}
	s.feed()
	for n := 0; n < 8 && len(s.hungry) > 0 && !s.isStarved(); n++ {
		s.pump(s.lightest(), nil, 0, 0)
	}
}

// lookAtStarts asks again for instances that were not heard of, and gives up on old ones.
func (s *Scheduler) lookAtStarts() {
	for i := s.starting.front; i != nil && i.look <= s.now; i = s.starting.front {
		if s.now-i.began >= s.cfg.StartMax {
			v := i.version
			i.host.avoid = s.now + time.Second
			v.trouble = "a host did not start the instance in time"
			v.troubles++
			s.stop(i, true)
			s.pump(v, nil, 0, 0)
			continue
		}
		i.look = s.now + s.cfg.StartAgain
		s.starting.remove(i)
		s.starting.pushBack(i)
		s.repeatStart(i)
	}
}

// repeatStart repeats a Start, unless the node lease is over: a host that was restarted knows no fence, and would
// start for a deposed owner.
func (s *Scheduler) repeatStart(i *instance) {
	if s.granting() {
		s.sendStart(i)
	}
}

// former reports whether a life before ours began i.
func (i *instance) former(s *Scheduler) bool { return i.id.Epoch != s.epoch || i.id.Partition != s.id }
