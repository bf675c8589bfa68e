package leases

import (
	"math"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// A shard holds the pools of some versions, so that calls of different functions meet in no lock.
type shard struct {
	n  int
	mu Locker // nothing is sent while it is held, and no lock taken but the index's

	pools   map[starling.VersionID]*pool
	asks    map[uint64]*ask
	known   leaseList // every lease in the index, oldest first
	idle    leaseList // wholly idle leases, idle for longest first
	returns []*Lease  // gone, the partition not told yet
	live    int       // leases that are not gone
	calls   uint64    // the last id drawn
	stride  uint64    // between two ids: the number of shards
	closed  bool      // no call may wait any more

	cfg   *Config
	until time.Duration // the node lease was seen to run until then
	swept *partmap.Map  // no lease from before a recovery in it is used any more

	looked time.Duration // last Look
	before time.Duration // the one before it
}

// A pool is what this frontend holds of one version.
type pool struct {
	shard    *shard
	version  starling.VersionID
	ready    leaseList // leases with a free slot, most recently used first, so that the rest can go
	first    *Waiter   // calls that wait, in order of arrival
	last     *Waiter
	waiting  int
	orphans  []*ask // asked for calls that were served otherwise; the next caller takes one over
	leases   int
	inFlight int
	demand   wire.Demand // since the last report; Waiting and InFlight are filled in then
	used     time.Duration
	round    uint64 // of the keeper's last report
}

// A Waiter is one call without a slot. The caller sets Key, GiveUp, ByCaller and Ready and gives it to Cache.Wait;
// from then on it belongs to the cache until Ready is called or Leave returned true.
type Waiter struct {
	Key      starling.Key64  // of the function's span, drawn for this call
	GiveUp   time.Duration   // it is refused at this instant
	ByCaller bool            // the caller's deadline set GiveUp
	Ready    func()          // called once, when Lease or Err is set; a lock may be held, so it must neither block nor call the cache
	Lease    *Lease          // with a slot taken for the call; give it back with Put
	Phases   starling.Phases // what the call waited for
	Err      error

	pool       *pool
	prev, next *Waiter
	ask        *ask
}

// An ask is one acquire that is not answered.
type ask struct {
	call   uint64
	key    starling.Key64
	pool   *pool
	holder *Waiter // nil for an orphan
	since  time.Duration
	made   time.Duration // no answer to it is older
	giveUp time.Duration
	to     partmap.Partition // whom it was sent to; the zero Partition for nobody yet
	next   time.Duration     // when to send it again
	tries  int
	done   bool
}

func (s *shard) init(n int, cfg *Config) {
	s.n, s.cfg, s.mu = n, cfg, cfg.Lock()
	if cfg.NodeLease == nil {
		s.until = math.MaxInt64
	}
	s.calls, s.stride = cfg.FirstCall*uint64(cfg.Shards)+uint64(n), uint64(cfg.Shards)
	s.pools = map[starling.VersionID]*pool{}
	s.asks = map[uint64]*ask{}
	s.idle.which, s.known.which = byIdle, byAge
}

// draw returns the id of a new ask; its remainder by the number of shards names the shard.
func (s *shard) draw() uint64 {
	s.calls += s.stride
	return s.calls
}

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

// take returns a lease with one of its slots taken, or nil.
func (s *shard) take(now time.Duration, v starling.VersionID) *Lease {
	s.mu.Lock()
	p := s.poolOf(v)
	p.demand.Arrivals++
	p.used = now
	l := p.slot(now)
	s.mu.Unlock()
	return l
}

// mayUse reports whether calls may begin under leases: others count this node dead when its own lease is over, and give away what it may
// still hold. After that nothing begins before the map is known that came with the next node lease.
func (s *shard) mayUse(now time.Duration) bool {
	if now < s.until {
		return true
	}
	if u := s.cfg.NodeLease(); u > now && s.swept == s.cfg.Map() { // in this order: a view takes the map before the lease
		s.until = u
		return true
	}
	return false
}

// slot takes a free slot; leases found too old on the way are returned.
func (p *pool) slot(now time.Duration) *Lease {
	if p.ready.first == nil || !p.shard.mayUse(now) {
		return nil
	}
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
func (p *pool) begin(l *Lease) {
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
func (p *pool) drop(l *Lease, now time.Duration) {
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
func (s *shard) put(now time.Duration, l *Lease, broken bool, start time.Duration) (urgent bool) {
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
	urgent = p.settle(l, now, false)
	s.mu.Unlock()
	return urgent
}

// settle puts the free slots of l to use: for those who wait, else for those who come. It reports whether the
// lease is one that its partition waits for. fresh says that the lease has just been granted.
func (p *pool) settle(l *Lease, now time.Duration, fresh bool) (urgent bool) {
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
	for l.free > 0 && p.first != nil && p.shard.mayUse(now) {
		w := p.first
		p.begin(l)
		w.Lease = l
		if !fresh {
			w.Phases = starling.Phases{Queue: now - w.ask.since}
		} else {
			w.Phases = l.Phases
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
func (p *pool) answer(w *Waiter, now time.Duration) {
	p.unlink(w)
	if a := w.ask; a != nil && !a.done {
		a.holder, a.since = nil, now
		p.orphans = append(p.orphans, a)
	}
	w.Ready()
}

func (p *pool) unlink(w *Waiter) {
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
func (s *shard) enqueue(now time.Duration, v starling.VersionID, w *Waiter) (*Lease, *ask, error) {
	if now >= w.GiveUp {
		return nil, nil, w.tooLate()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
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
		a.holder, w.ask, w.Key = w, a, a.key
		a.since, a.giveUp = now, w.GiveUp
		return nil, nil, nil
	}
	a := &ask{call: s.draw(), key: w.Key, pool: p, holder: w, since: now, made: now, giveUp: w.GiveUp}
	w.ask = a
	s.asks[a.call] = a
	return nil, a, nil
}

// leave takes w out of the queue; false means that it was answered already.
func (s *shard) leave(now time.Duration, w *Waiter) bool {
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
func (w *Waiter) tooLate() error {
	if w.ByCaller {
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

// failAll answers every waiting call with err and lets none wait from now on.
func (s *shard) failAll(now time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, p := range s.pools {
		for p.first != nil {
			w := p.first
			w.Err = err
			p.answer(w, now)
		}
	}
}
