package ledger

import (
	"fmt"
	"math/rand/v2"
	"time"

	"starling"
	"starling/actors/wire"
)

const acme = "acme"

// A world is a key space cut into partitions, some of which borrow, over a network that loses, repeats and reorders.
// Nodes die with what they had; their partitions get a new life 600 to 900 ms later.
type world struct {
	rng   *rand.Rand
	now   time.Duration
	parts []*part // by range; they tile the key space
	mail  []mail
	limit int // of the account
	bound int // what may be held: the limit, or an older one whose permits are not back yet
	calm  bool
	bug   string
	seq   uint64
	ids   starling.PartitionID
}

// A part is one partition in one epoch. leased are calls that run at hosts: they outlive their owner.
type part struct {
	id     starling.PartitionID
	epoch  starling.Epoch
	keys   starling.Range
	node   starling.NodeID // 0 while dead
	wakes  time.Duration   // when a dead one gets its next life
	leased int
	wait   int
	purse  *Purse
	book   *Book // when the account's key is its
}

type mail struct {
	at   time.Duration
	node starling.NodeID // it is lost when the node is not the partition's any more
	to   starling.PartitionID
	key  starling.Key64
	from starling.NodeID
	body wire.Message
}

func newWorld(seed uint64, cuts int) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, seed)), limit: 10, bound: 10}
	if cuts == 0 {
		cuts = 2 + w.rng.IntN(6)
		w.limit = 1 + w.rng.IntN(60)
		w.bound = w.limit
	}
	for i := range cuts {
		step := ^uint64(0)/uint64(cuts) + 1
		r := starling.Range{Lo: starling.Key64(step * uint64(i)), Hi: starling.Key64(step * uint64(i+1))}
		if i == cuts-1 {
			r.Hi = 0
		}
		w.ids++
		w.parts = append(w.parts, &part{id: w.ids, epoch: 1, keys: r, node: starling.NodeID(1 + i%3)})
	}
	for _, p := range w.parts {
		w.live(p)
	}
	return w
}

// live begins a life of p: what is leased at hosts is all it knows.
func (w *world) live(p *part) {
	p.purse, p.book = nil, nil
	if p.keys.Contains(KeyOf(acme)) {
		w.seq++
		p.book = NewBook(acme, wire.Term{Epoch: p.epoch, Life: w.seq}, 0)
		p.book.Limit(w.limit)
		if w.bug == "forgetful" {
			p.book.unheard = nil
		}
	}
}

func (w *world) need(p *part) int { return p.leased + p.wait }

func (w *world) at(k starling.Key64) *part {
	for _, p := range w.parts {
		if p.keys.Contains(k) {
			return p
		}
	}
	return nil
}

// send puts a message on its way: lost, twice, late.
func (w *world) send(m mail) {
	copies := 1
	if !w.calm {
		switch w.rng.IntN(8) {
		case 0:
			copies = 0
		case 1:
			copies = 2
		}
	}
	for range copies {
		m.at = w.now + time.Duration(w.rng.IntN(5))*time.Millisecond
		if !w.calm && w.rng.IntN(20) == 0 {
			m.at += time.Duration(w.rng.IntN(3000)) * time.Millisecond
		}
		w.mail = append(w.mail, m)
	}
}

func (w *world) borrow(p *part, to *mail, m *wire.Borrow) {
	m.Account, m.Partition, m.Epoch, m.Keys = acme, p.id, p.epoch, p.keys
	out := mail{key: KeyOf(acme), from: p.node, body: m}
	if to != nil {
		out.node, out.to = to.node, to.to
	}
	w.send(out)
}

func (w *world) tell(p *part, to *mail) {
	w.seq++
	m := &wire.Borrow{}
	if p.purse == nil {
		m.Seq, m.Held = w.seq, uint32(p.leased)
		if to != nil {
			m.Term = to.body.(*wire.Audit).Term
		}
	} else {
		p.purse.Borrow(w.now, w.seq, p.leased, w.need(p), m)
	}
	w.borrow(p, to, m)
}

func (w *world) step(d time.Duration) error {
	w.now += d
	for i := 0; i < len(w.mail); i++ {
		if m := w.mail[i]; m.at <= w.now {
			w.mail = append(w.mail[:i], w.mail[i+1:]...)
			i--
			w.deliver(m)
			if err := w.check(); err != nil {
				return err
			}
		}
	}
	for _, p := range w.parts {
		if p.node == 0 && p.wakes <= w.now {
			p.node = starling.NodeID(1 + w.rng.IntN(3))
			p.epoch++
			w.live(p)
		}
		if p.node != 0 {
			w.serve(p)
		}
	}
	return w.check()
}

// serve lets p lease what it may, and do what is due.
func (w *world) serve(p *part) {
	if p.purse == nil && w.need(p) > 0 {
		w.seq++
		p.purse = NewPurse(w.now, w.seq)
	}
	if q := p.purse; q != nil {
		for p.wait > 0 && p.leased < q.Permits {
			p.wait--
			p.leased++
		}
		if q.Asks(w.now, w.need(p)) || q.Looks(w.now, p.leased, w.need(p)) {
			w.tell(p, nil)
		} else if q.Unused(w.need(p)) {
			p.purse = nil
		}
	}
	if p.book != nil {
		w.lend(p)
	}
}

func (w *world) lend(p *part) {
	b := p.book
	if w.bug == "impatient" {
		for _, l := range b.loans {
			if w.now-l.heard >= Silence {
				l.held = 0
			}
		}
	}
	for _, l := range b.Unseen(w.now, b.Plan(w.now, nil)) {
		m := l.Lend
		w.send(mail{node: l.Node, to: l.Partition, from: p.node, body: &m})
	}
	for _, r := range b.Questions(w.now, nil) {
		for _, o := range w.parts {
			if overlap([]starling.Range{r}, o.keys) && o.node != 0 {
				w.send(mail{node: o.node, to: o.id, from: p.node, body: &wire.Audit{Account: acme, Partition: p.id, Term: b.Term()}})
			}
		}
	}
}

func (w *world) deliver(m mail) {
	var p *part
	for _, o := range w.parts {
		if m.to == 0 && o.keys.Contains(m.key) || m.to != 0 && o.id == m.to {
			p = o
		}
	}
	if p == nil || p.node == 0 || m.node != 0 && m.node != p.node {
		return
	}
	switch b := m.body.(type) {
	case *wire.Borrow:
		if p.book != nil && !p.book.Borrow(w.now, m.from, b) {
			w.send(mail{node: m.from, to: b.Partition, from: p.node, body: &wire.Audit{Account: acme, Partition: p.id, Term: p.book.Term()}})
		}
	case *wire.Lend:
		if p.purse == nil {
			w.seq++
			out := &wire.Borrow{}
			Decline(b, w.seq, p.leased, out)
			w.borrow(p, nil, out)
			return
		}
		if w.bug == "gullible" {
			p.purse.seen = 0
		}
		if p.purse.Lend(b, p.epoch) {
			w.tell(p, nil)
		}
	case *wire.Audit:
		if p.purse == nil || p.purse.Audit(b.Term) {
			w.tell(p, &mail{node: m.from, to: b.Partition, body: b})
		}
	}
}

// check says whether more is held than any limit in force allows.
func (w *world) check() error {
	held, leased := 0, 0
	for _, p := range w.parts {
		leased += p.leased
		if p.node != 0 && p.purse != nil {
			held += p.purse.Held(p.leased)
		} else {
			held += p.leased
		}
		if b := p.book; p.node != 0 && b != nil && b.Ready() && b.limit == w.limit {
			if n, _ := b.Lent(); n <= w.limit {
				w.bound = w.limit
			}
		}
	}
	if held > w.bound {
		return fmt.Errorf("at %v %d permits are held, %d leased: the bound is %d", w.now, held, leased, w.bound)
	}
	return nil
}

// anything lets one thing happen.
func (w *world) anything() {
	p := w.parts[w.rng.IntN(len(w.parts))]
	switch n := w.rng.IntN(40); {
	case n < 12:
		p.wait += w.rng.IntN(6)
	case n < 28:
		p.leased -= min(p.leased, w.rng.IntN(5))
	case n < 30:
		p.wait = 0
	case n == 30 && p.node != 0: // its node dies
		w.die(p.node)
	case n == 31 && p.node != 0: // it moves
		p.node, p.epoch, p.wait = starling.NodeID(1+w.rng.IntN(3)), p.epoch+1, 0
		w.live(p)
	case n == 32 && p.node != 0 && len(w.parts) < 12:
		w.split(p)
	case n == 33:
		w.limitTo(1 + w.rng.IntN(60))
	}
}

func (w *world) die(n starling.NodeID) {
	for _, p := range w.parts {
		if p.node == n {
			p.node, p.wait, p.purse, p.book = 0, 0, nil, nil
			p.wakes = w.now + 600*time.Millisecond + time.Duration(w.rng.IntN(300))*time.Millisecond
		}
	}
}

func (w *world) split(p *part) {
	if !w.divisible(p) {
		return
	}
	hi := uint64(p.keys.Hi) - 1 // of 0: the last key
	mid := starling.Key64(uint64(p.keys.Lo) + (hi-uint64(p.keys.Lo))/2)
	if mid == p.keys.Lo {
		return
	}
	w.ids++
	q := &part{id: w.ids, epoch: p.epoch + 1, keys: starling.Range{Lo: mid, Hi: p.keys.Hi}, node: starling.NodeID(1 + w.rng.IntN(3))}
	q.leased = w.rng.IntN(p.leased + 1)
	p.epoch, p.keys.Hi, p.leased, p.wait = p.epoch+1, mid, p.leased-q.leased, 0
	w.parts = append(w.parts, q)
	w.live(p)
	w.live(q)
}

func (w *world) limitTo(n int) {
	w.limit = n
	w.bound = max(w.bound, n)
	if p := w.at(KeyOf(acme)); p.book != nil {
		p.book.Limit(n)
	}
}
