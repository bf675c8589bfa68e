package sched

import "starling"

// The scheduler's books are linked through the things themselves, so that moving one costs no search and no
// allocation, and so that every walk has one order.

// leaseLinks are the places of a lease in one list.
type leaseLinks struct{ prev, next *lease }

// A leaseList runs through links l.in[which].
type leaseList struct {
	front, back *lease
	which       int
}

const (
	byExpiry   = iota // soonest end first
	byInstance        // of one instance
	leaseListCount
)

func (q *leaseList) pushBack(l *lease) {
	l.in[q.which] = leaseLinks{prev: q.back}
	if q.back != nil {
		q.back.in[q.which].next = l
	} else {
		q.front = l
	}
	q.back = l
}

func (q *leaseList) remove(l *lease) {
	k := l.in[q.which]
	if k.prev != nil {
		k.prev.in[q.which].next = k.next
	} else {
		q.front = k.next
	}
	if k.next != nil {
		k.next.in[q.which].prev = k.prev
	} else {
		q.back = k.prev
	}
	l.in[q.which] = leaseLinks{}
}

type instanceLinks struct{ prev, next *instance }

// links returns the places of i in the lists of one kind.
func (i *instance) links(which int32) *instanceLinks {
	if which == byFree {
		return &i.free
	}
	return &i.in[which]
}

// An instanceList runs through i.links(which).
type instanceList struct {
	front, back *instance
	which       int32
	n           int32
}

const (
	byVersion = iota // of one version: all, in the order of their starts
	byHost           // of one host: all
	byCheck          // starting: next look at it first
	coldListCount
	byFree = coldListCount // of one version: ready with a free slot, most recently used first
)

func (q *instanceList) pushBack(i *instance) {
	*i.links(q.which) = instanceLinks{prev: q.back}
	if q.back != nil {
		q.back.links(q.which).next = i
	} else {
		q.front = i
	}
	q.back = i
	q.n++
}

func (q *instanceList) pushFront(i *instance) {
	*i.links(q.which) = instanceLinks{next: q.front}
	if q.front != nil {
		q.front.links(q.which).prev = i
	} else {
		q.back = i
	}
	q.front = i
	q.n++
}

func (q *instanceList) remove(i *instance) {
	k := i.links(q.which)
	if k.prev != nil {
		k.prev.links(q.which).next = k.next
	} else {
		q.front = k.next
	}
	if k.next != nil {
		k.next.links(q.which).prev = k.prev
	} else {
		q.back = k.prev
	}
	*k = instanceLinks{}
	q.n--
}

// A waiter is one call in the queue.
type waiter struct {
	call       uint64
	node       starling.NodeID // the frontend that asks
	version    *version
	key        starling.Key64 // of the call
	since      instant
	deadline   instant
	place      int     // in the heap of deadlines
	prev, next *waiter // in the queue of one frontend for one version
}

type waiterList struct{ front, back *waiter }

func (q *waiterList) pushBack(w *waiter) {
	w.prev, w.next = q.back, nil
	if q.back != nil {
		q.back.next = w
	} else {
		q.front = w
	}
	q.back = w
}

func (q *waiterList) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.front = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.back = w.prev
	}
	w.prev, w.next = nil, nil
}

func (w *waiter) before(o *waiter) bool {
	if w.deadline != o.deadline {
		return w.deadline < o.deadline
	}
	if w.since != o.since {
		return w.since < o.since
	}
	return w.call < o.call || w.call == o.call && w.node < o.node
}

func (w *waiter) at() *int { return &w.place }

// A ready instance stands in a heap once, by a lower bound of the instant when it will have been idle for the
// keep-alive. Using an instance does not touch the heap: the bound is corrected when it comes to the top.
func (i *instance) before(o *instance) bool {
	return i.due < o.due || i.due == o.due && (i.id.Epoch < o.id.Epoch || i.id.Epoch == o.id.Epoch && i.id.Seq < o.id.Seq)
}

func (i *instance) at() *int { return &i.heapAt }

// An item of a heap has an order and remembers its place.
type item[T any] interface {
	before(T) bool
	at() *int
}

// A heap holds its smallest item at index 0.
type heap[T item[T]] []T

func (h heap[T]) set(i int, x T) { h[i] = x; *x.at() = i }

func (h *heap[T]) push(x T) {
	*h = append(*h, x)
	h.up(len(*h)-1, x)
}

func (h *heap[T]) remove(x T) {
	var zero T
	q, i, n := *h, *x.at(), len(*h)-1
	last := q[n]
	q[n] = zero
	*h = q[:n]
	*x.at() = -1
	if i != n {
		h.set(i, last)
		h.fix(last)
	}
}

// fix moves x to where it belongs after its order changed.
func (h heap[T]) fix(x T) {
	h.down(*x.at(), x)
	h.up(*x.at(), x)
}

func (h heap[T]) up(i int, x T) {
	for i > 0 {
		p := (i - 1) / 2
		if !x.before(h[p]) {
			break
		}
		h.set(i, h[p])
		i = p
	}
	h.set(i, x)
}

func (h heap[T]) down(i int, x T) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].before(h[c]) {
			c++
		}
		if !h[c].before(x) {
			break
		}
		h.set(i, h[c])
		i = c
	}
	h.set(i, x)
}
