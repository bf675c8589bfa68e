// Package leases decides for a frontend: which lease a call takes, whom to ask when there is none, when a slot is
// given back, when leases are renewed, and what to ask again. It is pure: time, chance, the map and the locks are
// arguments. frontend/dispatch runs it with real ones, the simulator with virtual ones.
package leases

import (
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// A Locker is a lock; sync.Mutex is one.
type Locker interface {
	Lock()
	Unlock()
}

// noLock is the lock of a cache that one goroutine uses.
type noLock struct{}

// Lock does nothing.
func (noLock) Lock() {}

// Unlock does nothing.
func (noLock) Unlock() {}

// Config is what a cache works with.
type Config struct {
	Shards    int                                   // calls of functions in different shards meet in no lock; 0 means 1
	Lock      func() Locker                         // makes the locks; nil when there is one caller at a time
	Map       func() *partmap.Map                   // the newest partition map; nil before the first
	Alive     func(starling.NodeID) bool            // whether a host is not known to be dead or gone; nil: nobody knows
	NodeLease func() time.Duration                  // when the node lease ends; no call begins under a lease after that. nil: never
	Send      func(to wire.Address, m wire.Message) // called with no lock held; the message is the receiver's
	FirstCall uint64                                // ids of asks begin here: a restarted frontend must not be taken for its former life
}

// A Cache holds the leases that partitions granted to one frontend, and the calls that wait for one. Times are
// durations since any fixed instant by a clock that never steps back.
type Cache struct {
	cfg    Config
	shards []shard
	index  index
	ticks  int
	round  uint64        // of reports: each pool is in one message of a round
	next   time.Duration // of the next renewal

	ownersOf *partmap.Map // what owned was made of
	owned    map[starling.PartitionID]partmap.Partition

	mu       Locker // a leaf; guards renewals and early
	renewals map[life]*renewal
	early    []early // at most earlyMax
}

// An early question is one of an owner that this node has not heard of.
type early struct {
	from starling.NodeID
	m    *wire.Census
}

const earlyMax = 256

// New returns a cache that holds nothing.
func New(cfg Config) *Cache {
	cfg.Shards = max(cfg.Shards, 1)
	if cfg.Lock == nil {
		cfg.Lock = func() Locker { return noLock{} }
	}
	c := &Cache{cfg: cfg, shards: make([]shard, cfg.Shards), renewals: map[life]*renewal{}, mu: cfg.Lock()}
	for i := range c.shards {
		c.shards[i].init(i, &c.cfg)
	}
	c.index = index{mu: cfg.Lock(), leases: map[leaseKey]*Lease{}}
	return c
}

func (c *Cache) shard(v starling.VersionID) *shard { return &c.shards[uint64(v)%uint64(len(c.shards))] }

// Take returns a lease of v with one of its slots taken, or nil when the call has to wait. It counts an arrival.
func (c *Cache) Take(now time.Duration, v starling.VersionID) *Lease { return c.shard(v).take(now, v) }

// Wait lets w wait for a slot of v. When a slot is free after all it is returned and Ready is not called. The
// error, when no call may wait any more or its time is over, is final too.
func (c *Cache) Wait(now time.Duration, v starling.VersionID, w *Waiter) (*Lease, error) {
	s := c.shard(v)
	l, a, err := s.enqueue(now, v, w)
	if a != nil {
		c.ask(s, a, now)
	}
	return l, err
}

// Leave takes w out of the queue; false means that it was answered already.
func (c *Cache) Leave(now time.Duration, w *Waiter) bool { return w.pool.shard.leave(now, w) }

// Put gives back the slot that a call took at start; broken says that no other call should use the lease. It
// reports whether something is to be sent at once: call Collect then.
func (c *Cache) Put(now time.Duration, l *Lease, broken bool, start time.Duration) (urgent bool) {
	return l.pool.shard.put(now, l, broken, start)
}

// HostFailed ends the leases on a host that could not be reached, so that no other call finds that out for itself.
func (c *Cache) HostFailed(now time.Duration, host starling.NodeID) {
	c.each(func(l *Lease) {
		if l.Host == host {
			c.end(l, now)
		}
	})
}

// each calls f for every lease of the index, under its shard's lock.
func (c *Cache) each(f func(l *Lease)) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for l := s.known.first; l != nil; {
			next := l.links[byAge].next
			f(l)
			l = next
		}
		s.mu.Unlock()
	}
}

// ask sends an acquire to whoever owns its key now; with no owner Look tries again.
func (c *Cache) ask(s *shard, a *ask, now time.Duration) {
	p, owned := lookup(c.cfg.Map(), a.key)
	if m := s.asked(a, p, owned, now); m != nil {
		c.cfg.Send(wire.Address{Node: p.Owner, Partition: p.ID}, m)
	}
}

// lookup finds the partition of k; ok is false when there is no map or nobody owns it.
func lookup(m *partmap.Map, k starling.Key64) (partmap.Partition, bool) {
	if m == nil {
		return partmap.Partition{}, false
	}
	p, ok := m.Lookup(k)
	return p, ok && p.Owner != 0 && p.Range.Contains(k)
}

// Live counts the leases that are held.
func (c *Cache) Live() (n int) {
	for i := range c.shards {
		c.shards[i].mu.Lock()
		n += c.shards[i].live
		c.shards[i].mu.Unlock()
	}
	return n
}

// Holds reports whether l was received lately, whether a call may begin under it, and whether one is at work.
func (c *Cache) Holds(now time.Duration, l *starling.Lease) (known, usable, busy bool) {
	found := c.index.find(l.Partition, l.Epoch, []starling.LeaseID{l.ID})
	if len(found) == 0 {
		return false, false, false
	}
	s := found[0].pool.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	h := found[0]
	return true, h.usable(now) && s.mayUse(now), !h.gone && now < h.expires && !h.idle()
}

// Busy reports whether anything is held that time changes; otherwise Look need not be called.
func (c *Cache) Busy() bool {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		held := len(s.pools) > 0 || len(s.asks) > 0 || len(s.returns) > 0
		s.mu.Unlock()
		if held {
			return true
		}
	}
	return c.index.size() > 0
}

// FailAll answers every waiting call with err; no call may wait from now on.
func (c *Cache) FailAll(now time.Duration, err error) {
	for i := range c.shards {
		c.shards[i].failAll(now, err)
	}
}

// ReturnAll gives back every idle lease and withdraws every acquire.
func (c *Cache) ReturnAll(now time.Duration) {
	c.each(func(l *Lease) { c.end(l, now) })
	c.Collect(now)
	c.attend(now + orphanMax)
}

// end takes l out of use: now when it is idle, else when its call ends. The shard's lock is held.
func (c *Cache) end(l *Lease, now time.Duration) {
	if l.gone {
		return
	}
	l.recalled = true
	l.pool.ready.remove(l)
	if l.idle() {
		l.pool.drop(l, now)
	}
}
