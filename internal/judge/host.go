package judge

import (
	"fmt"

	"starling"
	"starling/internal/audit"
)

// A Breach is one acceptance of a lease that should have been refused.
type Breach struct {
	Life   string
	Record audit.Record
	Why    string
}

// String tells the breach in a line.
func (b Breach) String() string {
	r := b.Record
	return fmt.Sprintf("%s accepted lease %d of %s at epoch %d for %s at %d: %s", b.Life, uint64(r.Lease), r.Partition, uint64(r.Epoch), r.Instance, r.At, b.Why)
}

// A leaseName names one lease in the cluster.
type leaseName struct {
	place
	lease    starling.LeaseID
	instance starling.InstanceID
}

func nameOf(r audit.Record) leaseName {
	return leaseName{place{r.Partition, r.Epoch}, r.Lease, r.Instance}
}

// use is a lease in the checker's own books, by instance and name.
type use struct {
	busy int
	last int64
}

// An Acceptance sums up what a host accepted.
type Acceptance struct {
	Entered  int      // leases shown and accepted, once for each call
	Outlived int      // of those, leases from before a recovery that were in use and so still good
	Breaches []Breach // there must be none
}

// Accepted checks what hosts accepted. A lease from before the last recovery of its key that the host was told of is good
// only while it is in use: a call of it is at work, or ended less than ttl ago. An instance never has more calls at work
// than it has slots. ttl is in nanoseconds.
func Accepted(lives []Life, ttl int64) Acceptance {
	var out Acceptance
	for _, l := range lives {
		h := hostBooks{life: l.Name, ttl: ttl, uses: map[leaseName]*use{}, busy: map[starling.InstanceID]int{}, out: &out}
		refused := refusals(l.Records)
		for i, r := range l.Records {
			h.take(r, refused[i])
		}
	}
	return out
}

// refusals returns which Enters were taken back by the instance.
func refusals(records []audit.Record) map[int]bool {
	last, out := map[leaseName][]int{}, map[int]bool{}
	for i, r := range records {
		n := nameOf(r)
		switch r.Kind {
		case audit.Enter:
			last[n] = append(last[n], i)
		case audit.Refuse, audit.Leave:
			open := last[n]
			if len(open) == 0 {
				continue
			}
			if r.Kind == audit.Refuse {
				out[open[len(open)-1]] = true
			}
			last[n] = open[:len(open)-1]
		}
	}
	return out
}

type hostBooks struct {
	life   string
	ttl    int64
	fences []audit.Record
	uses   map[leaseName]*use
	busy   map[starling.InstanceID]int // calls at work
	out    *Acceptance
}

func (h *hostBooks) take(r audit.Record, refused bool) {
	n := nameOf(r)
	switch r.Kind {
	case audit.Fence:
		h.fences = append(h.fences, r)
	case audit.Enter:
		h.enter(r, n, refused)
	case audit.Leave, audit.Refuse:
		u := h.uses[n]
		if u == nil {
			return
		}
		u.busy, u.last = u.busy-1, r.At
		if r.Kind == audit.Leave {
			h.busy[r.Instance]--
		}
	}
}

func (h *hostBooks) enter(r audit.Record, n leaseName, refused bool) {
	h.out.Entered++
	u := h.uses[n]
	if floor := h.floor(r); r.Epoch < floor {
		if u == nil || u.busy == 0 && r.At-u.last >= h.ttl {
			h.out.Breaches = append(h.out.Breaches, Breach{h.life, r, fmt.Sprintf("its key was recovered at epoch %d and it was not in use", uint64(floor))})
		} else {
			h.out.Outlived++
		}
	}
	if u == nil {
		u = &use{}
		h.uses[n] = u
	}
	u.busy++
	u.last = max(u.last, r.At)
	if refused {
		return
	}
	h.busy[r.Instance]++
	if got := h.busy[r.Instance]; got > r.Slots {
		h.out.Breaches = append(h.out.Breaches, Breach{h.life, r, fmt.Sprintf("%d calls are at work in %d slots", got, r.Slots)})
	}
}

// floor returns the epoch of the last recovery of the lease's key that this host knew of when the lease was shown.
func (h *hostBooks) floor(r audit.Record) starling.Epoch {
	var floor starling.Epoch
	for _, f := range h.fences {
		if f.At < r.At && f.Range.Contains(r.Key) {
			floor = max(floor, f.Since)
		}
	}
	return floor
}
