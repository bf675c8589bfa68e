package leases

import (
	"cmp"
	"slices"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// Tick is the pause between two calls of Look.
const Tick = 10 * time.Millisecond

const (
	askTicks    = 5 // looks at waiting calls are so much rarer
	renewEvery  = starling.LeaseTTL / 3
	tombstone   = 2 * starling.LeaseTTL // a lease is remembered for so long after its end
	poolKeep    = starling.LeaseTTL     // an empty pool is kept for so long
	orphanMax   = 20 * time.Millisecond // an acquire that nobody waits for is withdrawn after this
	batchLeases = 2000                  // leases of one message; a frame holds several times as many
	batchDemand = 500
)

const (
	askAgain    = 250 * time.Millisecond // first repetition of an acquire without an answer; then doubled
	askAgainMax = time.Second
	askNoOwner  = 20 * time.Millisecond // between looks at a map in which nobody owns the key
)

// A life is one partition in one epoch.
type life struct {
	partition starling.PartitionID
	epoch     starling.Epoch
}

// A route is a life that granted leases, and the partition that has them now.
type route struct {
	life
	home starling.PartitionID
}

// home returns the partition that has l in its books now; ok is false when there is none.
func (c *Cache) home(l *Lease, owners map[starling.PartitionID]partmap.Partition) (p partmap.Partition, ok bool) {
	if m := c.cfg.Map(); l.Key != 0 && m != nil {
		return m.Lookup(l.Key)
	}
	p, ok = owners[l.Partition] // granted by a node of an older release
	return p, ok
}

// A renewal is what was asked of one life and is not answered.
type renewal struct {
	sent   time.Duration
	leases []*Lease
	count  int // messages since the last lone answer; with more than one an answer cannot be told from another
}

// Look does what is due: it returns idle leases, renews the others, asks again and ends waits that took too long.
// Call it every Tick while Busy, from one goroutine with Collect and MapChanged.
func (c *Cache) Look(now time.Duration) {
	c.ticks++
	for i := range c.shards {
		c.shards[i].look(now)
	}
	c.Collect(now)
	if c.ticks%askTicks == 0 {
		c.attend(now)
	}
	if now >= c.next {
		c.next = now + renewEvery
		c.renew(now)
		c.forget(now)
	}
}

// look notes when the cache was looked after: the process was not stopped then.
func (s *shard) look(now time.Duration) {
	s.mu.Lock()
	s.before, s.looked = s.looked, now
	s.mu.Unlock()
}

// owners finds the owner of each partition by its id. It is made anew only when the map is another.
func (c *Cache) owners() map[starling.PartitionID]partmap.Partition {
	m := c.cfg.Map()
	if m == nil || m == c.ownersOf {
		return c.owned
	}
	c.ownersOf, c.owned = m, make(map[starling.PartitionID]partmap.Partition, len(m.Partitions))
	for _, p := range m.Partitions {
		c.owned[p.ID] = p
	}
	return c.owned
}

// Collect drops leases that were idle for long and tells the partitions of all that ended.
func (c *Cache) Collect(now time.Duration) {
	var back batch[*wire.Release]
	c.round++
	owners := c.owners()
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for l := s.idle.first; l != nil && (now-l.idleSince >= starling.LeaseIdleReturn || now >= l.expires); l = s.idle.first {
			l.pool.drop(l, now)
		}
		for _, l := range s.returns {
			p, _ := c.home(l, owners)
			r, isNew := back.of(route{life{l.Partition, l.Epoch}, p.ID})
			if isNew {
				*r = &wire.Release{Partition: l.Partition, Epoch: l.Epoch}
			}
			(*r).Leases = append((*r).Leases, l.ID)
			(*r).Demand = l.pool.report((*r).Demand, c.round)
		}
		clear(s.returns)
		s.returns = s.returns[:0]
		s.mu.Unlock()
	}
	if len(back.order) > 0 {
		c.release(&back, owners)
	}
}

// A batch collects one thing for each route, in the order in which the routes came up.
type batch[T any] struct {
	order []route
	at    map[route]*T
}

// of returns the place of one route's thing.
func (b *batch[T]) of(l route) (t *T, isNew bool) {
	if b.at == nil {
		b.at = map[route]*T{}
	}
	t = b.at[l]
	if t == nil {
		t = new(T)
		b.at[l], b.order, isNew = t, append(b.order, l), true
	}
	return t, isNew
}

func (c *Cache) release(back *batch[*wire.Release], owners map[starling.PartitionID]partmap.Partition) {
	for _, at := range back.order {
		r, owner := *back.at[at], owners[at.home].Owner
		if owner == 0 {
			continue // nobody to tell; the lease ends by itself
		}
		to := wire.Address{Node: owner, Partition: at.home}
		for len(r.Leases) > 0 || len(r.Demand) > 0 {
			n, m := min(len(r.Leases), batchLeases), min(len(r.Demand), batchDemand)
			c.cfg.Send(to, &wire.Release{Partition: r.Partition, Epoch: r.Epoch, Leases: r.Leases[:n:n], Demand: r.Demand[:m:m]})
			r.Leases, r.Demand = r.Leases[n:], r.Demand[m:]
		}
	}
}

// report appends what p saw since its last report, if anything, once a round.
func (p *pool) report(dst []wire.Demand, round uint64) []wire.Demand {
	if p.round == round {
		return dst
	}
	p.round = round
	d := p.demand
	d.Waiting, d.InFlight = uint32(p.waiting), uint32(p.inFlight)
	if d == (wire.Demand{Version: p.version}) {
		return dst
	}
	p.demand = wire.Demand{Version: p.version}
	return append(dst, d)
}

// attend ends waits that took too long, withdraws acquires that nobody waits for and repeats the others.
func (c *Cache) attend(now time.Duration) {
	for i := range c.shards {
		s := &c.shards[i]
		var late, again, cancel []*ask
		s.mu.Lock()
		for _, a := range s.asks {
			switch w := a.holder; {
			case w != nil && now >= w.GiveUp:
				late = append(late, a)
			case w != nil && now >= a.next && (a.next != 0 || now-a.since > askNoOwner):
				again = append(again, a)
			case w == nil && now-a.since >= orphanMax:
				cancel = append(cancel, a)
			}
		}
		for _, a := range cancel {
			a.pool.finish(a)
		}
		slices.SortFunc(late, byCall) // the order of a map is random; what leaves is not
		for _, a := range late {
			w := a.holder
			w.Err = w.tooLate()
			a.pool.answer(w, now)
		}
		s.mu.Unlock()
		slices.SortFunc(again, byCall)
		slices.SortFunc(cancel, byCall)
		for _, a := range again {
			c.ask(s, a, now)
		}
		for _, a := range cancel {
			if a.to.ID != 0 {
				c.cfg.Send(wire.Address{Node: a.to.Owner, Partition: a.to.ID}, &wire.Cancel{Partition: a.to.ID, Call: a.call})
			}
		}
	}
}

func byCall(a, b *ask) int { return cmp.Compare(a.call, b.call) }

// A prolonging is what one life is asked to renew.
type prolonging struct {
	wire.Renew
	held []*Lease
}

// renew asks every partition to prolong what we hold of it, with the demand we saw.
func (c *Cache) renew(now time.Duration) {
	c.round++
	owners := c.owners()
	var all batch[prolonging]
	c.each(func(l *Lease) {
		p, _ := c.home(l, owners)
		if l.gone || p.Owner == 0 {
			return
		}
		r, _ := all.of(route{life{l.Partition, l.Epoch}, p.ID})
		r.Leases = append(r.Leases, l.ID)
		r.held = append(r.held, l)
		// A function whose leases are of several partitions reports to one of them, that of its oldest lease.
		r.Demand = l.pool.report(r.Demand, c.round)
		if l.asked == 0 {
			l.asked = now
		}
	})
	for _, at := range all.order {
		r := all.at[at]
		to := wire.Address{Node: owners[at.home].Owner, Partition: at.home}
		for ls, ds := r.Leases, r.Demand; len(ls) > 0 || len(ds) > 0; {
			i, j := min(len(ls), batchLeases), min(len(ds), batchDemand)
			part := &wire.Renew{Partition: at.partition, Epoch: at.epoch, Leases: ls[:i:i], Demand: ds[:j:j]}
			ls, ds = ls[i:], ds[j:]
			c.noteRenewal(at.life, now, r.held)
			c.cfg.Send(to, part)
		}
	}
}

// noteRenewal remembers a renewal, so that its answer can be held against it.
func (c *Cache) noteRenewal(at life, now time.Duration, held []*Lease) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.renewals[at]
	if r == nil || now-r.sent > tombstone {
		c.renewals[at] = &renewal{sent: now, leases: held, count: 1}
		return
	}
	r.count++ // until tombstone has passed since the first, so that no late answer is misread
}

// answered drops what the partition did not prolong. When several renewals were under way nobody can tell
// which of them this answers; the leases then end by themselves.
func (c *Cache) answered(now time.Duration, m *wire.Renewed) {
	at := life{m.Partition, m.Epoch}
	c.mu.Lock()
	r := c.renewals[at]
	if r == nil {
		c.mu.Unlock()
		return
	}
	alone, leases := r.count == 1, r.leases
	if alone {
		delete(c.renewals, at)
	}
	c.mu.Unlock()
	if !alone || len(leases) == len(m.Leases) {
		return
	}
	kept := make(map[starling.LeaseID]bool, len(m.Leases))
	for _, id := range m.Leases {
		kept[id] = true
	}
	for _, l := range leases {
		if kept[l.ID] {
			continue
		}
		s := c.shard(l.Version)
		s.mu.Lock()
		c.end(l, now)
		s.mu.Unlock()
	}
}

// MapChanged asks anew what was asked of a former owner, and ends the leases from before a recovery and of hosts that are
// gone: their next use would fail, or be lost with a host that is just closing. A hand-over ends none.
func (c *Cache) MapChanged(now time.Duration) {
	m := c.cfg.Map()
	owners := c.owners()
	c.mu.Lock()
	waited := c.early
	c.early = nil
	c.mu.Unlock()
	for _, e := range waited {
		c.census(now, e.from, e.m)
	}
	c.each(func(l *Lease) {
		p, ok := c.home(l, owners)
		if !ok || p.Since > l.Epoch || c.cfg.Alive != nil && !c.cfg.Alive(l.Host) {
			c.end(l, now)
		}
	})
	for i := range c.shards {
		s := &c.shards[i]
		var again []*ask
		s.mu.Lock()
		s.swept = m
		for _, a := range s.asks {
			p, ok := lookup(m, a.key)
			if ok && a.holder != nil && (a.to.ID != p.ID || a.to.Epoch != p.Epoch || a.to.Owner != p.Owner) {
				again = append(again, a)
			}
		}
		s.mu.Unlock()
		slices.SortFunc(again, byCall)
		for _, a := range again {
			c.ask(s, a, now)
		}
	}
}

// forget drops empty pools and leases that ended a while ago.
func (c *Cache) forget(now time.Duration) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for v, p := range s.pools {
			if p.leases == 0 && p.waiting == 0 && p.inFlight == 0 && len(p.orphans) == 0 && now-p.used >= poolKeep {
				delete(s.pools, v)
			}
		}
		s.mu.Unlock()
	}
	var ended []*Lease
	c.mu.Lock()
	for at, r := range c.renewals {
		if now-r.sent > tombstone {
			delete(c.renewals, at)
		}
	}
	c.mu.Unlock()
	c.each(func(l *Lease) {
		if l.gone && now-l.goneAt >= tombstone {
			l.pool.shard.known.remove(l)
			ended = append(ended, l)
		}
	})
	c.index.forget(ended)
}
