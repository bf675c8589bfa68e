package ledger

import (
	"time"

	"starling"
	"starling/actors/wire"
)

// Idle is how long a permit is kept that is not used: it goes back after two to three of these, and a look for each.
const Idle = 500 * time.Millisecond

// A Purse holds a partition's permits of one account. The zero value is not ready: use NewPurse.
type Purse struct {
	Permits int // slots that may be leased; above it nothing new is
	Limit   int // the account's, as the ledger said last; 0 before that
	Peak    int // most slots leased since the last look; the owner raises it

	heard bool // the ledger knows of this life of the partition, and counts nothing as that of one before

	born   uint64    // no Lend that was sent before this Borrow is obeyed
	term   wire.Term // of the ledger obeyed
	seen   uint64    // number of the last Lend obeyed
	told   uint64    // number of the last Lend spoken of
	asked  int       // Want of the last Borrow
	held   int       // Held of the last Borrow
	before int       // peak of the span before
	at     time.Duration
	sent   time.Duration
}

// NewPurse returns an empty purse. born is the Seq of its first Borrow: answers to earlier ones are for a purse of the
// same account that was forgotten.
func NewPurse(now time.Duration, born uint64) *Purse {
	return &Purse{born: born, at: now, sent: now - Again}
}

// Held returns what the purse answers for: what it allows, and what is leased beyond because the ledger, or the death
// of the partition's last owner, took the permits from under it.
func (p *Purse) Held(leased int) int { return max(p.Permits, leased) }

// Want returns how many permits serve need slots: a block more, so that an account that grows does not ask for each.
func (p *Purse) Want(need int) int {
	if need <= 0 {
		return 0
	}
	block := min(max(p.Limit/32, 1), 32)
	return need + max(block, need/4)
}

// Asks reports whether need calls for a Borrow now: there are too few permits, and the ledger does not know, or was
// told so long ago that the message or its answer is lost.
func (p *Purse) Asks(now time.Duration, need int) bool {
	return need > p.Permits && (p.Want(need) > p.asked || now-p.sent >= Again)
}

// Looks takes one look at what is unused and reports whether the ledger should hear of the purse: because it shrank,
// wants less, or has not spoken of a Lend yet. Call it a few times in every Idle.
func (p *Purse) Looks(now time.Duration, leased, need int) bool {
	p.Peak = max(p.Peak, need)
	less := false
	if now-p.at >= Idle {
		n := p.Want(max(p.before, p.Peak))
		p.before, p.Peak, p.at = p.Peak, need, now
		less = n < p.asked
		p.Permits = min(p.Permits, n)
	}
	return less || p.told < p.seen || p.Held(leased) < p.held || !p.Settled(leased) && now-p.sent >= Again
}

// Settled reports whether the ledger surely counts what the purse holds as held by this life of the partition, in all of its keys. Before
// that the partition must not be cut: where two were joined, the ledger still counts what each of them had as lying in its own keys, and
// would take the word of one half for all that is left there, though the permits went to the other half.
func (p *Purse) Settled(leased int) bool { return p.heard || p.Held(leased) == 0 }

// Unused reports whether the purse holds nothing, wants nothing and the ledger knows: it may be forgotten.
func (p *Purse) Unused(need int) bool {
	return p.Permits == 0 && p.held == 0 && need == 0 && p.asked == 0 && p.told == p.seen
}

// Borrow fills m with what the purse holds and wants.
func (p *Purse) Borrow(now time.Duration, seq uint64, leased, need int, m *wire.Borrow) {
	want := p.Want(max(need, p.before, p.Peak))
	p.asked, p.held, p.told, p.sent = want, p.Held(leased), p.seen, now
	*m = wire.Borrow{Term: p.term, Seq: seq, Seen: p.seen, Held: uint32(p.held), Need: uint32(max(need, 0)), Want: uint32(want), Unheard: !p.Settled(leased)}
}

// Close fills m with the last word of a purse that is forgotten: it holds nothing. A Lend on its way is answered by Decline.
func (p *Purse) Close(seq uint64, m *wire.Borrow) {
	*m = wire.Borrow{Term: p.term, Seq: seq, Seen: p.seen}
}

// Audit listens to the ledger of a term from now on, and to none before. It reports false for one that is past.
func (p *Purse) Audit(t wire.Term) bool {
	if t.Before(p.term) {
		return false
	}
	if t != p.term {
		p.term, p.seen, p.told = t, 0, 0
	}
	return true
}

// Lend obeys m, unless it is late or, where it says so, for another life of the partition than epoch. It reports whether the purse changed.
func (p *Purse) Lend(m *wire.Lend, epoch starling.Epoch) bool {
	if m.Epoch != 0 && m.Epoch != epoch || m.Term != p.term || m.Seq < p.born || m.Number <= p.seen {
		return false
	}
	p.seen, p.Permits, p.Limit = m.Number, int(m.Permits), int(m.Limit)
	p.heard = p.heard || m.Epoch == epoch
	return true
}

// Decline fills m with the answer to a Lend of an account that has no purse here. A purse that is made later takes a
// later Seq for its first, so neither l nor any Lend before it can fill it: the permits are the ledger's again.
func Decline(l *wire.Lend, seq uint64, leased int, m *wire.Borrow) {
	*m = wire.Borrow{Term: l.Term, Seq: seq, Seen: l.Number, Held: uint32(leased)}
}

// KeyOf returns where the ledger of an account lives: with the partition of this key.
func KeyOf(a starling.AccountID) starling.Key64 {
	return starling.KeyOf(starling.FunctionRef{Account: a}, 0)
}
