package partition_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/wire"
)

const functions = 10_000

// A generator is the load's node: it keeps so many calls between acquire and release, and returns and asks again for what a
// read brought at once, as frontends do. As a host it owns an instance of each function.
type generator struct {
	hub     *actors.Hub
	next    atomic.Uint64
	pairs   atomic.Int64
	refused atomic.Int64
	stop    atomic.Bool
	fenced  chan struct{}
}

func (g *generator) acquire() {
	n := g.next.Add(1)
	g.hub.Send(wire.Address{Node: scheduler, Partition: 1}, &wire.Acquire{Call: n, Partition: 1, Epoch: 1, Key: 5, Wait: 30 * time.Second,
		Version: starling.VersionID(n%functions + 1)})
}

// A grants is the frontend's side of a generator.
type grants struct{ *generator }

func (g grants) Receive(_ starling.NodeID, batch []wire.Message) {
	r := &wire.Release{Partition: 1, Epoch: 1}
	for _, m := range batch {
		if m, ok := m.(*wire.Grant); ok {
			r.Leases = append(r.Leases, m.Lease.ID)
			continue
		}
		g.refused.Add(1)
	}
	g.hub.Send(wire.Address{Node: scheduler, Partition: 1}, r)
	g.pairs.Add(int64(len(r.Leases)))
	if !g.stop.Load() {
		for range r.Leases {
			g.acquire()
		}
	}
}

// A fences is its host's side.
type fences struct{ *generator }

func (g fences) Receive(_ starling.NodeID, batch []wire.Message) {
	for _, m := range batch {
		f, ok := m.(*wire.Fence)
		if !ok {
			continue // a stop: no start is wanted, as every function has its instance
		}
		answer := &wire.Fenced{Partition: 1, Epoch: f.Epoch, Host: load}
		for i := range functions {
			answer.Instances = append(answer.Instances, wire.InstanceReport{Version: starling.VersionID(i + 1), Ready: true,
				Instance: starling.InstanceID{Partition: 1, Seq: uint64(i + 1)}})
		}
		g.hub.Send(wire.Address{Node: scheduler, Partition: 1}, answer)
		select {
		case g.fenced <- struct{}{}:
		default:
		}
	}
}

// BenchmarkOverQUIC is acquire and release between two real nodes on loopback, everything real but frontend and host. An
// operation is one pair; sched-µs/op is what the scheduler's process spends on it, system calls and encryption included.
// It runs on one core, where the figures say what a core can do, and on two, where a process that waits between calls
// pays for waking one core by the other as well.
func BenchmarkOverQUIC(b *testing.B) {
	for _, cores := range []int{1, 2} {
		for _, calls := range []int{64, 512, 4096} {
			b.Run(fmt.Sprintf("cores=%d/calls=%d", cores, calls), func(b *testing.B) { overQUIC(b, cores, calls) })
		}
	}
}

func overQUIC(b *testing.B, cores, calls int) {
	g := &generator{fenced: make(chan struct{}, 1)}
	p := start(b, 1, cores, &layout{}, func(h *actors.Hub) actors.Parts {
		g.hub = h
		return actors.Parts{Frontend: grants{g}, Host: fences{g}}
	})[0]
	select {
	case <-g.fenced:
	case <-time.After(20 * time.Second):
		b.Fatal("the partition did not fence its host")
	}
	for range calls {
		g.acquire()
	}
	await := func(n int64) {
		for deadline := time.Now().Add(time.Minute); g.pairs.Load() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				b.Fatalf("%d of %d pairs, %d refused", g.pairs.Load(), n, g.refused.Load())
			}
		}
	}
	await(int64(2 * functions)) // every version is known
	before, from := p.cpu(b), g.pairs.Load()
	b.ResetTimer()
	await(from + int64(b.N))
	b.StopTimer()
	pairs, cpu := float64(g.pairs.Load()-from), p.cpu(b)-before
	b.ReportMetric(cpu/pairs, "sched-µs/op")
	b.ReportMetric(pairs/b.Elapsed().Seconds(), "pairs/s")
	b.ReportMetric(pairs/cpu*1e6, "pairs/sched-cpu-s")
	if n := g.refused.Load(); n > 0 {
		b.Errorf("%d refused", n)
	}
	g.stop.Store(true)
}
