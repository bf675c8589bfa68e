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

// A new owner that cannot ask a host hears what is at work there, as soon as this node knows of the owner. From then on nothing begins under
// older leases, also not under one that was long on its way.
func TestCensusNamesWhatIsAtWork(t *testing.T) {
	m, err := partmap.Initial(1)
	if err != nil {
		t.Fatal(err)
	}
	m.Partitions[0].Owner, m.Partitions[0].Epoch = 1, 1
	var asked *wire.Acquire
	var answer *wire.AtWork
	cache := New(Config{Map: func() *partmap.Map { return m }, Send: func(to wire.Address, b wire.Message) {
		switch b := b.(type) {
		case *wire.Acquire:
			asked = b
		case *wire.AtWork:
			if to != (wire.Address{Node: 2, Partition: 1}) {
				t.Errorf("the answer went to %v", to)
			}
			answer = b
		}
	}})
	grant := func(id starling.LeaseID, host starling.NodeID) *Lease {
		t.Helper()
		w := &Waiter{GiveUp: time.Minute, Ready: func() {}}
		if _, err := cache.Wait(0, starling.VersionID(id), w); err != nil {
			t.Fatal(err)
		}
		cache.Receive(0, 1, &wire.Grant{Call: asked.Call, Lease: starling.Lease{ID: id, Partition: 1, Epoch: 1, Version: starling.VersionID(id), Host: host, Slots: 1, TTL: time.Second, Key: 5}})
		return w.Lease
	}
	grant(1, 7)                         // at work on the host that is lost
	grant(2, 8)                         // on another
	cache.Put(0, grant(3, 7), false, 0) // idle on the lost one
	cache.Receive(0, 2, &wire.Census{Partition: 1, Epoch: 2, Hosts: []starling.NodeID{7}})
	if answer != nil {
		t.Fatalf("an owner that is not in the map got %+v", answer)
	}
	next := m.Clone()
	if err := next.Apply(partmap.Change{Kind: partmap.Assign, Partition: 1, Epoch: 1, To: 2}); err != nil {
		t.Fatal(err)
	}
	m = next
	cache.MapChanged(0)
	if answer == nil || answer.More || len(answer.Leases) != 1 || answer.Leases[0].ID != 1 || answer.Leases[0].Key != 5 {
		t.Fatalf("got %+v, want the lease at work on the lost host", answer)
	}
	if l := cache.Take(0, 3); l != nil {
		t.Error("a call began under a lease from before the recovery")
	}
	if l := grant(4, 7); l != nil {
		t.Error("a grant from before the recovery was used")
	}
}

// A node whose own lease is over is counted dead: nothing begins under what it holds, until it has looked at the map that came with its
// next lease.
func TestWithoutNodeLeaseNoCallBegins(t *testing.T) {
	m, err := partmap.Initial(1)
	if err != nil {
		t.Fatal(err)
	}
	m.Partitions[0].Owner, m.Partitions[0].Epoch = 1, 1
	var asked *wire.Acquire
	until := 500 * time.Millisecond
	cache := New(Config{Map: func() *partmap.Map { return m }, NodeLease: func() time.Duration { return until }, Send: func(_ wire.Address, b wire.Message) {
		if a, ok := b.(*wire.Acquire); ok {
			asked = a
		}
	}})
	cache.MapChanged(0)
	w := &Waiter{GiveUp: time.Minute, Ready: func() {}}
	if _, err := cache.Wait(0, 1, w); err != nil {
		t.Fatal(err)
	}
	cache.Receive(0, 1, &wire.Grant{Call: asked.Call, Lease: starling.Lease{ID: 1, Partition: 1, Epoch: 1, Version: 1, Slots: 2, TTL: time.Second, Key: 5}})
	if w.Lease == nil {
		t.Fatal("no call began with the node lease")
	}
	if cache.Take(600*time.Millisecond, 1) != nil {
		t.Error("a call began after the node lease")
	}
	until = time.Second
	m = m.Clone()
	if cache.Take(600*time.Millisecond, 1) != nil {
		t.Error("a call began before the map of the next node lease was looked at")
	}
	cache.MapChanged(600 * time.Millisecond)
	if cache.Take(600*time.Millisecond, 1) == nil {
		t.Error("no call began with the next node lease")
	}
}
