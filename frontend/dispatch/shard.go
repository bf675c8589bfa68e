package dispatch

import (
	"sync"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// shardCount is a power of two; a call id carries its shard in the low bits.
const (
	shardBits  = 6
	shardCount = 1 << shardBits
)

const (
	askAgain    = 250 * time.Millisecond // first repetition of an acquire without an answer; then doubled
	askAgainMax = time.Second
	askNoOwner  = 20 * time.Millisecond // between looks at a map in which nobody owns the key
)

// A shard holds the pools of some versions, so that calls of different functions meet in no lock.
type shard struct {
	n  int
	mu sync.Mutex // nothing is sent while it is held, and no lock taken but the index's

	pools   map[starling.VersionID]*pool
	asks    map[uint64]*ask
	idle    leaseList // wholly idle leases, idle for longest first
	returns []*lease  // gone, the partition not told yet
	live    int       // leases that are not gone
}

// A pool is what this frontend holds of one version.
type pool struct {
	shard    *shard
	version  starling.VersionID
	ready    leaseList // leases with a free slot, most recently used first, so that the rest can go
	first    *waiter   // calls that wait, in order of arrival
	last     *waiter
	waiting  int
	orphans  []*ask // asked for calls that were served otherwise; the next caller takes one over
	leases   int
	inFlight int
	demand   wire.Demand // since the last report; Waiting and InFlight are filled in then
	used     time.Duration
	round    uint64 // of the keeper's last report
}

// A waiter is one call without a slot. Its fields but ready are guarded by the shard's lock until ready
// holds a value; then they belong to the call.
type waiter struct {
	ready      chan struct{} // of capacity 1; a value in it is the answer's arrival
	pool       *pool
	prev, next *waiter
	key        starling.Key64
	ask        *ask
	giveUp     time.Duration
	byCaller   bool
	lease      *lease
	phases     starling.Phases
	err        error
}

// An ask is one acquire that is not answered.
type ask struct {
	call   uint64
	key    starling.Key64
	pool   *pool
	holder *waiter // nil for an orphan
	since  time.Duration
	giveUp time.Duration
	to     partmap.Partition // whom it was sent to; the zero Partition for nobody yet
	next   time.Duration     // when to send it again
	tries  int
	done   bool
}

func (s *shard) init(n int) {
	s.n = n
	s.pools = map[starling.VersionID]*pool{}
	s.asks = map[uint64]*ask{}
	s.idle.which = byIdle
}

func (d *Dispatcher) shard(v starling.VersionID) *shard { return &d.shards[v&(shardCount-1)] }

// poolOf returns the pool of a version, a new one if need be.
func (s *shard) poolOf(v starling.VersionID) *pool {
	p := s.pools[v]
	if p == nil {
		p = &pool{shard: s, version: v, ready: leaseList{which: byUse}}
		p.demand.Version = v
		s.pools[v] = p
	}
	return p
}

// take returns a lease with one of its slots taken, or nil, and the time.
func (s *shard) take(d *Dispatcher, v starling.VersionID) (*lease, time.Duration) {
	now := d.now()
	s.mu.Lock()
	p := s.poolOf(v)
	p.demand.Arrivals++
	p.used = now
	l := p.slot(now)
	s.mu.Unlock()
	return l, now
}

// slot takes a free slot; leases found too old on the way are returned.
func (p *pool) slot(now time.Duration) *lease {
	for l := p.ready.first; l != nil; l = p.ready.first {
		if !l.usable(now) {
			p.ready.remove(l)
			if l.idle() {
				p.drop(l, now)
			}
			continue
		}
		p.begin(l)
		return l
	}
	return nil
}

// begin takes one slot of l.
func (p *pool) begin(l *lease) {
	if l.idle() {
		p.shard.idle.remove(l)
	}
	l.free--
	if l.free == 0 {
		p.ready.remove(l)
	}
	p.inFlight++
}

// drop makes an idle or broken lease one that is not ours any more.
func (p *pool) drop(l *lease, now time.Duration) {
	if l.gone {
		return
	}
	l.gone, l.goneAt = true, now
	p.ready.remove(l)
	p.shard.idle.remove(l)
	p.leases--
	p.shard.live--
	p.shard.returns = append(p.shard.returns, l)
}

// put gives back a slot of l; broken leases end with it. The slot goes to the call that waits longest.
func (s *shard) put(d *Dispatcher, l *lease, broken bool, start time.Duration) {
	now := d.now()
	p := l.pool
	s.mu.Lock()
	p.inFlight--
	p.used = now
	p.demand.Done++
	p.demand.Busy += now - start
	l.free++
	if broken {
		p.drop(l, now)
	}
	urgent := p.settle(d, l, now, false)
	s.mu.Unlock()
	if urgent {
		d.keeper.hurry()
	}
}

// settle puts the free slots of l to use: for those who wait, else for those who come. It reports whether the
// lease is one that its partition waits for. fresh says that the lease has just been granted.
func (p *pool) settle(d *Dispatcher, l *lease, now time.Duration, fresh bool) (urgent bool) {
	if l.gone {
		return false
	}
	if !l.usable(now) {
		if l.idle() {
			p.drop(l, now)
			return l.recalled
		}
		p.ready.remove(l)
		return false
	}
	for l.free > 0 && p.first != nil {
		w := p.first
		p.begin(l)
		w.lease = l
		if !fresh {
			w.phases = starling.Phases{Queue: now - w.ask.since}
		} else {
			w.phases = l.Phases
		}
		p.answer(w, now)
	}
	if l.free > 0 {
		p.ready.pushFirst(l)
	}
	if l.idle() {
		l.idleSince = now
		p.shard.idle.pushLast(l)
	}
	return false
}

// answer ends the waiting of w; its ask, if it has no answer itself, is for the next who comes.
func (p *pool) answer(w *waiter, now time.Duration) {
	p.unlink(w)
	if a := w.ask; a != nil && !a.done {
		a.holder, a.since = nil, now
		p.orphans = append(p.orphans, a)
	}
	w.ready <- struct{}{}
}

func (p *pool) unlink(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		p.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		p.last = w.prev
	}
	w.prev, w.next = nil, nil
	p.waiting--
}

// enqueue lets w wait. It returns a lease when a slot is free after all, or an ask that is to be sent: none
// when w takes over the ask of a call that was served otherwise.
func (s *shard) enqueue(d *Dispatcher, v starling.VersionID, w *waiter) (*lease, *ask, error) {
	now := d.now()
	if now >= w.giveUp {
		return nil, nil, w.tooLate()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.closed.Load() {
		return nil, nil, starling.Errorf(starling.Unavailable, "invoke function", "this frontend is closing: call another one")
	}
	p := s.poolOf(v)
	p.used = now
	if l := p.slot(now); l != nil {
		return l, nil, nil
	}
	if p.waiting >= starling.QueueMax {
		return nil, nil, starling.Errorf(starling.Overloaded, "invoke function",
			"%d calls of this version wait already: retry after a pause", p.waiting).With("QueueFull").RetryAfter(time.Second)
	}
	w.pool = p
	w.prev = p.last
	if p.last != nil {
		p.last.next = w
	} else {
		p.first = w
	}
	p.last = w
	p.waiting++
	if n := len(p.orphans); n > 0 {
		a := p.orphans[n-1]
		p.orphans = p.orphans[:n-1]
		a.holder, w.ask, w.key = w, a, a.key
		a.since, a.giveUp = now, w.giveUp
		return nil, nil, nil
	}
	a := &ask{call: d.calls.Add(1)<<shardBits | uint64(s.n), key: w.key, pool: p, holder: w, since: now, giveUp: w.giveUp}
	w.ask = a
	s.asks[a.call] = a
	return nil, a, nil
}

// leave takes w out of the queue; false means that it was answered already.
func (s *shard) leave(d *Dispatcher, w *waiter) bool {
	now := d.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.ask.holder != w {
		return false
	}
	w.pool.unlink(w)
	w.ask.holder, w.ask.since = nil, now
	w.pool.orphans = append(w.pool.orphans, w.ask)
	return true
}

// tooLate is the error of a call whose time ran out while it waited.
func (w *waiter) tooLate() error {
	if w.byCaller {
		return starling.Errorf(starling.Timeout, "invoke function", "the deadline passed before an instance was free")
	}
	return starling.Errorf(starling.Overloaded, "invoke function",
		"the call waited its longest time for an instance: retry after a pause").With("QueueTimeout").RetryAfter(time.Second)
}

// asked notes that a is sent to p now and returns the message; with no owner it only notes when to look again.
// A nil message means that there is nothing to send.
func (s *shard) asked(a *ask, p partmap.Partition, owned bool, now time.Duration) *wire.Acquire {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.done || a.holder == nil {
		return nil
	}
	if !owned {
		a.next = now + askNoOwner
		return nil
	}
	if a.to.ID != p.ID || a.to.Epoch != p.Epoch || a.to.Owner != p.Owner {
		a.to, a.tries = p, 0
	}
	a.next = now + min(askAgain<<min(a.tries, 8), askAgainMax)
	a.tries++
	return &wire.Acquire{Call: a.call, Partition: p.ID, Epoch: p.Epoch, Key: a.key, Version: a.pool.version, Wait: a.giveUp - now}
}

// failAll answers every waiting call with err.
func (s *shard) failAll(d *Dispatcher, err error) {
	now := d.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		for p.first != nil {
			w := p.first
			w.err = err
			p.answer(w, now)
		}
	}
}
