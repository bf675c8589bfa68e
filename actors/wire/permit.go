package wire

import "starling"

// A Term names one life of an account's ledger. The later one counts.
type Term struct {
	Epoch starling.Epoch // of the partition that holds the account's key
	Life  uint64         // of its scheduler in that epoch
}

// Before reports whether t is the earlier life.
func (t Term) Before(o Term) bool {
	return t.Epoch < o.Epoch || t.Epoch == o.Epoch && t.Life < o.Life
}

// Borrow says what a partition holds and wants of an account's permits. All numbers are absolute, so that one that is
// lost, late or repeated does no harm. Partition → the partition of the account's key; also the answer to an Audit.
type Borrow struct {
	Account   starling.AccountID
	Partition starling.PartitionID // that holds and wants
	Epoch     starling.Epoch
	Keys      starling.Range // its range: the ledger learns from it who succeeded whom
	Term      Term           // of the ledger it listens to; zero before it heard of one
	Seq       uint64         // rises with every Borrow of this partition and epoch
	Seen      uint64         // Number of the last Lend of Term that it obeys; 0 for none
	Held      uint32         // slots leased, or allowed to be
	Need      uint32         // slots that its calls could use now, with those they have
	Want      uint32         // Need, and a block in store

	Unheard bool // this life was lent nothing yet: it wants to know that the ledger has heard of it; false from an older release
}

// Lend sets how many permits a partition may hold. Partition of the account's key → borrower.
type Lend struct {
	Account   starling.AccountID
	Partition starling.PartitionID // the borrower
	Term      Term
	Seq       uint64 // of the newest Borrow it takes into account
	Number    uint64 // rises with every change that this ledger makes
	Permits   uint32 // slots the borrower may lease from now on
	Limit     uint32 // the account's, in slots

	Epoch starling.Epoch // of the borrower: no later life of it obeys; 0 from an older release, which does not say
}

// Audit asks a partition what it holds of an account, even nothing, and has it listen to no earlier term.
type Audit struct {
	Account   starling.AccountID
	Partition starling.PartitionID // that asks
	Term      Term
}

// Kind returns the number on the wire.
func (*Borrow) Kind() Kind { return KindBorrow }

// Kind returns the number on the wire.
func (*Lend) Kind() Kind { return KindLend }

// Kind returns the number on the wire.
func (*Audit) Kind() Kind { return KindAudit }

// permit appends the messages between borrowers and ledgers.
func (w *writer) permit(m Message) {
	switch m := m.(type) {
	case *Borrow:
		w.text(string(m.Account), WordMax)
		w.u64(uint64(m.Partition), uint64(m.Epoch), uint64(m.Keys.Lo), uint64(m.Keys.Hi))
		w.u64(uint64(m.Term.Epoch), m.Term.Life, m.Seq, m.Seen)
		w.u32(m.Held)
		w.u32(m.Need)
		w.u32(m.Want)
		unheard := uint64(0)
		if m.Unheard {
			unheard = 1
		}
		w.u64(unheard)
	case *Lend:
		w.text(string(m.Account), WordMax)
		w.u64(uint64(m.Partition), uint64(m.Term.Epoch), m.Term.Life, m.Seq, m.Number)
		w.u32(m.Permits)
		w.u32(m.Limit)
		w.u64(uint64(m.Epoch))
	case *Audit:
		w.text(string(m.Account), WordMax)
		w.u64(uint64(m.Partition), uint64(m.Term.Epoch), m.Term.Life)
	}
}

// readPermit reads the messages between borrowers and ledgers, and what follows them; nil for an unknown kind.
func readPermit(kind Kind, r *reader) Message {
	switch kind {
	case KindBorrow:
		return &Borrow{Account: r.account(), Partition: r.partition(), Epoch: r.epoch(), Keys: starling.Range{Lo: starling.Key64(r.u64()), Hi: starling.Key64(r.u64())},
			Term: r.term(), Seq: r.u64(), Seen: r.u64(), Held: r.u32(), Need: r.u32(), Want: r.u32(),
			Unheard: r.addedFlag()}
	case KindLend:
		return &Lend{Account: r.account(), Partition: r.partition(), Term: r.term(), Seq: r.u64(), Number: r.u64(), Permits: r.u32(), Limit: r.u32(),
			Epoch: starling.Epoch(r.added(0))}
	case KindAudit:
		return &Audit{Account: r.account(), Partition: r.partition(), Term: r.term()}
	}
	return readCensus(kind, r)
}

func (r *reader) account() starling.AccountID { return starling.AccountID(r.text(WordMax)) }
func (r *reader) term() Term                  { return Term{Epoch: r.epoch(), Life: r.u64()} }
