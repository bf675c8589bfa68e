package partition

import (
	"cmp"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// The load of a partition is measured so often at most. A partition with fewer acquires a second names no functions:
// nothing would be done with their names, and finding them walks all versions.
const (
	loadEvery = 500 * time.Millisecond
	hotRate   = 200
)

// A meter measures one partition. All but load belongs to the actor's goroutine.
type meter struct {
	load  atomic.Pointer[partmap.Load]
	at    time.Time
	busy  time.Duration // in steps, since at
	calls map[starling.FunctionRef]uint64
}

// measure publishes what the cluster is told of the partition.
func (a *actor) measure(now time.Time, s *Status) {
	m := &a.meter
	passed := now.Sub(m.at)
	if passed < loadEvery {
		return
	}
	l := &partmap.Load{Partition: a.entry.ID, Epoch: a.entry.Epoch, Acquires: uint32(s.Rate), Waiting: uint32(s.Waiting), Leases: uint32(s.Leased)}
	if !m.at.IsZero() {
		l.CPU = uint16(min(int64(m.busy)*1000/int64(passed), math.MaxUint16))
	}
	m.at, m.busy = now, 0
	if s.Rate >= hotRate {
		l.Hot = a.hot()
	} else {
		m.calls = nil
	}
	m.load.Store(l)
}

// hot returns the functions with the most calls since it was asked last, busiest first; nothing the first time.
func (a *actor) hot() []partmap.Hot {
	before, now := a.meter.calls, map[starling.FunctionRef]uint64{}
	for _, v := range a.sched.Busiest(4 * partmap.HotMax) {
		if v.Function != (starling.FunctionRef{}) {
			now[v.Function] += v.Arrivals
		}
	}
	a.meter.calls = now
	type calls struct {
		f starling.FunctionRef
		n uint64
	}
	var list []calls
	all := uint64(0)
	for f, n := range now {
		if old, known := before[f]; known && n > old {
			list = append(list, calls{f, n - old})
			all += n - old
		}
	}
	slices.SortFunc(list, func(x, y calls) int {
		return cmp.Or(cmp.Compare(y.n, x.n), cmp.Compare(x.f.String(), y.f.String()))
	})
	var hot []partmap.Hot
	for _, c := range list[:min(len(list), partmap.HotMax)] {
		hot = append(hot, partmap.Hot{Function: c.f, Share: uint16(c.n * 1000 / all)})
	}
	return hot
}

// Loads returns what the busiest partitions here said last of themselves, at most n.
func (k *Keeper) Loads(n int) []partmap.Load {
	var out []partmap.Load
	for _, a := range *k.actors.Load() {
		if l := a.meter.load.Load(); l != nil {
			out = append(out, *l)
		}
	}
	slices.SortFunc(out, func(x, y partmap.Load) int {
		return cmp.Or(cmp.Compare(y.Weight(), x.Weight()), cmp.Compare(x.Partition, y.Partition))
	})
	return out[:min(n, len(out))]
}

// Rate returns how many acquires a second all partitions here decided, as of the last beat.
func (k *Keeper) Rate() uint32 { return k.rate.Load() }
