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
