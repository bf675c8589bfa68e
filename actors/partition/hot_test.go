package partition_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// A crowd is the load on one hot function: callers that ask all the time, each at a key drawn at random, and a host with
// twice the instances that the function may use, so that nothing but its limit holds a call back. It counts the slots that
// it holds at once over all partitions: it is granted a slot before it counts it and gives it back after it stopped
// counting, so a count above the limit is an error of the schedulers for certain.
type crowd struct {
	hub     *actors.Hub
	parts   *partmap.Map
	limit   int
	next    atomic.Uint64
	held    atomic.Int64
	most    atomic.Int64
	refused atomic.Int64
	keeping atomic.Bool // grants are kept and nothing is asked for
	fenced  chan starling.PartitionID
	desks   []desk
}

// A desk holds what one partition granted until its goroutine has got round to giving it back.
type desk struct {
	ring  chan struct{}
	mu    sync.Mutex // guards what follows
	slots []wire.Grant
	pairs int64
}

func (c *crowd) acquire() {
	key := starling.KeyOf(hotFunction, rand.Uint32())
	p, _ := c.parts.Lookup(key)
	c.hub.Send(wire.Address{Node: p.Owner, Partition: p.ID}, &wire.Acquire{Call: c.next.Add(1), Partition: p.ID, Epoch: p.Epoch, Key: key,
		Wait: 30 * time.Second, Version: hotVersion})
}

// Receive is the frontend's side: the answers of one partition.
func (c *crowd) Receive(from starling.NodeID, batch []wire.Message) {
	d := &c.desks[from-scheduler]
	d.mu.Lock()
	n := int64(0)
	for _, m := range batch {
		if m, ok := m.(*wire.Grant); ok {
			n += int64(m.Lease.Slots)
			d.slots = append(d.slots, *m)
			continue
		}
		c.refused.Add(1)
	}
	now := c.held.Add(n)
	d.mu.Unlock()
	for old := c.most.Load(); now > old && !c.most.CompareAndSwap(old, now); old = c.most.Load() {
	}
	d.wake()
}

func (d *desk) wake() {
	select {
	case d.ring <- struct{}{}:
	default:
	}
}

// serve gives back what partition p granted and asks anew for as much, until ended is closed.
func (c *crowd) serve(p partmap.Partition, d *desk, ended <-chan struct{}) {
	for {
		select {
		case <-ended:
			return
		case <-d.ring:
		}
		if c.keeping.Load() {
			continue
		}
		d.mu.Lock()
		slots := d.slots
		d.slots = nil
		d.pairs += int64(len(slots))
		d.mu.Unlock()
		if len(slots) == 0 {
			continue
		}
		r, n := &wire.Release{Partition: p.ID, Epoch: p.Epoch}, int64(0)
		for i := range slots {
			r.Leases = append(r.Leases, slots[i].Lease.ID)
			n += int64(slots[i].Lease.Slots)
		}
		c.held.Add(-n)
		c.hub.Send(wire.Address{Node: p.Owner, Partition: p.ID}, r)
		for range slots {
			c.acquire()
		}
	}
}

// pairs returns how many grants were given back so far.
func (c *crowd) pairs() (n int64) {
	for i := range c.desks {
		d := &c.desks[i]
		d.mu.Lock()
		n += d.pairs
		d.mu.Unlock()
	}
	return n
}

// A barracks is the crowd's host.
type barracks struct{ *crowd }

func (c barracks) Receive(_ starling.NodeID, batch []wire.Message) {
	for _, m := range batch {
		f, ok := m.(*wire.Fence)
		if !ok {
			continue // a stop of an instance that is one too many
		}
		p := c.parts.Partitions[f.Partition-1]
		key := max(p.Range.Lo, starling.KeyOf(hotFunction, 0))
		answer := &wire.Fenced{Partition: p.ID, Epoch: f.Epoch, Host: load}
		for i := range 2 * c.limit / hotSlots / len(c.desks) {
			answer.Instances = append(answer.Instances, wire.InstanceReport{Version: hotVersion, Ready: true, Key: key + starling.Key64(i),
				Instance: starling.InstanceID{Partition: p.ID, Seq: uint64(i + 1)}})
		}
		c.hub.Send(wire.Address{Node: p.Owner, Partition: p.ID}, answer)
		c.fenced <- p.ID
	}
}

// BenchmarkHotFunction is one function asked for as fast as a load process can, its span cut evenly into one partition for
// each scheduler process. Each process has one core at most. An operation is one acquire with its release. What counts on
// a machine with fewer cores than processes is pairs/sched-cpu-s: where it stays the same with more nodes, nodes on
// machines of their own decide as many times more.
func BenchmarkHotFunction(b *testing.B) {
	for _, nodes := range []int{1, 2, 3} {
		for _, c := range []struct{ instances, calls int }{{43, 480}, {344, 4000}} {
			b.Run(fmt.Sprintf("nodes=%d/limit=%d/calls=%d", nodes, c.instances*hotSlots, c.calls), func(b *testing.B) {
				hot(b, nodes, c.instances, c.calls)
			})
		}
	}
}

func hot(b *testing.B, nodes, instances, calls int) {
	l := &layout{Instances: instances}
	c := &crowd{limit: instances * hotSlots, fenced: make(chan starling.PartitionID, nodes), desks: make([]desk, nodes)}
	for i := range c.desks {
		c.desks[i].ring = make(chan struct{}, 1)
	}
	c.parts = (&layout{Schedulers: make([]string, nodes)}).partitions()
	processes := start(b, nodes, 1, l, func(h *actors.Hub) actors.Parts {
		c.hub = h
		return actors.Parts{Frontend: c, Host: barracks{c}}
	})
	for range nodes {
		select {
		case <-c.fenced:
		case <-time.After(20 * time.Second):
			b.Fatal("a partition did not fence its host")
		}
	}
	ended := make(chan struct{})
	var served sync.WaitGroup
	for i := range c.desks {
		served.Go(func() { c.serve(c.parts.Partitions[i], &c.desks[i], ended) })
	}
	defer served.Wait()
	defer close(ended)
	for range calls {
		c.acquire()
	}
	c.await(b, 20_000) // all links are open, and purses are filled
	used := func() (us []float64) {
		for _, p := range processes {
			us = append(us, p.cpu(b))
		}
		return us
	}
	before, from := used(), c.pairs()
	b.ResetTimer()
	c.await(b, from+int64(b.N))
	b.StopTimer()
	pairs, cpu := float64(c.pairs()-from), 0.0
	for i, us := range used() {
		cpu += us - before[i]
		b.ReportMetric((us-before[i])/1e6/b.Elapsed().Seconds(), fmt.Sprintf("cores-n%d", i+1))
	}
	b.ReportMetric(cpu/pairs, "sched-µs/op")
	b.ReportMetric(pairs/b.Elapsed().Seconds(), "pairs/s")
	b.ReportMetric(pairs/cpu*1e6, "pairs/sched-cpu-s")
	b.ReportMetric(float64(c.most.Load()), "slots-at-once")
	c.fill(b)
	if n, most := c.refused.Load(), c.most.Load(); n > 0 || most > int64(c.limit) {
		b.Errorf("%d refused; %d slots at once, %d allowed", n, most, c.limit)
	}
}

// await waits for so many pairs.
func (c *crowd) await(b *testing.B, n int64) {
	for deadline := time.Now().Add(time.Minute); c.pairs() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d pairs, %d refused, %d slots held", c.pairs(), n, c.refused.Load(), c.held.Load())
		}
	}
}

// fill offers twice the limit more and keeps every grant for a while, less than a lease lives: so more wait at each
// partition than it lets through, the schedulers give all that they ever would, and that must be the limit exactly.
func (c *crowd) fill(b *testing.B) {
	c.keeping.Store(true)
	for range 2 * c.limit {
		c.acquire()
	}
	time.Sleep(starling.LeaseTTL / 4)
	if held := c.held.Load(); held != int64(c.limit) {
		b.Errorf("%d slots were granted to callers who keep them, the limit is %d", held, c.limit)
	}
}
