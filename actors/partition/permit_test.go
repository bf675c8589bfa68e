package partition

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// TestOneLimitOverAllPartitions: functions of one account lie in eight partitions on two nodes; they get the account's
// 100 slots together, all of them and not one more, also after a node with half of the partitions has died.
func TestOneLimitOverAllPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, _ := three(t, time.Hour)
		defer c.close()
		m, err := partmap.Initial(8)
		if err != nil {
			t.Fatal(err)
		}
		for i := range m.Partitions {
			m.Partitions[i].Owner, m.Partitions[i].Epoch = starling.NodeID(1+i%2), 1
		}
		c.publish(m, members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		if n := f.flood(m); n != 100 {
			t.Errorf("%d slots of an account with 100 were granted", n)
		}
		time.Sleep(2 * time.Second) // leases end, nobody renews them
		m = m.Clone()
		for i := range m.Partitions {
			m.Partitions[i].Owner = 2
			m.Partitions[i].Epoch++
		}
		h.mu.Lock()
		h.runs = map[starling.InstanceID]*running{}
		h.mu.Unlock()
		c.publish(m, without(1))
		time.Sleep(50 * time.Millisecond)
		h.report(2)
		if n := f.flood(m); n != 100 {
			t.Errorf("after a death %d slots of an account with 100 were granted", n)
		}
	})
}

// flood asks for three slots of each of 50 functions and counts what is granted before any lease ends.
func (f *frontend) flood(m *partmap.Map) int {
	var granted atomic.Int64
	for v := starling.VersionID(1); v <= 50; v++ {
		ver, _ := catalog{}.Version(context.Background(), v)
		p, _ := m.Lookup(ver.Key())
		for range 3 {
			f.mu.Lock()
			f.calls++
			ch := make(chan wire.Message, 1)
			f.waits[f.calls] = ch
			a := &wire.Acquire{Call: f.calls, Partition: p.ID, Epoch: p.Epoch, Key: ver.Key(), Version: v, Wait: 900 * time.Millisecond}
			f.mu.Unlock()
			f.c.hubs[f.id].Send(wire.Address{Node: p.Owner, Partition: p.ID}, a)
			go func() {
				if _, ok := (<-ch).(*wire.Grant); ok {
					granted.Add(1)
				}
			}()
		}
	}
	time.Sleep(1050 * time.Millisecond)
	return int(granted.Load())
}
