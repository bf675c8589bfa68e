package cluster

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"starling"
)

const (
	shardCount = 32
	missingMax = 64 // remembered absences of one shard
	missingAge = time.Second
)

// A cache remembers what was read until it is dropped. A hit takes one read lock of one shard and allocates
// nothing. Of several misses of one key at a time, one reads and the others wait for it. That something is
// missing is remembered for missingAge at most, in a store of its own, so that made-up keys push out nothing.
type cache[K comparable, V any] struct {
	hash   func(K) uint64 // keys of equal hash share a shard
	max    int            // entries of one shard; one at random makes room
	now    func() time.Time
	shards [shardCount]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu      sync.RWMutex // a leaf: guards what follows, but hits
	entries map[K]V
	missing map[K]absence
	flights map[K]*flight[V]
	life    uint64 // raised by each drop: a read that began before is not remembered
	hits    atomic.Uint64
	_       [40]byte // keeps the next shard's lock off this one's cache line
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
		s.entries, s.missing, s.flights = map[K]V{}, map[K]absence{}, map[K]*flight[V]{}
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
	s.mu.RLock()
	v, ok := s.entries[k]
	s.mu.RUnlock()
	if ok {
		s.hits.Add(1)
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
	if v, ok := s.entries[k]; ok {
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
		if len(s.entries) >= c.max {
			for victim := range s.entries {
				delete(s.entries, victim)
				break
			}
		}
		s.entries[k] = f.value
	case starling.KindOf(f.err) == starling.NotFound:
		if len(s.missing) >= missingMax {
			clear(s.missing)
		}
		s.missing[k] = absence{err: f.err, until: c.now().Add(missingAge)}
	}
}

// drop forgets k, and lets no read of k's shard that is on its way be remembered or be waited for.
func (c *cache[K, V]) drop(k K) { c.dropLike(k, nil) }

// dropLike is drop for k and for every key of its shard that is like it.
func (c *cache[K, V]) dropLike(k K, like func(K) bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life++
	clear(s.missing)
	clear(s.flights)
	delete(s.entries, k)
	if like == nil {
		return
	}
	for other := range s.entries {
		if like(other) {
			delete(s.entries, other)
		}
	}
}

// dropAll forgets everything.
func (c *cache[K, V]) dropAll() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.life++
		clear(s.entries)
		clear(s.missing)
		clear(s.flights)
		s.mu.Unlock()
	}
}

// hits and size are for the metrics.
func (c *cache[K, V]) hits() (n uint64) {
	for i := range c.shards {
		n += c.shards[i].hits.Load()
	}
	return n
}

func (c *cache[K, V]) size() (n int) {
	for i := range c.shards {
		c.shards[i].mu.RLock()
		n += len(c.shards[i].entries)
		c.shards[i].mu.RUnlock()
	}
	return n
}
