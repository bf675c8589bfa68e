package compare

import "time"

// A queue gives back at both ends what was put in at its last. Its room is used again.
type queue[T any] struct {
	all  []T
	head int
}

func (q *queue[T]) n() int   { return len(q.all) - q.head }
func (q *queue[T]) first() T { return q.all[q.head] }

func (q *queue[T]) push(x T) {
	if q.head > 32 && q.head > len(q.all)/2 {
		q.all = q.all[:copy(q.all, q.all[q.head:])]
		q.head = 0
	}
	q.all = append(q.all, x)
}

func (q *queue[T]) pop() T {
	x := q.all[q.head]
	if q.head++; q.head == len(q.all) {
		q.all, q.head = q.all[:0], 0
	}
	return x
}

func (q *queue[T]) popLast() T {
	x := q.all[len(q.all)-1]
	if q.all = q.all[:len(q.all)-1]; q.head == len(q.all) {
		q.all, q.head = q.all[:0], 0
	}
	return x
}

// An end is when a running call is over.
type end struct {
	at, took time.Duration
	instance int32
}

// ends is a binary heap by at: container/heap's calls through an interface are a quarter of a replay.
type ends []end

func (h *ends) push(e end) {
	*h = append(*h, e)
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if s[up].at <= s[i].at {
			return
		}
		s[up], s[i] = s[i], s[up]
		i = up
	}
}

func (h *ends) pop() end {
	s := *h
	e := s[0]
	n := len(s) - 1
	s[0] = s[n]
	s = s[:n]
	*h = s
	for i := 0; ; {
		k := 2*i + 1
		if k >= n {
			return e
		}
		if k+1 < n && s[k+1].at < s[k].at {
			k++
		}
		if s[i].at <= s[k].at {
			return e
		}
		s[i], s[k] = s[k], s[i]
		i = k
	}
}
