package cluster

import (
	"context"
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"starling"
)

const (
	shardCount = 256
	missingMax = 16 // remembered absences of one shard
	missingAge = time.Second
)

// A cache remembers what was read until it is dropped. A hit takes no lock, writes to no shared memory and
// allocates nothing; a change copies its shard, which is a 256th of the whole. Of several misses of one key at a time, one reads and the others wait for it. That something is
// missing is remembered for missingAge at most, in a store of its own, so that made-up keys push out nothing.
type cache[K comparable, V any] struct {
	hash   func(K) uint64 // keys of equal hash share a shard
	max    int            // entries of one shard; one at random makes room
	now    func() time.Time
	drops  atomic.Uint64 // raised before each drop
	shards [shardCount]shard[K, V]
}

type shard[K comparable, V any] struct {
	entries atomic.Pointer[map[K]V] // replaced whole, never edited
	mu      sync.Mutex              // a leaf: guards the replacement of entries and what follows
	missing map[K]absence
	flights map[K]*flight[V]
	life    uint64 // raised by each drop: a read that began before is not remembered
	misses  uint64
}

// An absence is a remembered refusal.
type absence struct {
	err   error
	until time.Time
}

// A flight is one read on its way.
type flight[V any] struct {
	done  chan struct{} // closed when value and err are set
	value V
	err   error
}

// hasher returns a hash of its own for each cache, so that nobody outside can aim at one shard.
func hasher[K comparable]() func(K) uint64 {
	seed := maphash.MakeSeed()
	return func(k K) uint64 { return maphash.Comparable(seed, k) }
}

func newCache[K comparable, V any](entries int, now func() time.Time, hash func(K) uint64) *cache[K, V] {
	c := &cache[K, V]{hash: hash, max: max(1, entries/shardCount), now: now}
	for i := range c.shards {
		s := &c.shards[i]
		s.entries.Store(&map[K]V{})
		s.missing, s.flights = map[K]absence{}, map[K]*flight[V]{}
	}
	return c
}

func (c *cache[K, V]) shard(k K) *shard[K, V] {
	return &c.shards[c.hash(k)%shardCount]
}

// get returns what is remembered of k, or what read returns. read's error is remembered only when it is
// NotFound.
func (c *cache[K, V]) get(ctx context.Context, k K, read func(context.Context, K) (V, error)) (V, error) {
	s := c.shard(k)
	if v, ok := (*s.entries.Load())[k]; ok {
		return v, nil
	}
	for {
		v, err, again := c.miss(ctx, s, k, read)
		if !again {
			return v, err
		}
	}
}

// miss reads k, or waits for who does. again means that the one who read gave up for reasons of its own.
func (c *cache[K, V]) miss(ctx context.Context, s *shard[K, V], k K, read func(context.Context, K) (V, error)) (v V, err error, again bool) {
	s.mu.Lock()
	if v, ok := (*s.entries.Load())[k]; ok {
		s.mu.Unlock()
		return v, nil, false
	}
	if a, ok := s.missing[k]; ok && c.now().Before(a.until) {
		s.mu.Unlock()
		return v, a.err, false
	}
	if f := s.flights[k]; f != nil {
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return v, starling.Errorf(starling.Timeout, "read catalog", "the deadline passed while the catalog was read"), false
		case <-f.done:
			return f.value, f.err, starling.KindOf(f.err) == starling.Unavailable && ctx.Err() == nil
		}
	}
	f := &flight[V]{done: make(chan struct{})}
	s.flights[k] = f
	life := s.life
	s.misses++
	s.mu.Unlock()

	f.value, f.err = read(ctx, k)

	s.mu.Lock()
	if s.flights[k] == f {
		delete(s.flights, k)
	}
	if s.life == life {
		c.remember(s, k, f)
	}
	s.mu.Unlock()
	close(f.done)
	return f.value, f.err, false
}

// remember keeps the result of a flight. The caller holds the shard's lock.
func (c *cache[K, V]) remember(s *shard[K, V], k K, f *flight[V]) {
	switch {
	case f.err == nil:
		c.keep(s, k, f.value)
	case starling.KindOf(f.err) == starling.NotFound:
		if len(s.missing) >= missingMax {
			clear(s.missing)
		}
		s.missing[k] = absence{err: f.err, until: c.now().Add(missingAge)}
	}
}

// keep adds an entry. The caller holds the shard's lock.
func (c *cache[K, V]) keep(s *shard[K, V], k K, v V) {
	s.edit(func(entries map[K]V) {
		for victim := range entries {
			if len(entries) < c.max {
				break
			}
			delete(entries, victim)
		}
		entries[k] = v
	})
}

// put keeps a value that another read brought along, unless anything was dropped since drops was what it is given as.
func (c *cache[K, V]) put(k K, v V, drops uint64) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.drops.Load() == drops {
		c.keep(s, k, v)
	}
}

// edit replaces the entries by an edited copy. The caller holds the shard's lock.
func (s *shard[K, V]) edit(f func(map[K]V)) {
	entries := maps.Clone(*s.entries.Load())
	f(entries)
	s.entries.Store(&entries)
}

// drop forgets k, and lets no read of k's shard that is on its way be remembered or be waited for.
func (c *cache[K, V]) drop(k K) { c.dropLike(k, nil) }

// dropLike is drop for k and for every key of its shard that is like it.
func (c *cache[K, V]) dropLike(k K, like func(K) bool) {
	c.drops.Add(1)
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life++
	clear(s.missing)
	clear(s.flights)
	s.edit(func(entries map[K]V) {
		delete(entries, k)
		if like != nil {
			maps.DeleteFunc(entries, func(other K, _ V) bool { return like(other) })
		}
	})
}

// dropAll forgets everything.
func (c *cache[K, V]) dropAll() {
	c.drops.Add(1)
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.life++
		s.entries.Store(&map[K]V{})
		clear(s.missing)
		clear(s.flights)
		s.mu.Unlock()
	}
}

// misses and size are for the metrics.
func (c *cache[K, V]) misses() (n uint64) {
	for i := range c.shards {
		c.shards[i].mu.Lock()
		n += c.shards[i].misses
		c.shards[i].mu.Unlock()
	}
	return n
}

func (c *cache[K, V]) size() (n int) {
	for i := range c.shards {
		n += len(*c.shards[i].entries.Load())
	}
	return n
}
