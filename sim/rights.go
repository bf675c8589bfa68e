package sim

import (
	"time"

	"starling"
)

// Rights are the leases that were granted for each account, noted apart from the code under test: what a frontend may do
// with a slot, not what a scheduler believes of it. A successor books every lease that a host saw used within a lease's
// time, also one that was given back to the owner before it; nobody can use it, so it harms no limit, but sums of the
// schedulers' books would see more than the limit.
type rights map[string][]*right

// A right is one lease that was granted.
type right struct {
	lease  starling.Lease
	to     *node
	life   int           // of the frontend
	booked time.Duration // so long its scheduler counts it, if it hears nothing

	granted time.Duration
}

// account notes a grant and looks whether the account has more than its limit.
func (rs *rights) account(w *World, f *function, r *right) {
	if *rs == nil {
		*rs = rights{}
	}
	kept, sum, own := (*rs)[f.Account][:0], 1, 1
	for _, o := range (*rs)[f.Account] {
		alive, ended := o.alive(w)
		if !ended {
			kept = append(kept, o)
		}
		if alive {
			sum++
			if o.lease.Version == r.lease.Version {
				own++
			}
		}
	}
	(*rs)[f.Account] = append(kept, r)
	if own > f.limit && w.cfg.Check.Limits {
		w.fail("%s has %d slots in all partitions, its limit is %d", f.version.Function, own, f.limit)
	}
	if sum > w.cfg.Accounts && w.cfg.Check.Account {
		w.fail("account %s has %d slots in all partitions, its limit is %d", f.Account, sum, w.cfg.Accounts)
	}
}

// rightKept is how long a grant that did not arrive is looked for.
const rightKept = 5 * time.Second

// outlived reports whether the node has heard of a recovery of l's partition: a frontend does not take a grant from before it.
func (n *node) outlived(l *starling.Lease) bool {
	p, ok := n.view.topology.Map.Lookup(l.Key)
	return ok && p.Since > l.Epoch
}

// alive reports whether a call is at work under r or could begin now, or when its Grant arrives; ended, that it never can again. What is at
// work when its frontend's node lease has ended is not counted where that of its host has ended since the grant, too: both can be asked by
// nobody who counts, and no wait outlasts a call. Nothing new may begin there. A host that kept its own tells who asks.
func (r *right) alive(w *World) (alive, ended bool) {
	l := &r.lease
	if !r.to.up || r.to.life != r.life {
		return false, true
	}
	h := w.node(l.Host)
	if h == nil || !h.up {
		return false, false
	}
	i := h.host.all[l.Instance]
	if i == nil || i.stopping {
		return false, true
	}
	known, usable, busy := r.to.front.cache.Holds(w.now, l)
	switch honours := i.tenure.Honours(l, w.clock()); {
	case !known:
		return !r.to.outlived(l) && w.now < r.booked && honours, w.now >= r.booked+rightKept
	case r.to.barred() || r.to.lapsed > r.granted:
		unasked := h.barred() || h.lapsed > r.granted
		return (usable || busy && !unasked) && honours, false
	default:
		return (usable || busy) && honours, false
	}
}
