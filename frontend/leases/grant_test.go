package leases

import (
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// Found by the simulator, seed 4436: a frontend that was stopped used a grant that its partition had ended long ago.
func TestGrantFoundAfterStopIsNotUsed(t *testing.T) {
	m, err := partmap.Initial(1)
	if err != nil {
		t.Fatal(err)
	}
	m.Partitions[0].Owner, m.Partitions[0].Epoch = 1, 1
	for _, c := range []struct {
		stopped time.Duration
		want    bool
	}{{0, true}, {2 * time.Second, false}} {
		var asked *wire.Acquire
		cache := New(Config{Map: func() *partmap.Map { return m }, Send: func(_ wire.Address, b wire.Message) {
			if a, ok := b.(*wire.Acquire); ok {
				asked = a
			}
		}})
		w := &Waiter{GiveUp: time.Minute, Ready: func() {}}
		if _, err := cache.Wait(0, 1, w); err != nil {
			t.Fatal(err)
		}
		now := Tick
		cache.Look(now)
		now += Tick + c.stopped
		cache.Look(now) // the clock goes off before the socket is read
		cache.Receive(now, 1, &wire.Grant{Call: asked.Call, Lease: starling.Lease{ID: 1, Partition: 1, Epoch: 1, Version: 1, Slots: 1, TTL: time.Second}})
		if got := w.Lease != nil; got != c.want {
			t.Errorf("stopped for %v: the grant was used is %t", c.stopped, got)
		}
	}
}

// A lease outlives a hand-over, and is given back to whoever has its key now; a recovery ends it.
func TestLeaseFollowsItsKey(t *testing.T) {
	m, err := partmap.Initial(1)
	if err != nil {
		t.Fatal(err)
	}
	apply := func(c partmap.Change) {
		t.Helper()
		m = m.Clone()
		if err := m.Apply(c); err != nil {
			t.Fatal(err)
		}
	}
	apply(partmap.Change{Kind: partmap.Assign, Partition: 1, To: 1})
	var asked *wire.Acquire
	released := map[wire.Address]*wire.Release{}
	cache := New(Config{Map: func() *partmap.Map { return m }, Send: func(to wire.Address, b wire.Message) {
		switch b := b.(type) {
		case *wire.Acquire:
			asked = b
		case *wire.Release:
			released[to] = b
		}
	}})
	grant := func(id starling.LeaseID, key starling.Key64) *Lease {
		t.Helper()
		w := &Waiter{GiveUp: time.Minute, Ready: func() {}}
		if _, err := cache.Wait(0, 1, w); err != nil {
			t.Fatal(err)
		}
		cache.Receive(0, 1, &wire.Grant{Call: asked.Call, Lease: starling.Lease{ID: id, Partition: 1, Epoch: 1, Version: 1, Slots: 1, TTL: time.Second, Key: key}})
		if w.Lease == nil {
			t.Fatal("no lease")
		}
		return w.Lease
	}
	low, high := grant(1, 5), grant(2, 1<<63+5)
	apply(partmap.Change{Kind: partmap.Split, Partition: 1, Epoch: 1, At: 1 << 63})
	apply(partmap.Change{Kind: partmap.Move, Partition: 2, Epoch: 2, To: 9})
	cache.MapChanged(0)
	if cache.Live() != 2 {
		t.Fatalf("%d leases are left after a split and a move, want 2", cache.Live())
	}
	cache.Put(0, low, false, 0)
	cache.Put(0, high, false, 0)
	cache.Collect(starling.LeaseIdleReturn)
	for to, id := range map[wire.Address]starling.LeaseID{{Node: 1, Partition: 1}: 1, {Node: 9, Partition: 2}: 2} {
		r := released[to]
		if r == nil || r.Partition != 1 || r.Epoch != 1 || len(r.Leases) != 1 || r.Leases[0] != id {
			t.Errorf("%v got %+v, want lease %d under the name it was granted by", to, r, id)
		}
	}
	grant(3, 5)
	apply(partmap.Change{Kind: partmap.Assign, Partition: 1, Epoch: 2, To: 3})
	cache.MapChanged(0)
	if l := cache.Take(0, 1); l != nil {
		t.Error("a lease outlived a recovery")
	}
}
