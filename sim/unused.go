package sim

import (
	"time"

	"starling"
)

// Unused is what the checker of unused permits notes once nothing fails any more.
type unused struct {
	at    time.Duration                        // of the next look
	since map[starling.AccountID]time.Duration // when the account was last seen at work, or a partition without an owner that grants
	back  map[starling.AccountID]bool          // all is back since then
	worst time.Duration                        // from there until all was back
}

const (
	unusedLook = 20 * time.Millisecond
	unusedMax  = 2 * time.Second // until an unused permit is back, but for messages and looks
)

// permits looks whether permits of accounts that use nothing are with their ledgers again.
func (k *checker) permits() {
	w, u := k.w, &k.unused
	u.at = w.now + unusedLook
	if u.since == nil {
		u.since, u.back = map[starling.AccountID]time.Duration{}, map[starling.AccountID]bool{}
	}
	var parts []*part
	granting := true
	for _, n := range w.fronts {
		for _, p := range n.parts.order {
			parts = append(parts, p)
			granting = granting && p.sched.Status().Granting
		}
	}
	granting = granting && len(parts) == w.partitions()
	working := map[string]bool{}
	for c := w.open.first; c != nil; c = c.next {
		working[c.f.Account] = true
	}
	most := unusedMax + unusedLook + 8*(w.cfg.Net.Delay+w.cfg.Net.Jitter)
	for _, f := range w.functions {
		id := starling.AccountID(f.Account)
		needed, held, lent := 0, 0, 0
		for _, p := range parts {
			h, n, l := p.sched.Permits(id)
			needed, held, lent = needed+n, held+h, lent+l
		}
		_, known := u.since[id]
		switch idle := w.now - u.since[id]; {
		case !known || !granting || needed > 0 || working[f.Account]:
			u.since[id], u.back[id] = w.now, false
		case held+lent == 0 && !u.back[id]:
			u.back[id], u.worst = true, max(u.worst, idle)
		case held+lent > 0 && idle > most:
			w.fail("account %s uses nothing for %v, and its permits are not back: purses hold %d, the ledger has lent %d", id, idle, held, lent)
		}
	}
}
