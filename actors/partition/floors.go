package partition

import (
	"context"
	"slices"
	"time"

	"starling"
	"starling/sched"
)

// followFloors looks for the functions that want instances at all times, and tells every partition when the list has
// changed. A partition must hear of them without a call: that is their point.
func (k *Keeper) followFloors(ctx context.Context) {
	t := time.NewTicker(k.cfg.FloorsAgain)
	defer t.Stop()
	for {
		k.lookAtFloors(ctx)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (k *Keeper) lookAtFloors(ctx context.Context) {
	asking, cancel := context.WithTimeout(ctx, k.cfg.LookupTimeout)
	defer cancel()
	versions, err := k.cfg.Floors.Provisioned(asking)
	if err != nil {
		if ctx.Err() == nil {
			k.cfg.Log.Debug("provisioned functions could not be listed; they are asked for again", "err", err)
		}
		return
	}
	list := &sched.Provisioned{}
	for i := range versions {
		most := starling.ConcurrencyMax
		if a, err := k.cfg.Catalog.Account(asking, versions[i].Function.Account); err == nil && a.ConcurrencyMax > 0 {
			most = a.ConcurrencyMax
		}
		list.Versions = append(list.Versions, sched.VersionKnown{Version: &versions[i], ConcurrencyMax: most})
	}
	if old := k.floors.Load(); old != nil && slices.EqualFunc(old.Versions, list.Versions, sameFloor) {
		list = old
	} else if old == nil && len(list.Versions) == 0 {
		return
	}
	k.floors.Store(list)
	for _, a := range *k.actors.Load() {
		k.tellFloors(a)
	}
}

// sameFloor compares by id: a snapshot never changes.
func sameFloor(a, b sched.VersionKnown) bool {
	return a.Version.ID == b.Version.ID && a.ConcurrencyMax == b.ConcurrencyMax
}

// tellFloors gives a partition the newest list, unless it has it. An actor with a full mailbox hears of it the next time.
func (k *Keeper) tellFloors(a *actor) {
	list := k.floors.Load()
	if list != nil && a.floors.Swap(list) != list && !a.ref.Tell(*list, 1) {
		a.floors.Store(nil)
	}
}
