package sched

import (
	"time"

	"starling"
	"starling/actors/wire"
)

// The stable reasons of refusals.
const (
	ReasonQueueFull    = "QueueFull"     // too many calls of the function, or of the partition, wait
	ReasonQueueTimeout = "QueueTimeout"  // no slot came free in time
	ReasonFunction     = "FunctionLimit" // the same, and the function has as many slots as it may have
	ReasonAccount      = "AccountLimit"  // the same, and the account has as many slots as it may have
	ReasonNoHost       = "NoHost"        // no host could start an instance in time
	ReasonNoIsolation  = "NoIsolation"   // no living host gives the version's isolation
	ReasonVersionGone  = "VersionGone"   // deleted meanwhile
	ReasonMoved        = "Moved"         // another node owns the key now
)

// acquire answers at once when a slot is free, and otherwise lets the call wait.
func (s *Scheduler) acquire(from starling.NodeID, m *wire.Acquire) {
	s.counts.Acquires++
	if s.phase != Activating && s.phase != Active || m.Epoch > s.epoch || !s.keys.Contains(m.Key) {
		s.reject(from, m.Call, starling.Moved, ReasonMoved, "ask the partition's owner", 0)
		return
	}
	v := s.addVersion(m.Version)
	if v.waiting == 0 && v.free.front != nil && s.mayLease(v) {
		s.grant(v, v.free.front, from, m.Call, starling.Phases{})
		s.count(v)
		return
	}
	s.wait(v, from, m)
}

// mayLease reports whether the limits leave room for one more slot of v.
func (s *Scheduler) mayLease(v *version) bool {
	if !s.granting() || !v.known() {
		return false
	}
	leased := int(v.leased)
	if !v.alone { // not the common case: one far look into memory more
		leased = v.of.leased
	}
	if leased >= int(v.limit) {
		return false // permits would serve nobody
	}
	a := v.account
	return a.leased < a.purse.Permits || s.morePermits(a)
}

// wait puts a call into the queue, or refuses it when it is full or waiting is pointless.
func (s *Scheduler) wait(v *version, from starling.NodeID, m *wire.Acquire) {
	k := callKey{from, m.Call}
	if s.waiters[k] != nil {
		return // asked again while it waits: the answer will come
	}
	v.untold-- // the governor is asked below
	ahead := int(v.waiting)
	if v.of != nil {
		ahead = v.of.waiting
	}
	switch {
	case v.gone:
		s.refuse(v, from, m.Call, starling.NotFound, ReasonVersionGone, "the version was deleted", 0)
		return
	case s.held(v) && v.ready == 0 && v.starting == 0:
		s.refuse(v, from, m.Call, starling.Failed, v.holdReason, v.holdText, v.hold-s.now)
		return
	case m.Wait <= 0:
		s.refuse(v, from, m.Call, starling.Overloaded, ReasonQueueTimeout, "no instance is free and the call does not wait", time.Second)
		return
	case !s.cfg.Bounds.Admit(ahead, len(s.waiters)):
		s.refuse(v, from, m.Call, starling.Overloaded, ReasonQueueFull, "too many calls wait for this function: retry later or raise its limits", s.pause(v))
		return
	}
	w := s.newWaiter()
	*w = waiter{call: m.Call, node: from, version: v, key: m.Key, since: s.now, deadline: s.now + min(m.Wait, s.cfg.Bounds.Age)}
	s.enqueue(w)
	s.startFor(v)
	s.recallFor(v)
}

// enqueue books a call that waits.
func (s *Scheduler) enqueue(w *waiter) {
	v := w.version
	s.waiters[callKey{w.node, w.call}] = w
	s.deadlines.push(w)
	h := v.holderOf(w.node, true)
	h.queue.pushBack(w)
	h.waiting++
	v.waiting++
	if v.of != nil {
		v.of.waiting++
	}
	s.becomeHungry(v)
}

func (s *Scheduler) newWaiter() *waiter {
	n := len(s.unused)
	if n == 0 {
		return &waiter{}
	}
	w := s.unused[n-1]
	s.unused = s.unused[:n-1]
	return w
}

// leaveQueue takes a waiter out of all books; it is not answered here.
func (s *Scheduler) leaveQueue(w *waiter) {
	v := w.version
	h := v.holderOf(w.node, false)
	h.queue.remove(w)
	h.waiting--
	v.drop(h)
	v.waiting--
	if v.of != nil {
		v.of.waiting--
	}
	s.deadlines.remove(w)
	delete(s.waiters, callKey{w.node, w.call})
	if v.waiting == 0 {
		s.becomeFed(v)
	}
	s.unused = append(s.unused, w)
}

func (s *Scheduler) cancel(from starling.NodeID, call uint64) {
	if w := s.waiters[callKey{from, call}]; w != nil {
		s.counts.Cancelled++
		s.leaveQueue(w)
		s.mayForget(w.version)
	}
}

// pump serves the waiting calls of v while slots are free, then asks for what is missing. The slots of cold, which
// may be nil, became free by its start.
func (s *Scheduler) pump(v *version, cold *instance, start, init time.Duration) {
	for v.waiting > 0 && v.free.front != nil && s.mayLease(v) {
		w, i := s.nextWaiter(v), v.free.front
		p := starling.Phases{Queue: s.now - w.since}
		if i == cold {
			p = phases(s.now-w.since, s.now-i.began, start, init)
		}
		node, call := w.node, w.call
		s.leaveQueue(w)
		s.grant(v, i, node, call, p)
	}
	if v.waiting > 0 {
		s.startFor(v)
		s.recallFor(v)
	}
}

// phases divides a wait by what happened at its end: first the initialisation, before it the start, before that
// the way to the host, and the rest was the queue.
func phases(wait, sinceDecision, start, init time.Duration) starling.Phases {
	var p starling.Phases
	rest := wait
	cut := func(d time.Duration) time.Duration {
		d = max(min(d, rest), 0)
		rest -= d
		return d
	}
	p.Init = cut(init)
	p.Start = cut(max(start, time.Microsecond)) // not 0, so that a cold call is seen as one
	p.Place = cut(sinceDecision - start - init)
	p.Queue = rest
	return p
}

// nextWaiter returns the call served next: the frontends take turns, each with its oldest.
func (s *Scheduler) nextWaiter(v *version) *waiter {
	for {
		if int(v.turn) >= len(v.holders) {
			v.turn = 0
		}
		h := &v.holders[v.turn]
		v.turn++
		if h.queue.front != nil {
			return h.queue.front
		}
	}
}

// pumpHungry serves every version with waiters that can be served.
func (s *Scheduler) pumpHungry() {
	for n := len(s.hungry) - 1; n >= 0; n-- {
		if n < len(s.hungry) { // one pump may feed others
			s.pump(s.hungry[n], nil, 0, 0)
		}
	}
}

// pumpAccount gives one slot of the account that came free to one of its waiting versions, in turns.
func (s *Scheduler) pumpAccount(a *account) {
	for n := len(a.hungry); n > 0 && len(a.hungry) > 0 && a.leased < a.purse.Permits; n-- {
		if a.turn >= len(a.hungry) {
			a.turn = 0
		}
		v := a.hungry[a.turn]
		a.turn++
		if v.free.front != nil || v.starting == 0 {
			s.pump(v, nil, 0, 0)
		}
	}
}

func (s *Scheduler) becomeHungry(v *version) {
	if v.hungryAt < 0 {
		v.hungryAt = len(s.hungry)
		s.hungry = append(s.hungry, v)
	}
	if v.of != nil && v.accountAt < 0 {
		a := v.of.account
		v.accountAt = len(a.hungry)
		a.hungry = append(a.hungry, v)
		s.wake(a)
	}
}

func (s *Scheduler) becomeFed(v *version) {
	if n := v.hungryAt; n >= 0 {
		last := s.hungry[len(s.hungry)-1]
		s.hungry[n], last.hungryAt = last, n
		s.hungry, v.hungryAt = s.hungry[:len(s.hungry)-1], -1
	}
	if n := v.accountAt; n >= 0 {
		a := v.of.account
		last := a.hungry[len(a.hungry)-1]
		a.hungry[n], last.accountAt = last, n
		a.hungry, v.accountAt = a.hungry[:len(a.hungry)-1], -1
	}
}

// expireWaiters refuses the calls whose time is up, with the reason that kept them waiting.
func (s *Scheduler) expireWaiters() {
	for len(s.deadlines) > 0 && s.deadlines[0].deadline <= s.now {
		w := s.deadlines[0]
		v := w.version
		s.leaveQueue(w)
		switch {
		case !v.known():
			s.refuse(v, w.node, w.call, starling.Unavailable, ReasonQueueTimeout, "the manager did not tell the version's configuration in time: retry", time.Second)
		case v.of.inUse() >= int(v.limit):
			s.refuse(v, w.node, w.call, starling.Overloaded, ReasonFunction, "the function has as many slots as it may have, and none came free in time: retry later or raise its limit", s.pause(v))
		case v.of.account.leased >= v.of.account.purse.Permits && v.free.front != nil:
			s.refuse(v, w.node, w.call, starling.Overloaded, ReasonAccount, "the account has as many slots as it may have, and none came free in time: retry later or raise its limit", s.pause(v))
		case v.ready > 0 || v.starting > 0 || v.of.inUse() >= int(v.limit) || v.of.account.leased >= v.of.account.purse.Permits:
			s.refuse(v, w.node, w.call, starling.Overloaded, ReasonQueueTimeout, "no instance came free in time: retry later or raise the limits", s.pause(v))
		case v.trouble != "":
			s.refuse(v, w.node, w.call, starling.Unavailable, ReasonNoHost, v.trouble, time.Second)
		default:
			s.refuse(v, w.node, w.call, starling.Unavailable, ReasonNoHost, "no host has room for an instance of this function: add hosts or retry later", time.Second)
		}
		s.mayForget(v)
	}
}

// pause is how long a refused call of v is asked to stay away: as long as one that waits has waited already, because
// that is what waiting takes now; at least a second.
func (s *Scheduler) pause(v *version) time.Duration {
	oldest := s.now
	for k := range v.holders {
		if w := v.holders[k].queue.front; w != nil {
			oldest = min(oldest, w.since)
		}
	}
	return min(max(s.now-oldest, time.Second), s.cfg.Bounds.Age)
}

// rejectWaiting refuses up to n waiting calls of v.
func (s *Scheduler) rejectWaiting(v *version, n int, k starling.Kind, reason, text string, after time.Duration) {
	for ; n > 0 && v.waiting > 0; n-- {
		w := s.nextWaiter(v)
		s.leaveQueue(w)
		s.refuse(v, w.node, w.call, k, reason, text, after)
	}
}

// refuse is reject for a call of a version that is known here.
func (s *Scheduler) refuse(v *version, to starling.NodeID, call uint64, k starling.Kind, reason, text string, after time.Duration) {
	if v.untold == 0 {
		s.tell(v)
	}
	v.refused++
	s.reject(to, call, k, reason, text, after)
}

func (s *Scheduler) reject(to starling.NodeID, call uint64, k starling.Kind, reason, text string, after time.Duration) {
	s.counts.refused(k, reason)
	r := s.out.rejects.next()
	*r = wire.Reject{Call: call, Partition: s.id, Reject: k, Reason: reason, Message: text, After: max(after, 0)}
	s.out.send(to, r)
}

// Expect looks at what the messages of a batch are about to touch, and changes nothing. The processor fetches for many
// calls at once then, where Step after Step waits for the memory of each; call it before the Steps of a batch.
func (s *Scheduler) Expect(batch []wire.Message) {
	for _, m := range batch {
		switch m := m.(type) {
		case *wire.Acquire:
			if v := s.versions.find(m.Version); v != nil && v.free.front != nil {
				s.seen += v.free.front.used
			}
		case *wire.Release:
			for _, id := range m.Leases {
				if slot := uint32(id); uint64(slot) < uint64(len(s.leases)) && s.leases[slot].instance != nil {
					s.seen += s.leases[slot].instance.version.leased
				}
			}
		}
	}
}
