// Package ledger keeps an account's concurrency limit over all partitions. A permit is the right to have one slot
// leased. A Book, with the partition that holds the account's key, lends permits in blocks; a Purse, in every
// partition that serves the account, holds them. It is pure.
//
// The one promise: what all purses allow, and what is leased beyond, never exceeds the limit that was in force when it
// was lent, whatever the network loses, repeats or reorders and whoever dies. It rests on three rules. The book counts
// for each borrower an upper bound of what he holds; a bound rises before a Lend leaves, and falls only by a Borrow that
// has seen the last Lend. A purse between two Lends only shrinks. A new life of a book lends nothing before the whole key
// space has told what it holds, and has stopped listening to the life before.
package ledger

import (
	"slices"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/flow"
)

// The times of the book. Both are well under the two seconds after which permits of the dead are back.
const (
	Silence = 1 * time.Second        // a borrower who holds something and was not heard of for so long is asked
	Again   = 200 * time.Millisecond // a question without an answer is repeated
)

// A Book lends the permits of one account. It has one caller at a time.
type Book struct {
	Account starling.AccountID
	term    wire.Term
	limit   int
	known   bool             // the limit
	unheard []starling.Range // keys whose partitions have not told yet what they hold
	loans   []*loan          // by range and epoch
	number  uint64           // of the last change
	asked   time.Duration    // last question to the unheard
	wants   []int            // scratch
	targets []int            // scratch
	gives   []int            // scratch
}

// A loan is what one life of one partition may hold.
type loan struct {
	node      starling.NodeID
	partition starling.PartitionID
	epoch     starling.Epoch
	keys      []starling.Range // of its range, what no later epoch has spoken for
	seq       uint64           // of its newest Borrow
	held      int              // at most so many are in its hands
	need      int              // for calls
	want      int              // with what he would keep in store
	allowed   int              // by the last Lend
	number    uint64           // of the last Lend
	seen      uint64           // by the borrower
	behind    bool             // his last Borrow had not seen the last Lend
	unheard   bool             // he waits for the first Lend of this life
	heard     time.Duration
	asked     time.Duration
	lent      time.Duration // last Lend sent
}

// A Letter is a message and the borrower it goes to.
type Letter struct {
	Node      starling.NodeID
	Partition starling.PartitionID
	Lend      wire.Lend
}

// NewBook returns the book of one life of the account's ledger. It knows neither the limit nor who holds what. Its
// changes are numbered from number+1: a book that takes the place of an empty one in the same term begins where that ended,
// or borrowers who remember would take its Lends for late ones.
func NewBook(a starling.AccountID, t wire.Term, number uint64) *Book {
	return &Book{Account: a, term: t, number: number, unheard: []starling.Range{{}}, asked: -Again}
}

// Number returns that of the last change.
func (b *Book) Number() uint64 { return b.number }

// Limit sets the account's limit in slots, 0 or more. Where more is lent, nothing is lent until enough came back.
func (b *Book) Limit(n int) { b.limit, b.known = max(n, 0), true }

// Known reports whether the limit was told.
func (b *Book) Known() bool { return b.known }

// Term returns which life of the ledger this is.
func (b *Book) Term() wire.Term { return b.term }

// Ready reports whether the book may lend: it knows the limit, and all that is held.
func (b *Book) Ready() bool { return b.known && len(b.unheard) == 0 }

// Lent returns how many permits are at most in others' hands, and how many are wanted beyond.
func (b *Book) Lent() (held, waited int) {
	for _, l := range b.loans {
		held += l.held
		waited += max(l.want-l.held, 0)
	}
	return held, waited
}

// Empty reports whether nobody holds or wants anything.
func (b *Book) Empty() bool { return len(b.loans) == 0 }

// Borrow takes a borrower's report at the instant now. It reports false when the borrower must hear an Audit first,
// because he does not listen to this life of the ledger yet.
func (b *Book) Borrow(now time.Duration, from starling.NodeID, m *wire.Borrow) bool {
	if m.Term != b.term {
		return !m.Term.Before(b.term) // one of a later life is for somebody else
	}
	l := b.find(m)
	if l == nil {
		if b.superseded(m) {
			return true
		}
		l = &loan{partition: m.Partition, epoch: m.Epoch, keys: []starling.Range{m.Keys}}
		b.loans = append(b.loans, l)
		slices.SortStableFunc(b.loans, func(x, y *loan) int { return compare(x.keys[0].Lo, y.keys[0].Lo) })
	} else if m.Seq <= l.seq {
		return true
	}
	l.node, l.seq, l.heard, l.need, l.want = from, m.Seq, now, int(m.Need), max(int(m.Want), int(m.Need))
	if m.Seen >= l.number { // nothing is on its way to him: what he says is all there is
		l.number, l.held, l.allowed = m.Seen, int(m.Held), min(l.allowed, int(m.Held))
	} else {
		l.held = max(l.held, int(m.Held))
	}
	l.seen, l.behind, l.unheard = m.Seen, m.Seen < l.number, m.Unheard
	b.hear(m)
	return true
}

func compare(a, b starling.Key64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (b *Book) find(m *wire.Borrow) *loan {
	for _, l := range b.loans {
		if l.partition == m.Partition && l.epoch == m.Epoch {
			return l
		}
	}
	return nil
}

// superseded reports whether a later life of any of m's keys has spoken already.
func (b *Book) superseded(m *wire.Borrow) bool {
	for _, l := range b.loans {
		if l.epoch > m.Epoch && overlap(l.keys, m.Keys) {
			return true
		}
	}
	return false
}

// hear books that all keys of m have spoken in m's epoch. What an earlier epoch holds of them has ended, or is part of
// what m says: its partition had asked the hosts before it spoke. A loan ends when all its keys have successors.
func (b *Book) hear(m *wire.Borrow) {
	b.unheard = without(b.unheard, m.Keys)
	kept := b.loans[:0]
	for _, l := range b.loans {
		if l.epoch < m.Epoch && overlap(l.keys, m.Keys) {
			l.keys, l.need, l.want = without(l.keys, m.Keys), 0, 0
			l.asked = l.heard - Again // ask the successors of the rest at once
			l.heard -= Silence
		}
		if len(l.keys) > 0 && (l.held > 0 || l.want > 0 || l.seen < l.number) {
			kept = append(kept, l)
		}
	}
	clear(b.loans[len(kept):])
	b.loans = kept
}

// Plan divides the limit among the borrowers, max-min fair by what they want, and appends the changes to out. Permits
// that are lent to one and due to another are called back: they are lent on when they have come. A borrower who wants to
// know that he was heard is lent what he has.
func (b *Book) Plan(now time.Duration, out []Letter) []Letter {
	if !b.Ready() || len(b.loans) == 0 {
		return out
	}
	b.share()
	free, short := b.limit, 0
	for _, l := range b.loans {
		free -= l.held
	}
	for i, l := range b.loans {
		b.wants[i] = max(b.targets[i]-l.held, 0)
		short += b.wants[i]
	}
	scarce := short > free
	flow.Fair(free, b.wants, b.gives)
	for i, l := range b.loans {
		switch target := b.targets[i]; {
		case b.gives[i] > 0:
			l.held += b.gives[i]
			out = append(out, b.lend(now, l, l.held))
		case (scarce || free < 0) && l.allowed > target:
			out = append(out, b.lend(now, l, target))
		case l.unheard && l.seen == l.number && free >= 0: // else what he said may be out of date, and he may have less by now
			if !scarce {
				target = l.held
			}
			out = append(out, b.lend(now, l, min(l.held, target)))
		}
	}
	return out
}

// share sets the targets: first what calls need, then, of what is left, what is wanted in store.
func (b *Book) share() {
	n := len(b.loans)
	b.wants, b.targets, b.gives = slices.Grow(b.wants[:0], n)[:n], slices.Grow(b.targets[:0], n)[:n], slices.Grow(b.gives[:0], n)[:n]
	for i, l := range b.loans {
		b.wants[i] = l.need
	}
	flow.Fair(b.limit, b.wants, b.targets)
	left := b.limit
	for i, l := range b.loans {
		b.wants[i] = l.want - l.need
		left -= b.targets[i]
	}
	flow.Fair(left, b.wants, b.gives)
	for i := range b.targets {
		b.targets[i] += b.gives[i]
	}
}

func (b *Book) lend(now time.Duration, l *loan, permits int) Letter {
	b.number++
	l.allowed, l.number, l.behind, l.lent = permits, b.number, false, now
	return b.letter(l)
}

func (b *Book) letter(l *loan) Letter {
	return Letter{l.node, l.partition, wire.Lend{Account: b.Account, Partition: l.partition, Term: b.term, Seq: l.seq,
		Number: l.number, Permits: uint32(l.allowed), Limit: uint32(b.limit), Epoch: l.epoch}}
}

// Unseen appends the Lends that are to be sent again: their borrowers have not spoken of them.
func (b *Book) Unseen(now time.Duration, out []Letter) []Letter {
	for _, l := range b.loans {
		if l.seen < l.number && (l.behind || now-l.lent >= Again) {
			l.behind, l.lent = false, now
			out = append(out, b.letter(l))
		}
	}
	return out
}

// Questions appends the ranges whose partitions are to be asked now what they hold: all that a new book has not heard
// of, and those of borrowers who are silent, for they may be dead and have a successor.
func (b *Book) Questions(now time.Duration, out []starling.Range) []starling.Range {
	if len(b.unheard) > 0 && now-b.asked >= Again {
		b.asked = now
		out = append(out, b.unheard...)
	}
	for _, l := range b.loans {
		if now-l.heard >= Silence && now-l.asked >= Again {
			l.asked = now
			out = append(out, l.keys...)
		}
	}
	return out
}

// overlap reports whether any of rs has a key of r.
func overlap(rs []starling.Range, r starling.Range) bool {
	for _, q := range rs {
		if (q.Hi == 0 || r.Lo < q.Hi) && (r.Hi == 0 || q.Lo < r.Hi) {
			return true
		}
	}
	return false
}

// without returns rs less the keys of r.
func without(rs []starling.Range, r starling.Range) []starling.Range {
	var out []starling.Range
	for _, q := range rs {
		out = append(out, Less(q, r)...)
	}
	return out
}

// Less returns the keys of q that are not in r: none, one or two ranges.
func Less(q, r starling.Range) []starling.Range {
	if !overlap([]starling.Range{q}, r) {
		return []starling.Range{q}
	}
	var out []starling.Range
	if q.Lo < r.Lo {
		out = append(out, starling.Range{Lo: q.Lo, Hi: r.Lo})
	}
	if r.Hi != 0 && (q.Hi == 0 || r.Hi < q.Hi) {
		out = append(out, starling.Range{Lo: r.Hi, Hi: q.Hi})
	}
	return out
}
