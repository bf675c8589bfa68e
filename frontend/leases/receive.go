package leases

import (
	"slices"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// Receive takes one answer of a partition. It reports whether something is to be sent at once: call Collect then.
func (c *Cache) Receive(now time.Duration, from starling.NodeID, m wire.Message) (urgent bool) {
	switch m := m.(type) {
	case *wire.Grant:
		return c.granted(now, m)
	case *wire.Reject:
		c.rejected(now, from, m)
	case *wire.Recall:
		return c.recalled(now, m)
	case *wire.Renewed:
		c.renewed(now, m)
	case *wire.Census:
		return c.census(now, from, m)
	}
	return false
}

// granted hands a lease to the call it answers. If that call was served otherwise, whoever waits longest gets
// it, and if nobody waits it is kept for a moment and then returned.
func (c *Cache) granted(now time.Duration, m *wire.Grant) (urgent bool) {
	s := c.shard(m.Lease.Version)
	l := &Lease{Lease: m.Lease, free: max(1, m.Lease.Slots)}
	l.Slots = l.free
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.poolOf(l.Version)
	a := s.asks[m.Call]
	// A process that was stopped finds grants in its socket, and may look once before it reads them: the partition
	// counts their time since long ago. Not before the last look but one, which would have found them, nor the ask.
	from := s.before
	if a != nil {
		from = max(from, a.made)
	}
	l.extend(from, m.Lease.TTL)
	var w *Waiter
	if a != nil && a.pool.version == l.Version {
		w = p.finish(a)
	}
	if !c.index.add(l) {
		// The same grant once more. A call that still waits for it was given another answer meanwhile only if
		// the lease is gone: ask anew.
		if w != nil {
			s.renewAsk(w, now)
		}
		return false
	}
	s.known.pushLast(l)
	l.pool = p
	p.used = now
	p.leases++
	s.live++
	if c.outlived(&l.Lease) {
		l.recalled = true
	}
	if w != nil && (now >= l.expires || l.recalled || !s.mayUse(now)) {
		s.renewAsk(w, now)
	} else if w != nil {
		p.toFront(w)
	}
	return p.settle(l, now, true)
}

// outlived reports whether l is of a life before the last recovery that this node knows of: it was long on its way, and its partition's
// next owner does not count it.
func (c *Cache) outlived(l *starling.Lease) bool {
	m := c.cfg.Map()
	if m == nil || l.Key == 0 {
		return false
	}
	p, ok := m.Lookup(l.Key)
	return ok && p.Since > l.Epoch
}

// census ends what is left of lives before a recovery, and tells the next owner which calls are at work under it on hosts that he cannot ask.
// It says so when this node has heard of him; he asks again meanwhile. It reports whether something is to be sent at once.
func (c *Cache) census(now time.Duration, from starling.NodeID, m *wire.Census) (urgent bool) {
	for _, p := range c.overlapping(m.Range) {
		if p.Since < m.Epoch {
			c.mu.Lock()
			if len(c.early) < earlyMax {
				c.early = append(c.early, early{from, m})
			}
			c.mu.Unlock()
			return false
		}
	}
	out := &wire.AtWork{Partition: m.Partition, Epoch: m.Epoch, Hosts: m.Hosts}
	c.each(func(l *Lease) {
		switch {
		case l.gone || l.Epoch >= m.Epoch:
		case l.Key == 0: // of an owner of an older release, which does not say whose it is
			out.More = out.More || slices.Contains(m.Hosts, l.Host)
		case m.Range.Contains(l.Key):
			if c.end(l, now); l.gone || !slices.Contains(m.Hosts, l.Host) {
				return
			}
			if out.More = out.More || len(out.Leases) == wire.LeaseMax; !out.More {
				out.Leases = append(out.Leases, l.Lease)
			}
		}
	})
	c.cfg.Send(wire.Address{Node: from, Partition: m.Partition}, out)
	return true
}

// overlapping returns the partitions with keys in r, as the map of this node says.
func (c *Cache) overlapping(r starling.Range) []partmap.Partition {
	if m := c.cfg.Map(); m != nil {
		return m.Overlapping(r)
	}
	return []partmap.Partition{{}}
}

// finish ends an ask that has its answer and returns the call that it was for, nil if that left.
func (p *pool) finish(a *ask) *Waiter {
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
func (p *pool) toFront(w *Waiter) {
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
func (s *shard) renewAsk(w *Waiter, now time.Duration) {
	a := &ask{call: s.draw(), key: w.Key, pool: w.pool, holder: w, since: w.ask.since, made: now, giveUp: w.GiveUp, next: now}
	w.ask = a
	s.asks[a.call] = a
}

// rejected ends the call that is refused, unless the partition only lives elsewhere by now.
func (c *Cache) rejected(now time.Duration, from starling.NodeID, m *wire.Reject) {
	s := &c.shards[m.Call%uint64(len(c.shards))]
	s.mu.Lock()
	a := s.asks[m.Call]
	if a == nil || a.to.ID != m.Partition || a.to.Owner != from {
		s.mu.Unlock()
		return // answered already, or by one whom we do not ask any more
	}
	if m.Reject == starling.Moved && a.holder != nil {
		s.mu.Unlock()
		c.elsewhere(s, a, now)
		return
	}
	if w := a.pool.finish(a); w != nil {
		w.Err = &starling.Error{Kind: m.Reject, Op: "invoke function", Reason: m.Reason, Message: m.Message, After: m.After}
		a.pool.answer(w, now)
	}
	s.mu.Unlock()
}

// elsewhere asks again when our map knows a newer owner, and otherwise waits for the map that does.
func (c *Cache) elsewhere(s *shard, a *ask, now time.Duration) {
	p, ok := lookup(c.cfg.Map(), a.key)
	s.mu.Lock()
	same := ok && a.to.ID == p.ID && a.to.Epoch == p.Epoch && a.to.Owner == p.Owner
	if same {
		a.next = now + min(10*time.Millisecond<<min(a.tries, 8), askAgain)
		a.tries++
	}
	s.mu.Unlock()
	if !same {
		c.ask(s, a, now)
	}
}

// recalled marks leases that the partition wants back; those that are idle can be returned at once.
func (c *Cache) recalled(now time.Duration, m *wire.Recall) (urgent bool) {
	for _, l := range c.index.find(m.Partition, m.Epoch, m.Leases) {
		s := c.shard(l.Version)
		s.mu.Lock()
		urgent = urgent || !l.gone && l.idle()
		c.end(l, now)
		s.mu.Unlock()
	}
	return urgent
}

// renewed prolongs the leases that are named, counted from when they were asked for.
func (c *Cache) renewed(now time.Duration, m *wire.Renewed) {
	for _, l := range c.index.find(m.Partition, m.Epoch, m.Leases) {
		s := c.shard(l.Version)
		s.mu.Lock()
		if !l.gone && l.asked != 0 {
			l.extend(l.asked, m.TTL)
			l.asked = 0
		}
		s.mu.Unlock()
	}
	c.answered(now, m)
}
