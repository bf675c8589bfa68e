package host

import (
	"time"

	"starling"
	"starling/actors/wire"
	"starling/metrics/profile"
	"starling/vmpool"
)

// gather puts what every instance did since the last beat into the book. Calls only count in their instance.
func (h *Host) gather(now time.Time) {
	for _, e := range h.all() {
		e.mu.Lock()
		i := e.instance
		e.mu.Unlock()
		if i != nil {
			h.note(i, now)
		}
	}
}

// note puts what one instance did into the book.
func (h *Host) note(i *vmpool.Instance, now time.Time) {
	v, t := i.Version(), i.Tally(now)
	h.book.Add(v, &t, now)
	h.meters.used(v, &t)
	h.accounts.used(v.Function.Account, &t)
}

// runs returns how long calls of the versions of these instances run here.
func (h *Host) runs(of []wire.InstanceReport) (runs []wire.RunReport) {
	asked := map[starling.VersionID]bool{}
	for i := range of {
		v := of[i].Version
		if asked[v] {
			continue
		}
		asked[v] = true
		if mean := h.book.MeanRun(v); mean > 0 {
			runs = append(runs, wire.RunReport{Version: v, Mean: mean})
		}
	}
	return runs
}

// Profiles returns what calls of one function used on this host, or of all for an empty name, up to a beat ago.
func (h *Host) Profiles(name starling.FunctionName) []profile.Profile { return h.book.Profiles(name) }
