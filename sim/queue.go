package sim

import "time"

// A runner is something that happens at an instant.
type runner interface{ run(w *World) }

// A do is a function that happens at an instant.
type do func()

func (f do) run(*World) { f() }

// An entry is one event to come. What was put in first comes first among those of one instant, so that a world has
// one history only.
type entry struct {
	at  time.Duration
	seq uint64
	do  runner
}

func (e *entry) before(o *entry) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

// A queue holds the events to come in a heap with four children a node: half as deep as one with two.
type queue struct {
	heap []entry
	seq  uint64
}

func (q *queue) empty() bool { return len(q.heap) == 0 }

func (q *queue) first() *entry { return &q.heap[0] }

func (q *queue) push(at time.Duration, r runner) {
	q.seq++
	e := entry{at, q.seq, r}
	q.heap = append(q.heap, e)
	i := len(q.heap) - 1
	for i > 0 {
		p := (i - 1) / 4
		if !e.before(&q.heap[p]) {
			break
		}
		q.heap[i] = q.heap[p]
		i = p
	}
	q.heap[i] = e
}

func (q *queue) pop() entry {
	top := q.heap[0]
	n := len(q.heap) - 1
	e := q.heap[n]
	q.heap[n] = entry{}
	q.heap = q.heap[:n]
	if n == 0 {
		return top
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= n {
			break
		}
		for c := least + 1; c < min(4*i+5, n); c++ {
			if q.heap[c].before(&q.heap[least]) {
				least = c
			}
		}
		if !q.heap[least].before(&e) {
			break
		}
		q.heap[i] = q.heap[least]
		i = least
	}
	q.heap[i] = e
	return top
}

// at lets r happen after d.
func (w *World) at(d time.Duration, r runner) { w.events.push(w.now+max(d, 0), r) }
