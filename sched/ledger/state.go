package ledger

import (
	"math"
	"slices"
	"time"

	"starling"
	"starling/actors/wire"
)

// A PurseState is what a purse hands to its successor, in another epoch and perhaps at another node.
type PurseState struct {
	Permits, Limit int
	Peak, Before   int // most slots wanted in this span of Idle, and in the one before
	Term           wire.Term
	Seen           uint64        // number of the last Lend obeyed in Term
	Looked         time.Duration // since the span began
}

// State returns what the successor of p needs. From now on p must allow nothing.
func (p *Purse) State(now time.Duration) PurseState {
	return PurseState{Permits: p.Permits, Limit: p.Limit, Peak: p.Peak, Before: p.before, Term: p.term, Seen: p.seen, Looked: max(now-p.at, 0)}
}

// RevivePurse returns a purse that goes on from st in the next epoch. Lends to the life before are for that one: the ledger
// counts what they allow as that life's until it hears from this one, and so they are not obeyed any more. The first Looks
// asks for that Borrow. born is the Seq of the first Borrow, above all of the life before.
func RevivePurse(now time.Duration, born uint64, st PurseState) *Purse {
	p := NewPurse(now, born)
	p.Permits, p.Limit, p.Peak, p.before = max(st.Permits, 0), max(st.Limit, 0), st.Peak, st.Before
	p.term, p.seen, p.told, p.at = st.Term, st.Seen, st.Seen, now-st.Looked
	p.held = math.MaxInt // whatever the ledger believes, it hears anew
	return p
}

// Divide gives each half what its leased slots hold, and of the rest as much as it needs before the other has any in store. The
// sum of the permits is never more than before.
func (st PurseState) Divide(leasedLow, leasedHigh, needLow, needHigh int) (low, high PurseState) {
	low, high = st, st
	low.Permits = min(leasedLow, st.Permits)
	high.Permits = min(leasedHigh, st.Permits-low.Permits)
	rest := st.Permits - low.Permits - high.Permits
	wantLow, wantHigh := max(needLow-low.Permits, 0), max(needHigh-high.Permits, 0)
	var give int
	if all := wantLow + wantHigh; all > rest {
		give = rest * wantLow / all
	} else {
		give = wantLow + (rest-all)/2
	}
	low.Permits += give
	high.Permits += rest - give
	low.Peak, low.Before = min(st.Peak, needLow), min(st.Before, needLow)
	high.Peak, high.Before = min(st.Peak, needHigh), min(st.Before, needHigh)
	return low, high
}

// Join returns the purse of both. It listens to the later ledger of the two: an earlier one may not lend any more.
func (st PurseState) Join(o PurseState) PurseState {
	late := st
	if st.Term.Before(o.Term) || st.Term == o.Term && st.Seen < o.Seen {
		late = o
	}
	return PurseState{Permits: st.Permits + o.Permits, Limit: late.Limit, Peak: st.Peak + o.Peak, Before: st.Before + o.Before, Term: late.Term, Seen: late.Seen,
		Looked: min(st.Looked, o.Looked)}
}

// A BookState is what the ledger of one account hands to its successor. It stays the same life of the ledger: borrowers do not
// notice, and nobody has to be asked.
type BookState struct {
	Account starling.AccountID
	Term    wire.Term
	Limit   int
	Known   bool // the limit
	Unheard []starling.Range
	Number  uint64 // of the last change
	Loans   []LoanState
}

// A LoanState is what one life of one partition may hold, see loan.
type LoanState struct {
	Node                      starling.NodeID // 0 for the partition of the ledger itself
	Partition                 starling.PartitionID
	Epoch                     starling.Epoch
	Keys                      []starling.Range
	Seq                       uint64
	Held, Need, Want, Allowed int
	Number, Seen              uint64
	Behind                    bool
	Heard, Lent               time.Duration // ago
}

// State returns what the successor of b needs. b must lend nothing from now on.
func (b *Book) State(now time.Duration) BookState {
	st := BookState{Account: b.Account, Term: b.term, Limit: b.limit, Known: b.known, Unheard: slices.Clone(b.unheard), Number: b.number}
	for _, l := range b.loans {
		st.Loans = append(st.Loans, LoanState{Node: l.node, Partition: l.partition, Epoch: l.epoch, Keys: slices.Clone(l.keys), Seq: l.seq, Held: l.held, Need: l.need,
			Want: l.want, Allowed: l.allowed, Number: l.number, Seen: l.seen, Behind: l.behind, Heard: max(now-l.heard, 0), Lent: max(now-l.lent, 0)})
	}
	return st
}

// ReviveBook returns the book that goes on from st.
func ReviveBook(now time.Duration, st BookState) *Book {
	b := &Book{Account: st.Account, term: st.Term, limit: max(st.Limit, 0), known: st.Known, unheard: slices.Clone(st.Unheard), number: st.Number, asked: now - Again}
	for _, l := range st.Loans {
		if len(l.Keys) == 0 {
			continue
		}
		b.loans = append(b.loans, &loan{node: l.Node, partition: l.Partition, epoch: l.Epoch, keys: slices.Clone(l.Keys), seq: l.Seq, held: max(l.Held, 0), need: max(l.Need, 0),
			want: max(l.Want, l.Need, 0), allowed: max(l.Allowed, 0), number: min(l.Number, st.Number), seen: l.Seen, behind: l.Behind, heard: now - l.Heard, asked: now - Again, lent: now - l.Lent})
	}
	slices.SortStableFunc(b.loans, func(x, y *loan) int { return compare(x.keys[0].Lo, y.keys[0].Lo) })
	return b
}
