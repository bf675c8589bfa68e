package registry

import (
	"maps"
	"slices"
	"strconv"

	"starling"
)

// A floor is how many instances a function wants at all times. That of its latest snapshot counts: a published one has
// the same configuration, and both together would want twice as many.

// admitFloor refuses what would have an account reserve more than it may run, f being nil for a new function.
func (r *Registry) admitFloor(op string, a *account, f *function, c *starling.Config) error {
	peak, old := c.ProvisionedPeak(), 0
	if peak == 0 {
		return nil
	}
	if f != nil {
		old = r.versions[f.Latest].Config.ProvisionedPeak()
	}
	if n := a.reserved - old + peak; n > a.ConcurrencyMax {
		return starling.Errorf(starling.Overloaded, op, "account %q would keep %d instances ready, its limit is %d: provision less",
			a.ID, n, a.ConcurrencyMax).With("ProvisionLimit")
	}
	if old == 0 && len(r.floors) >= FloorMax {
		return starling.Errorf(starling.Overloaded, op, "%d functions of the cluster keep instances ready, its limit", FloorMax).With("ProvisionLimit")
	}
	return nil
}

func (r *Registry) addFloor(v *starling.Version) {
	if peak := v.Config.ProvisionedPeak(); peak > 0 {
		r.floors[v.ID] = true
		r.accounts[v.Function.Account].reserved += peak
	}
}

// dropFloor forgets the floor of v, which may be nil or have none.
func (r *Registry) dropFloor(v *starling.Version) {
	if v != nil && r.floors[v.ID] {
		delete(r.floors, v.ID)
		r.accounts[v.Function.Account].reserved -= v.Config.ProvisionedPeak()
	}
}

// Provisioned returns one page of the latest snapshots that want instances at all times, by id, and what to pass as
// after for the next; "" at the end.
func (r *Registry) Provisioned(after string, limit int) (page []starling.Version, next string) {
	ids := slices.Sorted(maps.Keys(r.floors))
	if n, err := strconv.ParseUint(after, 10, 64); err == nil {
		i, found := slices.BinarySearch(ids, starling.VersionID(n))
		if found {
			i++
		}
		ids = ids[i:]
	}
	ids, more := cutPage(ids, limit)
	for _, id := range ids {
		page = append(page, *r.versions[id])
	}
	if more {
		next = strconv.FormatUint(uint64(ids[len(ids)-1]), 10)
	}
	return page, next
}

// checkFloors reports a floor that is not that of a latest snapshot, or a sum that is wrong.
func (r *Registry) checkFloors() error {
	const op = "check catalog"
	count := 0
	for _, name := range r.names {
		a := r.accounts[name]
		reserved := 0
		for _, f := range a.functions {
			if v := r.versions[f.Latest]; v != nil && v.Config.ProvisionedPeak() > 0 {
				reserved += v.Config.ProvisionedPeak()
				count++
				if !r.floors[v.ID] {
					return starling.Errorf(starling.Internal, op, "the floor of function %q is forgotten", f.Ref)
				}
			}
		}
		if reserved != a.reserved {
			return starling.Errorf(starling.Internal, op, "account %q reserves %d instances, its books say %d", name, reserved, a.reserved)
		}
	}
	if count != len(r.floors) {
		return starling.Errorf(starling.Internal, op, "%d floors belong to no function", len(r.floors)-count)
	}
	return nil
}
