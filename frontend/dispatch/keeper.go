package dispatch

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

const (
	tick        = 10 * time.Millisecond // between looks at idle leases
	askTicks    = 5                     // looks at waiting calls are so much rarer
	renewEvery  = starling.LeaseTTL / 3
	tombstone   = 2 * starling.LeaseTTL // a lease is remembered for so long after its end
	poolKeep    = starling.LeaseTTL     // an empty pool is kept for so long
	orphanMax   = 20 * time.Millisecond // an acquire that nobody waits for is withdrawn after this
	batchLeases = 2000                  // leases of one message; a frame holds several times as many
	batchDemand = 500
)

// A keeper does for a dispatcher what no call does: it returns idle leases, renews the others, asks again and
// ends waits that took too long. It is one goroutine, at rest while nothing is held.
type keeper struct {
	d      *Dispatcher
	parked atomic.Bool
	signal chan struct{} // of capacity 1
	ticks  int
	round  uint64        // of reports: each pool is in one message of a round
	next   time.Duration // of the next renewal

	mu       sync.Mutex // a leaf; guards renewals
	renewals map[life]*renewal
}

// A life is one partition in one epoch.
type life struct {
	partition starling.PartitionID
	epoch     starling.Epoch
}

// A renewal is what was asked of one life and is not answered.
type renewal struct {
	sent   time.Duration
	leases []*lease
	count  int // messages since the last lone answer; with more than one an answer cannot be told from another
}

func (k *keeper) init(d *Dispatcher) {
	k.d = d
	k.signal = make(chan struct{}, 1)
	k.renewals = map[life]*renewal{}
}

// wake ends the rest of the keeper; it costs one load when the keeper is at work.
func (k *keeper) wake() {
	if k.parked.Load() {
		k.hurry()
	}
}

// hurry makes the keeper look at once.
func (k *keeper) hurry() {
	select {
	case k.signal <- struct{}{}:
	default:
	}
}

// run is the dispatcher's only goroutine.
func (k *keeper) run(ctx context.Context) {
	t := time.NewTimer(tick)
	defer t.Stop()
	changed := k.d.cfg.Topology.Changed()
	for {
		pace := t.C
		if !k.busy() {
			k.parked.Store(true)
			if k.busy() {
				k.parked.Store(false)
			} else {
				pace = nil
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = k.d.cfg.Topology.Changed()
			k.mapChanged()
		case <-k.signal:
			k.collect(k.d.now())
		case <-pace:
			k.look(k.d.now())
			t.Reset(tick)
		}
		if k.parked.Swap(false) {
			t.Reset(tick)
		}
	}
}

// busy reports whether anything is held that time changes.
func (k *keeper) busy() bool {
	for i := range k.d.shards {
		s := &k.d.shards[i]
		s.mu.Lock()
		held := len(s.pools) > 0 || len(s.asks) > 0 || len(s.returns) > 0
		s.mu.Unlock()
		if held {
			return true
		}
	}
	return k.d.index.size() > 0
}

// look does what is due.
func (k *keeper) look(now time.Duration) {
	k.ticks++
	k.collect(now)
	if k.ticks%askTicks == 0 {
		k.attend(now)
	}
	if now >= k.next {
		k.next = now + renewEvery
		k.renew(now)
		k.forget(now)
	}
}

// owners finds the owner of each partition by its id.
func (k *keeper) owners() map[starling.PartitionID]partmap.Partition {
	m := k.d.cfg.Topology.Map()
	if m == nil {
		return nil
	}
	out := make(map[starling.PartitionID]partmap.Partition, len(m.Partitions))
	for _, p := range m.Partitions {
		out[p.ID] = p
	}
	return out
}

// collect drops leases that were idle for long and tells the partitions of all that ended.
func (k *keeper) collect(now time.Duration) {
	var back map[life]*wire.Release
	k.round++
	for i := range k.d.shards {
		s := &k.d.shards[i]
		s.mu.Lock()
		for l := s.idle.first; l != nil && (now-l.idleSince >= starling.LeaseIdleReturn || now >= l.expires); l = s.idle.first {
			l.pool.drop(l, now)
		}
		for _, l := range s.returns {
			if back == nil {
				back = map[life]*wire.Release{}
			}
			at := life{l.Partition, l.Epoch}
			r := back[at]
			if r == nil {
				r = &wire.Release{Partition: l.Partition, Epoch: l.Epoch}
				back[at] = r
			}
			r.Leases = append(r.Leases, l.ID)
			r.Demand = l.pool.report(r.Demand, k.round)
		}
		clear(s.returns)
		s.returns = s.returns[:0]
		s.mu.Unlock()
	}
	if back != nil {
		k.release(back)
	}
}

func (k *keeper) release(back map[life]*wire.Release) {
	owners := k.owners()
	for at, r := range back {
		owner := owners[at.partition].Owner
		if owner == 0 {
			continue // nobody to tell; the lease ends by itself
		}
		to := wire.Address{Node: owner, Partition: at.partition}
		for len(r.Leases) > 0 || len(r.Demand) > 0 {
			n, m := min(len(r.Leases), batchLeases), min(len(r.Demand), batchDemand)
			k.d.cfg.Post.Send(to, &wire.Release{Partition: r.Partition, Epoch: r.Epoch, Leases: r.Leases[:n:n], Demand: r.Demand[:m:m]})
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
func (k *keeper) attend(now time.Duration) {
	for i := range k.d.shards {
		s := &k.d.shards[i]
		var again []*ask
		var cancel []*ask
		s.mu.Lock()
		for _, a := range s.asks {
			switch w := a.holder; {
			case w != nil && now >= w.giveUp:
				w.err = w.tooLate()
				a.pool.answer(w, now)
			case w != nil && now >= a.next && (a.next != 0 || now-a.since > askNoOwner):
				again = append(again, a)
			case w == nil && now-a.since >= orphanMax:
				a.pool.finish(a)
				cancel = append(cancel, a)
			}
		}
		s.mu.Unlock()
		for _, a := range again {
			k.d.ask(s, a)
		}
		for _, a := range cancel {
			if a.to.ID != 0 {
				k.d.cfg.Post.Send(wire.Address{Node: a.to.Owner, Partition: a.to.ID}, &wire.Cancel{Partition: a.to.ID, Call: a.call})
			}
		}
	}
}

// renew asks every partition to prolong what we hold of it, with the demand we saw.
func (k *keeper) renew(now time.Duration) {
	k.round++
	owners := k.owners()
	batch := map[life]*wire.Renew{}
	held := map[life][]*lease{}
	for _, l := range k.d.index.all() {
		s := k.d.shard(l.Version)
		s.mu.Lock()
		if !l.gone && owners[l.Partition].Owner != 0 {
			at := life{l.Partition, l.Epoch}
			r := batch[at]
			if r == nil {
				r = &wire.Renew{Partition: l.Partition, Epoch: l.Epoch}
				batch[at] = r
			}
			r.Leases = append(r.Leases, l.ID)
			held[at] = append(held[at], l)
			// A function whose leases are of several partitions reports to one of them, drawn by the order of a map.
			r.Demand = l.pool.report(r.Demand, k.round)
			if l.asked == 0 {
				l.asked = now
			}
		}
		s.mu.Unlock()
	}
	for at, r := range batch {
		to := wire.Address{Node: owners[at.partition].Owner, Partition: at.partition}
		n := 0
		for ls, ds := r.Leases, r.Demand; len(ls) > 0 || len(ds) > 0; n++ {
			i, j := min(len(ls), batchLeases), min(len(ds), batchDemand)
			part := &wire.Renew{Partition: r.Partition, Epoch: r.Epoch, Leases: ls[:i:i], Demand: ds[:j:j]}
			ls, ds = ls[i:], ds[j:]
			k.noteRenewal(at, now, held[at])
			k.d.cfg.Post.Send(to, part)
		}
	}
}

// noteRenewal remembers a renewal, so that its answer can be held against it.
func (k *keeper) noteRenewal(at life, now time.Duration, held []*lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := k.renewals[at]
	if r == nil || now-r.sent > tombstone {
		k.renewals[at] = &renewal{sent: now, leases: held, count: 1}
		return
	}
	r.count++ // until tombstone has passed since the first, so that no late answer is misread
}

// answered drops what the partition did not prolong. When several renewals were under way nobody can tell
// which of them this answers; the leases then end by themselves.
func (k *keeper) answered(m *wire.Renewed) {
	at := life{m.Partition, m.Epoch}
	k.mu.Lock()
	r := k.renewals[at]
	if r == nil {
		k.mu.Unlock()
		return
	}
	alone, leases := r.count == 1, r.leases
	if alone {
		delete(k.renewals, at)
	}
	k.mu.Unlock()
	if !alone || len(leases) == len(m.Leases) {
		return
	}
	kept := make(map[starling.LeaseID]bool, len(m.Leases))
	for _, id := range m.Leases {
		kept[id] = true
	}
	now := k.d.now()
	for _, l := range leases {
		if kept[l.ID] {
			continue
		}
		s := k.d.shard(l.Version)
		s.mu.Lock()
		k.endLease(l, now)
		s.mu.Unlock()
	}
}

// endLease takes l out of use: now when it is idle, else when its call ends. The shard's lock is held.
func (k *keeper) endLease(l *lease, now time.Duration) {
	if l.gone {
		return
	}
	l.recalled = true
	l.pool.ready.remove(l)
	if l.idle() {
		l.pool.drop(l, now)
	}
}

// mapChanged asks anew what was asked of a former owner, and ends the leases of past epochs and of hosts that are
// gone: their next use would fail, or be lost with a host that is just closing.
func (k *keeper) mapChanged() {
	now := k.d.now()
	owners := k.owners()
	for _, l := range k.d.index.all() {
		p, ok := owners[l.Partition]
		if ok && p.Epoch <= l.Epoch && (k.d.cfg.Alive == nil || k.d.cfg.Alive(l.Host)) {
			continue
		}
		s := k.d.shard(l.Version)
		s.mu.Lock()
		k.endLease(l, now)
		s.mu.Unlock()
	}
	m := k.d.cfg.Topology.Map()
	for i := range k.d.shards {
		s := &k.d.shards[i]
		var again []*ask
		s.mu.Lock()
		for _, a := range s.asks {
			p, ok := lookup(m, a.key)
			if ok && a.holder != nil && (a.to.ID != p.ID || a.to.Epoch != p.Epoch || a.to.Owner != p.Owner) {
				again = append(again, a)
			}
		}
		s.mu.Unlock()
		for _, a := range again {
			k.d.ask(s, a)
		}
	}
}

// forget drops empty pools and leases that ended a while ago.
func (k *keeper) forget(now time.Duration) {
	for i := range k.d.shards {
		s := &k.d.shards[i]
		s.mu.Lock()
		for v, p := range s.pools {
			if p.leases == 0 && p.waiting == 0 && p.inFlight == 0 && len(p.orphans) == 0 && now-p.used >= poolKeep {
				delete(s.pools, v)
			}
		}
		s.mu.Unlock()
	}
	var ended []*lease
	k.mu.Lock()
	for at, r := range k.renewals {
		if now-r.sent > tombstone {
			delete(k.renewals, at)
		}
	}
	k.mu.Unlock()
	for _, l := range k.d.index.all() {
		s := k.d.shard(l.Version)
		s.mu.Lock()
		if l.gone && now-l.goneAt >= tombstone {
			ended = append(ended, l)
		}
		s.mu.Unlock()
	}
	k.d.index.forget(ended)
}

// returnAll gives back every idle lease and withdraws every acquire.
func (k *keeper) returnAll() {
	now := k.d.now()
	for _, l := range k.d.index.all() {
		s := k.d.shard(l.Version)
		s.mu.Lock()
		k.endLease(l, now)
		s.mu.Unlock()
	}
	k.collect(now)
	k.attend(now + orphanMax)
}
