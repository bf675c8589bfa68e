package sched

import (
	"fmt"
	"slices"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/flow"
	"starling/sched/ledger"
)

// permitsLook is how many purses and books a tick looks after, in turns: a bound on the time of one tick. Of the books
// that rest it looks at restLook, whether they may be forgotten.
const (
	permitsLook = 1024
	restLook    = 16
	auditsMax   = 256                   // Audits of different accounts that wait for their answer; what is beyond is asked again
	permitsPace = 50 * time.Millisecond // between two looks; other things make ticks more often
)

// limitAgain is how often a book that lends asks for its account's limit, which may have changed.
const limitAgain = 2 * time.Second

// A book is one account's ledger with what this scheduler needs to keep it.
type book struct {
	*ledger.Book
	lookupAt instant // last time the limit was asked for
	usedAt   instant // last time it had loans
	awake    bool    // in permits.lending
}

// permits are the scheduler's books of accounts whose key is in its range, and its own purses' bookkeeping.
type permits struct {
	books     map[starling.AccountID]*book
	shelf     []*book // the same, for turns
	purses    []*account
	asking    turns[*account] // purses that are not at rest
	lending   turns[*book]    // books that are not at rest
	restTurn  int             // into shelf
	lookedAt  instant
	seq       uint64     // of the last Borrow
	number    uint64     // of the last change in a book that was forgotten
	strangers int        // slots leased of versions whose account is not known yet
	fed       []*account // whose permits changed in this step
	letters   []ledger.Letter
	audits    []question // that came before their answer was known
}

// A question is an Audit and who asks.
type question struct {
	from  starling.NodeID
	audit wire.Audit
}

// home reports whether the account's ledger is ours.
func (s *Scheduler) home(id starling.AccountID) bool { return s.keys.Contains(ledger.KeyOf(id)) }

// openAccount gives a new account of this partition its purse.
func (s *Scheduler) openAccount(id starling.AccountID) *account {
	s.permits.seq++
	a := &account{id: id, purse: *ledger.NewPurse(s.now, s.permits.seq)}
	s.accounts[id] = a
	s.permits.purses = append(s.permits.purses, a)
	s.wake(a)
	return a
}

// wake has the ticks look after the purse of a until it is at rest again. Whatever makes it need permits, or brings it
// some, comes here.
func (s *Scheduler) wake(a *account) {
	if !a.awake {
		a.awake = true
		s.permits.asking.add(a)
	}
}

// rests reports whether time changes nothing for the purse of a.
func (a *account) rests() bool { return a.leased == 0 && a.purse.Unused(a.need()) }

// rests reports whether time changes nothing for the book, but that it is forgotten.
func (b *book) rests() bool { return b.Empty() && b.Ready() }

// turns are things that a tick looks after in turns. One that is at rest leaves, so that an idle account costs nothing.
type turns[T any] struct {
	all []T
	at  int // the one looked at last
}

func (t *turns[T]) add(x T) { t.all = append(t.all, x) }

// look calls stay for at most most of them; one for which it returns false leaves.
func (t *turns[T]) look(most int, stay func(T) bool) {
	for n := min(most, len(t.all)); n > 0; n-- {
		t.at = (t.at + 1) % len(t.all)
		if stay(t.all[t.at]) {
			continue
		}
		last := len(t.all) - 1
		t.all[t.at] = t.all[last]
		clear(t.all[last:])
		t.all = t.all[:last]
		t.at--
	}
}

// closeAccount forgets an account without versions. The ledger hears that its purse is empty; should that be lost, it asks.
func (s *Scheduler) closeAccount(a *account) {
	if !a.purse.Unused(0) {
		s.permits.seq++
		m := s.out.borrows.next()
		a.purse.Close(s.permits.seq, m)
		s.sendBorrow(a.id, m, Effect{})
	}
	delete(s.accounts, a.id)
	s.permits.purses = slices.DeleteFunc(s.permits.purses, func(o *account) bool { return o == a })
}

// need returns how many slots the account could use here: those it has, and as many as its calls wait for within
// their functions' limits, or are being started.
func (a *account) need() int {
	n := 0
	for _, v := range a.hungry {
		n += max(min(int(v.waiting), int(v.limit)-v.of.inUse()), 0)
	}
	return a.leased + max(n, a.starting)
}

// morePermits asks the ledger for more and reports whether they are there already, because the ledger is ours.
func (s *Scheduler) morePermits(a *account) bool {
	if s.granting() && s.permits.strangers == 0 {
		// The call that asks may not wait yet, so it counts for one.
		if need := max(a.need(), a.leased+1); a.purse.Asks(s.now, need) {
			s.borrow(a, need)
		}
	}
	return a.leased < a.purse.Permits
}

// borrow tells the ledger what a holds and wants.
func (s *Scheduler) borrow(a *account, need int) {
	s.wake(a)
	s.permits.seq++
	m := s.out.borrows.next()
	a.purse.Borrow(s.now, s.permits.seq, a.leased, need, m)
	s.sendBorrow(a.id, m, Effect{})
}

// sendBorrow sends m to whoever asked, or, where to is empty, to whoever has the account's key.
func (s *Scheduler) sendBorrow(id starling.AccountID, m *wire.Borrow, to Effect) {
	m.Account, m.Partition, m.Epoch, m.Keys = id, s.id, s.epoch, s.keys
	k := ledger.KeyOf(id)
	switch {
	case to.Partition == s.id || to.Partition == 0 && s.keys.Contains(k):
		s.borrowed(0, m)
		return
	case to.Partition == 0:
		to.Keys = starling.Range{Lo: k, Hi: k + 1}
	}
	to.Body = m
	s.out.effects = append(s.out.effects, to)
}

// borrowed takes a borrower's report into the account's book; from is 0 for ourselves. While our hosts are still being asked a
// new book asks already what others hold. It cannot lend before: we answer with the rest, when we are active.
func (s *Scheduler) borrowed(from starling.NodeID, m *wire.Borrow) {
	if !s.granting() && s.phase != Activating || !s.home(m.Account) {
		return // the borrower asks again, and somebody else
	}
	b := s.bookOf(m.Account)
	if !b.awake {
		b.awake = true
		s.permits.lending.add(b)
	}
	if !b.Book.Borrow(s.now, from, m) {
		s.audit(Effect{To: from, Partition: m.Partition}, b)
	}
	s.lend(b)
}

// bookOf returns the account's book. A new one knows nothing: it asks.
func (s *Scheduler) bookOf(id starling.AccountID) *book {
	b := s.permits.books[id]
	if b == nil {
		b = &book{Book: ledger.NewBook(id, wire.Term{Epoch: s.epoch, Life: s.first}, s.permits.number), lookupAt: s.now, usedAt: s.now}
		s.permits.books[id] = b
		s.permits.shelf = append(s.permits.shelf, b)
		if a := s.accounts[id]; a != nil && a.max > 0 {
			b.Limit(a.max)
		} else {
			s.out.effects = append(s.out.effects, Effect{Account: id})
		}
	}
	return b
}

// lend sends what the book decides now: changes, repetitions and questions.
func (s *Scheduler) lend(b *book) {
	for _, r := range b.Questions(s.now, nil) {
		s.ask(b, r)
	}
	letters := b.Unseen(s.now, b.Plan(s.now, s.permits.letters[:0]))
	s.permits.letters = nil // lending to ourselves may come here again
	for i := range letters {
		l := &letters[i]
		if l.Partition == s.id {
			s.lent(&l.Lend)
			continue
		}
		if l.Node == 0 {
			continue // to a life of ours before: nobody obeys it
		}
		m := s.out.lends.next()
		*m = l.Lend
		s.out.effects = append(s.out.effects, Effect{To: l.Node, Partition: l.Partition, Body: m})
	}
	s.permits.letters = letters
	if !b.Empty() {
		b.usedAt = s.now
	}
}

// ask asks every partition with keys of r what it holds, ourselves among them.
func (s *Scheduler) ask(b *book, r starling.Range) {
	rest := ledger.Less(r, s.keys)
	if len(rest) != 1 || rest[0] != r {
		s.audit(Effect{Partition: s.id}, b)
	}
	for _, q := range rest {
		s.audit(Effect{Keys: q}, b)
	}
}

func (s *Scheduler) audit(to Effect, b *book) {
	m := s.out.audits.next()
	*m = wire.Audit{Account: b.Account, Partition: s.id, Term: b.Term()}
	if to.Partition == s.id {
		s.audited(0, m)
		return
	}
	to.Body = m
	s.out.effects = append(s.out.effects, to)
}

// audited answers what we hold of an account. Before every host has told what runs there, and while we do not know
// whose it is, the question waits: after a death all partitions of the dead begin at once, and the ledger among them asks again
// only a while later.
func (s *Scheduler) audited(from starling.NodeID, m *wire.Audit) {
	switch {
	case s.phase == Activating, s.phase == Active && s.permits.strangers > 0:
		s.permits.keep(from, m)
		return
	case s.phase != Active:
		return
	}
	a := s.accounts[m.Account]
	if a != nil && !a.purse.Audit(m.Term) {
		return
	}
	s.permits.seq++
	out := s.out.borrows.next()
	if a != nil {
		s.wake(a)
		a.purse.Borrow(s.now, s.permits.seq, a.leased, a.need(), out)
	} else {
		*out = wire.Borrow{Term: m.Term, Seq: s.permits.seq}
	}
	s.sendBorrow(m.Account, out, Effect{To: from, Partition: m.Partition})
}

// keep lets an Audit wait, in the place of an earlier one of the same account. No past term takes a later one's place.
func (p *permits) keep(from starling.NodeID, m *wire.Audit) {
	k := slices.IndexFunc(p.audits, func(q question) bool { return q.audit.Account == m.Account })
	switch {
	case k >= 0 && !m.Term.Before(p.audits[k].audit.Term):
		p.audits[k] = question{from, *m}
	case k < 0 && len(p.audits) < auditsMax:
		p.audits = append(p.audits, question{from, *m})
	}
}

// answerAudits answers those that waited, if all is known by now.
func (s *Scheduler) answerAudits() {
	if s.phase != Active || s.permits.strangers > 0 {
		return
	}
	waited := s.permits.audits
	s.permits.audits = nil
	for k := range waited {
		s.audited(waited[k].from, &waited[k].audit)
	}
}

// lent obeys the ledger. Its answer is a Borrow that has seen the Lend.
func (s *Scheduler) lent(m *wire.Lend) {
	if s.phase != Active || s.permits.strangers > 0 || m.Partition != s.id || m.Epoch != 0 && m.Epoch != s.epoch {
		return // one for a life before: the ledger counts it as that life's until it hears from this one
	}
	a := s.accounts[m.Account]
	if a == nil {
		s.permits.seq++
		out := s.out.borrows.next()
		ledger.Decline(m, s.permits.seq, 0, out)
		s.sendBorrow(m.Account, out, Effect{})
		return
	}
	if !a.purse.Lend(m, s.epoch) {
		return
	}
	s.wake(a)
	if n := int(m.Limit); n != a.max {
		s.setAccountLimit(a, n)
	}
	s.permits.fed = append(s.permits.fed, a)
	s.borrow(a, a.need())
}

// Divisible reports whether the ledgers know what this life of the partition holds, so that its state may be divided.
// It takes a round trip after the life began, or until the ledgers lend.
func (s *Scheduler) Divisible() bool {
	if s.permits.strangers > 0 {
		return false
	}
	for _, a := range s.permits.purses {
		if !a.purse.Settled(a.leased) {
			return false
		}
	}
	return true
}

// setAccountLimit sets the account's limit and what follows from it.
func (s *Scheduler) setAccountLimit(a *account, most int) {
	a.max = most
	for _, f := range a.functions {
		for _, v := range f.members {
			s.setLimits(v, v.config)
		}
	}
}

// knowAccount takes what a version's lookup says of its account. A ledger elsewhere knows better, once it spoke.
func (s *Scheduler) knowAccount(a *account, most int) {
	if b := s.permits.books[a.id]; b != nil {
		b.Limit(most)
	}
	if a.max == 0 || a.purse.Limit == 0 {
		a.max = most
	}
}

// accountKnown answers a book's question for the limit.
func (s *Scheduler) accountKnown(ev AccountKnown) {
	if b := s.permits.books[ev.Account]; b != nil {
		b.Limit(ev.ConcurrencyMax)
		if s.granting() {
			s.lend(b)
		}
	}
}

// serveFed serves the calls that waited for the permits that came in this step.
func (s *Scheduler) serveFed() {
	for len(s.permits.fed) > 0 {
		a := s.permits.fed[0]
		s.permits.fed = s.permits.fed[:copy(s.permits.fed, s.permits.fed[1:])]
		for n := len(a.hungry); n > 0 && len(a.hungry) > 0 && a.leased < a.purse.Permits; n-- {
			a.turn++
			s.pump(a.hungry[a.turn%len(a.hungry)], nil, 0, 0)
		}
	}
}

// lookAfterPermits returns what is unused, repeats what may be lost, asks the silent and forgets books.
func (s *Scheduler) lookAfterPermits() {
	p := &s.permits
	if !s.granting() || s.now-p.lookedAt < permitsPace {
		return
	}
	p.lookedAt = s.now
	p.asking.look(permitsLook, s.lookAfterPurse)
	p.lending.look(permitsLook, s.lookAfterBook)
	for n := min(restLook, len(p.shelf)); n > 0; n-- {
		p.restTurn = (p.restTurn + 1) % len(p.shelf)
		b := p.shelf[p.restTurn]
		if b.awake || !b.rests() || s.now-b.usedAt < s.cfg.Forget {
			continue
		}
		p.number = max(p.number, b.Number())
		delete(p.books, b.Account)
		p.shelf = slices.Delete(p.shelf, p.restTurn, p.restTurn+1)
		n = min(n, len(p.shelf)+1)
	}
}

// lookAfterPurse reports whether the purse of a needs a look again.
func (s *Scheduler) lookAfterPurse(a *account) bool {
	if s.accounts[a.id] != a { // closed
		a.awake = false
		return false
	}
	need := a.need()
	if s.permits.strangers == 0 && (a.purse.Asks(s.now, need) || a.purse.Looks(s.now, a.leased, need)) {
		s.borrow(a, need)
	}
	if a.leased > a.purse.Permits || a.leased == a.purse.Permits && len(a.hungry) > 0 {
		s.recallOver(a)
	}
	a.awake = !a.rests()
	if !a.awake && a.versions == 0 {
		s.closeAccount(a) // handed over to us for a function that is not called any more
	}
	return a.awake
}

// lookAfterBook reports whether b needs a look again.
func (s *Scheduler) lookAfterBook(b *book) bool {
	if s.now-b.lookupAt >= limitAgain && (!b.Empty() || !b.Known()) {
		b.lookupAt = s.now
		s.out.effects = append(s.out.effects, Effect{Account: b.Account})
	}
	s.lend(b)
	b.awake = !b.rests()
	return b.awake
}

// check reports what nobody would look after again although time changes it.
func (p *permits) check() error {
	for _, a := range p.purses {
		if !a.awake && !a.rests() {
			return fmt.Errorf("account %s: %d slots leased of %d permits, and its purse is not looked after", a.id, a.leased, a.purse.Permits)
		}
	}
	for _, b := range p.shelf {
		if !b.awake && !b.rests() {
			return fmt.Errorf("account %s: its ledger is not looked after", b.Account)
		}
	}
	return nil
}

// recallOver asks frontends for the leases of functions that have more than their max-min fair share of the account's
// permits: the account has fewer than its functions want, or fewer than are leased.
func (s *Scheduler) recallOver(a *account) {
	wants, shares := make([]int, len(a.functions)), make([]int, len(a.functions))
	for k, f := range a.functions {
		wants[k] = f.inUse()
		for _, v := range f.members {
			wants[k] += max(min(int(v.waiting), int(v.limit)-f.inUse()), 0)
		}
	}
	flow.Fair(a.purse.Permits, wants, shares)
	for k, f := range a.functions {
		over := int32(f.inUse() - shares[k])
		for _, v := range f.members {
			for i := 0; i < len(v.holders) && over > 0; i++ {
				if h := v.holders[i]; h.node != 0 && h.held > 0 {
					over -= s.recall(v, h.node, min(over, h.held))
				}
			}
		}
	}
}
