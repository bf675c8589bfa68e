package leases

import (
	"time"

	"starling"
)

// A Lease is one granted lease with the slots of it that are free. All but the embedded Lease, which never
// changes, is guarded by its shard's lock.
type Lease struct {
	starling.Lease
	pool      *pool
	free      uint16
	gone      bool          // no longer ours; kept in the index for a while so that a late copy is known
	recalled  bool          // to be returned as soon as it is idle, and not used again
	expires   time.Duration // not used after this, which is earlier than the partition's own end of it
	asked     time.Duration // when the oldest renewal that is not answered was sent; 0 for none
	idleSince time.Duration
	goneAt    time.Duration
	links     [listCount]link
}

// usable reports whether a new call may begin on l.
func (l *Lease) usable(now time.Duration) bool { return !l.gone && !l.recalled && now < l.expires }

// idle reports whether no call is at work on l.
func (l *Lease) idle() bool { return l.free == l.Slots }

// extend lets l live for ttl from the moment from, less a margin for the two clocks and the way between.
func (l *Lease) extend(from, ttl time.Duration) {
	if ttl <= 0 {
		ttl = starling.LeaseTTL
	}
	l.expires = max(l.expires, from+ttl-ttl/8)
}

// A leaseKey names a lease in the cluster.
type leaseKey struct {
	partition starling.PartitionID
	epoch     starling.Epoch
	id        starling.LeaseID
}

func keyOf(l *starling.Lease) leaseKey { return leaseKey{l.Partition, l.Epoch, l.ID} }

// The lists that a lease can be in.
const (
	byUse  = iota // of its pool: has a free slot; the most recently used one first
	byIdle        // of its shard: wholly idle; the one idle for longest first
	byAge         // of its shard: known at all; the one granted first is first
	listCount
)

type link struct {
	prev, next *Lease
	in         bool
}

// A leaseList is a doubly linked list through one of the links of its leases.
type leaseList struct {
	which       int
	first, last *Lease
}

func (q *leaseList) pushFirst(l *Lease) {
	k := &l.links[q.which]
	if k.in {
		return
	}
	*k = link{next: q.first, in: true}
	if q.first != nil {
		q.first.links[q.which].prev = l
	} else {
		q.last = l
	}
	q.first = l
}

func (q *leaseList) pushLast(l *Lease) {
	k := &l.links[q.which]
	if k.in {
		return
	}
	*k = link{prev: q.last, in: true}
	if q.last != nil {
		q.last.links[q.which].next = l
	} else {
		q.first = l
	}
	q.last = l
}

func (q *leaseList) remove(l *Lease) {
	k := &l.links[q.which]
	if !k.in {
		return
	}
	if k.prev != nil {
		k.prev.links[q.which].next = k.next
	} else {
		q.first = k.next
	}
	if k.next != nil {
		k.next.links[q.which].prev = k.prev
	} else {
		q.last = k.prev
	}
	*k = link{}
}

// An index finds leases by name, for recalls and renewals. A lease that is gone stays in it for a while: a
// grant that was sent twice must not bring back what was returned already.
type index struct {
	mu     Locker // a leaf
	leases map[leaseKey]*Lease
}

// add puts l in and reports false when it is known.
func (x *index) add(l *Lease) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := keyOf(&l.Lease)
	if x.leases[k] != nil {
		return false
	}
	x.leases[k] = l
	return true
}

// find returns those of ids that are known, in the same order.
func (x *index) find(p starling.PartitionID, e starling.Epoch, ids []starling.LeaseID) []*Lease {
	out := make([]*Lease, 0, len(ids))
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		if l := x.leases[leaseKey{p, e, id}]; l != nil {
			out = append(out, l)
		}
	}
	return out
}

// size counts the leases in the index.
func (x *index) size() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.leases)
}

// forget drops the given leases.
func (x *index) forget(ls []*Lease) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range ls {
		delete(x.leases, keyOf(&l.Lease))
	}
}
