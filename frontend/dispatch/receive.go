package dispatch

import (
	"time"

	"starling"
	"starling/actors/wire"
)

// Receive takes the answers of partitions. It is safe for concurrent use and does not block.
func (d *Dispatcher) Receive(from starling.NodeID, batch []wire.Message) {
	for _, m := range batch {
		switch m := m.(type) {
		case *wire.Grant:
			d.granted(m)
		case *wire.Reject:
			d.rejected(from, m)
		case *wire.Recall:
			d.recalled(m)
		case *wire.Renewed:
			d.renewed(m)
		}
	}
}

// granted hands a lease to the call it answers. If that call was served otherwise, whoever waits longest gets
// it, and if nobody waits it is kept for a moment and then returned.
func (d *Dispatcher) granted(m *wire.Grant) {
	now := d.now()
	s := d.shard(m.Lease.Version)
	l := &lease{Lease: m.Lease, free: max(1, m.Lease.Slots)}
	l.Slots = l.free
	l.extend(now, m.Lease.TTL)
	s.mu.Lock()
	p := s.poolOf(l.Version)
	a := s.asks[m.Call]
	var w *waiter
	if a != nil && a.pool.version == l.Version {
		w = p.finish(a)
	}
	if !d.index.add(l) {
		// The same grant once more. A call that still waits for it was given another answer meanwhile only if
		// the lease is gone: ask anew.
		if w != nil {
			s.renewAsk(d, w, now)
		}
		s.mu.Unlock()
		return
	}
	l.pool = p
	p.used = now
	p.leases++
	s.live++
	if w != nil {
		p.toFront(w)
	}
	urgent := p.settle(d, l, now, true)
	s.mu.Unlock()
	d.keeper.wake()
	if urgent {
		d.keeper.hurry()
	}
}

// finish ends an ask that has its answer and returns the call that it was for, nil if that left.
func (p *pool) finish(a *ask) *waiter {
	delete(p.shard.asks, a.call)
	w := a.holder
	a.done, a.holder = true, nil
	if w == nil {
		for i, o := range p.orphans {
			if o == a {
				p.orphans = append(p.orphans[:i], p.orphans[i+1:]...)
				break
			}
		}
	}
	return w
}

// toFront lets w be served next: the lease that comes is the one that was granted to it.
func (p *pool) toFront(w *waiter) {
	if p.first == w {
		return
	}
	p.unlink(w)
	w.next = p.first
	p.first.prev = w
	p.first = w
	p.waiting++
}

// renewAsk gives a waiting call whose ask was used up a new one; the keeper sends it.
func (s *shard) renewAsk(d *Dispatcher, w *waiter, now time.Duration) {
	a := &ask{call: d.calls.Add(1)<<shardBits | uint64(s.n), key: w.key, pool: w.pool, holder: w, since: w.ask.since, giveUp: w.giveUp, next: now}
	w.ask = a
	s.asks[a.call] = a
}

// rejected ends the call that is refused, unless the partition only lives elsewhere by now.
func (d *Dispatcher) rejected(from starling.NodeID, m *wire.Reject) {
	now := d.now()
	s := &d.shards[m.Call&(shardCount-1)]
	s.mu.Lock()
	a := s.asks[m.Call]
	if a == nil || a.to.ID != m.Partition || a.to.Owner != from {
		s.mu.Unlock()
		return // answered already, or by one whom we do not ask any more
	}
	if m.Reject == starling.Moved && a.holder != nil {
		s.mu.Unlock()
		d.elsewhere(s, a, now)
		return
	}
	if w := a.pool.finish(a); w != nil {
		w.err = &starling.Error{Kind: m.Reject, Op: "invoke function", Reason: m.Reason, Message: m.Message, After: m.After}
		a.pool.answer(w, now)
	}
	s.mu.Unlock()
}

// elsewhere asks again when our map knows a newer owner, and otherwise waits for the map that does.
func (d *Dispatcher) elsewhere(s *shard, a *ask, now time.Duration) {
	p, ok := lookup(d.cfg.Topology.Map(), a.key)
	s.mu.Lock()
	same := ok && a.to.ID == p.ID && a.to.Epoch == p.Epoch && a.to.Owner == p.Owner
	if same {
		a.next = now + min(10*time.Millisecond<<min(a.tries, 8), askAgain)
		a.tries++
	}
	s.mu.Unlock()
	if !same {
		d.ask(s, a)
	}
}

// recalled marks leases that the partition wants back and returns those that are idle at once.
func (d *Dispatcher) recalled(m *wire.Recall) {
	now := d.now()
	hurry := false
	for _, l := range d.index.find(m.Partition, m.Epoch, m.Leases) {
		s := d.shard(l.Version)
		s.mu.Lock()
		if !l.gone {
			l.recalled = true
			l.pool.ready.remove(l)
			if l.idle() {
				l.pool.drop(l, now)
				hurry = true
			}
		}
		s.mu.Unlock()
	}
	if hurry {
		d.keeper.hurry()
	}
}

// renewed prolongs the leases that are named, counted from when they were asked for.
func (d *Dispatcher) renewed(m *wire.Renewed) {
	for _, l := range d.index.find(m.Partition, m.Epoch, m.Leases) {
		s := d.shard(l.Version)
		s.mu.Lock()
		if !l.gone && l.asked != 0 {
			l.extend(l.asked, m.TTL)
			l.asked = 0
		}
		s.mu.Unlock()
	}
	d.keeper.answered(m)
}
