package sched

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
)

// warmed returns a scheduler with n functions, each with one idle instance, and its clock.
func warmed(tb testing.TB, n int) (*Scheduler, time.Time) {
	tb.Helper()
	now := time.Unix(1_700_000_000, 0)
	s := New(DefaultConfig(), rand.New(rand.NewPCG(1, 1)))
	const hosts = 100
	var ids []starling.NodeID
	for h := range hosts {
		ids = append(ids, starling.NodeID(h+1))
	}
	s.Step(now, Activate{Partition: 1, Epoch: 1, Hosts: ids})
	s.Step(now, LeaseUntil{now.Add(time.Hour)})
	perHost := make([]*wire.Fenced, hosts)
	for h := range perHost {
		perHost[h] = &wire.Fenced{Partition: 1, Epoch: 1, Host: ids[h]}
	}
	for i := range n {
		m := perHost[i%hosts]
		m.Instances = append(m.Instances, wire.InstanceReport{Instance: starling.InstanceID{Partition: 1, Seq: uint64(i + 1)}, Version: starling.VersionID(i + 1), Ready: true})
	}
	for h, m := range perHost {
		s.Step(now, Message{ids[h], m})
	}
	for i := range n {
		c := starling.Config{Runtime: starling.Python311}.WithDefaults()
		s.Step(now, VersionKnown{&starling.Version{ID: starling.VersionID(i + 1), Config: c, Function: starling.FunctionRef{
			Account: starling.AccountID(fmt.Sprintf("a%d", i/100)), Name: starling.FunctionName(fmt.Sprintf("f%d", i))}}, 1000})
	}
	if err := s.Check(); err != nil {
		tb.Fatal(err)
	}
	return s, now
}

// BenchmarkAcquireRelease is one call's share of the scheduler: a slot taken and given back.
func BenchmarkAcquireRelease(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("functions=%d", n), func(b *testing.B) {
			s, now := warmed(b, n)
			rng := rand.New(rand.NewPCG(2, 2))
			a := &wire.Acquire{Partition: 1, Epoch: 1, Key: 5, Wait: time.Second}
			r := &wire.Release{Partition: 1, Epoch: 1, Leases: make([]starling.LeaseID, 1)}
			call := func(v int) {
				a.Call++
				a.Version = starling.VersionID(v)
				out := s.Step(now, Message{200, a})
				r.Leases[0] = out[0].Body.(*wire.Grant).Lease.ID
				s.Step(now, Message{200, r})
			}
			for v := range n {
				call(v + 1) // the first call of each is planned for; BenchmarkTime has the plans
			}
			b.ReportAllocs()
			for b.Loop() {
				call(rng.IntN(n) + 1)
			}
		})
	}
}

// BenchmarkBatch is the same for batches of 64 calls, as a partition's actor gets them: 64 acquires, and later one release
// of all. An operation is one call.
func BenchmarkBatch(b *testing.B) {
	const n, calls = 100_000, 64
	s, now := warmed(b, n)
	order := rand.New(rand.NewPCG(2, 2)).Perm(n)
	var asks []wire.Message
	for range calls {
		asks = append(asks, &wire.Acquire{Partition: 1, Epoch: 1, Key: 5, Wait: time.Second})
	}
	r := &wire.Release{Partition: 1, Epoch: 1}
	back := []wire.Message{r}
	at, call := 0, uint64(0)
	serve := func() {
		for _, m := range asks {
			a := m.(*wire.Acquire)
			at, call = (at+1)%n, call+1
			a.Call, a.Version = call, starling.VersionID(order[at]+1)
		}
		r.Leases = r.Leases[:0]
		s.Expect(asks)
		for _, m := range asks {
			r.Leases = append(r.Leases, s.Step(now, Message{200, m})[0].Body.(*wire.Grant).Lease.ID)
		}
		s.Expect(back)
		s.Step(now, Message{200, r})
	}
	for range n/calls + 1 {
		serve() // the first call of each is planned for
	}
	b.ReportAllocs()
	for done := 0; b.Loop(); done++ {
		if done%calls == 0 {
			serve()
		}
	}
}

// BenchmarkTime is the same while time passes, half a microsecond a call, with the ticks and plans that belong to it.
func BenchmarkTime(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("functions=%d", n), func(b *testing.B) {
			s, now := warmed(b, n)
			rng := rand.New(rand.NewPCG(2, 2))
			a := &wire.Acquire{Partition: 1, Epoch: 1, Key: 5, Wait: time.Second}
			r := &wire.Release{Partition: 1, Epoch: 1, Leases: make([]starling.LeaseID, 1), Demand: make([]wire.Demand, 1)}
			next := now
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(500 * time.Nanosecond)
				if now.After(next) {
					s.Step(now, Tick{})
					next = now.Add(100 * time.Millisecond)
				}
				a.Call++
				a.Version = starling.VersionID(rng.IntN(n) + 1)
				out := s.Step(now, Message{200, a})
				r.Leases[0] = out[0].Body.(*wire.Grant).Lease.ID
				r.Demand[0] = wire.Demand{Version: a.Version, Arrivals: 1, Done: 1, Busy: time.Millisecond}
				s.Step(now, Message{200, r})
			}
		})
	}
}

// BenchmarkQueue is the same while one more call always waits: the release serves it.
func BenchmarkQueue(b *testing.B) {
	s, now := warmed(b, 1000)
	a := &wire.Acquire{Partition: 1, Epoch: 1, Key: 5, Wait: time.Second, Version: 7}
	r := &wire.Release{Partition: 1, Epoch: 1, Leases: make([]starling.LeaseID, 1)}
	s.Step(now, VersionKnown{&starling.Version{ID: 7, Config: starling.Config{Runtime: starling.Python311, InstanceMax: 1}.WithDefaults()}, 1000})
	out := s.Step(now, Message{200, a})
	r.Leases[0] = out[0].Body.(*wire.Grant).Lease.ID
	b.ReportAllocs()
	for b.Loop() {
		a.Call++
		s.Step(now, Message{200, a})
		out := s.Step(now, Message{200, r})
		r.Leases[0] = out[0].Body.(*wire.Grant).Lease.ID
	}
}
