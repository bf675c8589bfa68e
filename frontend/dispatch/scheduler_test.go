package dispatch

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched"
)

// A brain puts the true scheduler where world has its small partition, and one true-to-the-letter host: it knows
// its instances, refuses what it does not run, and never lets two calls share a slot.
type brain struct {
	mu       sync.Mutex
	s        *sched.Scheduler
	hubs     map[starling.NodeID]*Dispatcher
	versions map[starling.VersionID]*starling.Version
	alive    map[starling.InstanceID]*atomic.Int32
	inbox    chan func() // the partition's mailbox: one goroutine steps
	done     chan struct{}
	lost     func() bool // true loses a message
	ran      atomic.Int64
	over     atomic.Int64
}

const brainHost = starling.NodeID(9)

func newBrain(memoryMiB uint32) *brain {
	b := &brain{s: sched.New(sched.DefaultConfig(), rand.New(rand.NewPCG(1, 2))), hubs: map[starling.NodeID]*Dispatcher{},
		versions: map[starling.VersionID]*starling.Version{}, alive: map[starling.InstanceID]*atomic.Int32{},
		inbox: make(chan func(), 1<<16), done: make(chan struct{}), lost: func() bool { return false }}
	b.step(sched.LeaseUntil{Until: time.Now().Add(24 * time.Hour)})
	b.step(sched.Activate{Partition: 7, Epoch: 1, Hosts: []starling.NodeID{brainHost}})
	b.step(sched.Message{From: brainHost, Body: &wire.Fenced{Partition: 7, Epoch: 1, Host: brainHost}})
	b.step(sched.Message{From: brainHost, Body: &wire.HostReport{Host: brainHost, FreeMiB: memoryMiB, TotalMiB: memoryMiB}})
	go b.run()
	return b
}

// run is the mailbox's goroutine; it also ticks.
func (b *brain) run() {
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case f := <-b.inbox:
			f()
		case <-t.C:
			b.step(sched.Tick{})
		case <-b.done:
			return
		}
	}
}

// step carries effects out; bodies are copied because the scheduler uses them again.
func (b *brain) step(ev sched.Event) {
	for _, e := range b.s.Step(time.Now(), ev) {
		switch m := e.Body.(type) {
		case nil:
			if a := e.Account; a != "" {
				b.inbox <- func() { b.step(sched.AccountKnown{Account: a, ConcurrencyMax: 1000}) }
				continue
			}
			v := b.versions[e.Version]
			b.inbox <- func() { b.step(sched.VersionKnown{Version: v, ConcurrencyMax: 1000}) }
		case *wire.Start:
			start := *m
			time.AfterFunc(30*time.Millisecond, func() { // a cold start
				b.mu.Lock()
				b.alive[start.Instance] = new(atomic.Int32)
				b.mu.Unlock()
				b.inbox <- func() {
					b.step(sched.Message{From: brainHost, Body: &wire.Started{Partition: 7, Host: brainHost, Instance: start.Instance, Start: 10 * time.Millisecond, Init: 20 * time.Millisecond}})
				}
			})
		case *wire.Stop:
			id := m.Instance
			b.mu.Lock()
			delete(b.alive, id)
			b.mu.Unlock()
			b.inbox <- func() {
				b.step(sched.Message{From: brainHost, Body: &wire.Exited{Partition: 7, Host: brainHost, Instance: id, Reason: "stopped"}})
			}
		case *wire.Grant:
			c := *m
			b.deliver(e.To, &c)
		case *wire.Reject:
			c := *m
			b.deliver(e.To, &c)
		case *wire.Recall:
			c := *m
			c.Leases = append([]starling.LeaseID(nil), m.Leases...)
			b.deliver(e.To, &c)
		case *wire.Renewed:
			c := *m
			c.Leases = append([]starling.LeaseID(nil), m.Leases...)
			b.deliver(e.To, &c)
		}
	}
}

func (b *brain) deliver(to starling.NodeID, m wire.Message) {
	if !b.lost() {
		b.hubs[to].Receive(owner, []wire.Message{m})
	}
}

// A desk is the post of one frontend.
type desk struct {
	b    *brain
	node starling.NodeID
}

func (k *desk) Self() starling.NodeID { return k.node }

func (k *desk) Send(_ wire.Address, m wire.Message) {
	if !k.b.lost() {
		k.b.inbox <- func() { k.b.step(sched.Message{From: k.node, Body: m}) }
	}
}

func (b *brain) Map() *partmap.Map {
	return &partmap.Map{Partitions: []partmap.Partition{{ID: 7, Epoch: 1, Owner: owner}}}
}

func (b *brain) Changed() <-chan struct{} { return nil }

func (b *brain) Invoke(_ context.Context, l *starling.Lease, inv *starling.Invocation, _ starling.Sink) (starling.Outcome, error) {
	b.mu.Lock()
	slots := b.alive[l.Instance]
	b.mu.Unlock()
	if slots == nil {
		return starling.Outcome{}, starling.Errorf(starling.Moved, "invoke", "no such instance")
	}
	defer slots.Add(-1)
	if slots.Add(1) > 1 {
		b.over.Add(1)
		return starling.Outcome{}, starling.Errorf(starling.Overloaded, "invoke", "slots busy")
	}
	b.ran.Add(1)
	time.Sleep(5 * time.Millisecond)
	return starling.Outcome{Run: 5 * time.Millisecond}, nil
}

// open adds a frontend.
func (b *brain) open(t *testing.T, node starling.NodeID) *Dispatcher {
	d := New(Config{Node: node, Post: &desk{b, node}, Topology: b, Remote: b, Log: slog.New(slog.DiscardHandler)})
	b.hubs[node] = d
	return d
}

// Two frontends and the true scheduler: everything is answered, warm traffic stays off the scheduler, no slot is
// used twice, and in the end nothing is held.
func TestWithTheTrueScheduler(t *testing.T) {
	for name, every := range map[string]uint64{"all arrives": 0, "one message in seven is lost": 7} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBrain(128 * 20) // room for twenty instances
				var n, sent atomic.Uint64
				b.lost = func() bool { sent.Add(1); return every != 0 && n.Add(1)%every == 0 }
				ds := []*Dispatcher{b.open(t, 11), b.open(t, 12)}
				vs := []*starling.Version{version(1), version(2), version(3)}
				for _, v := range vs {
					b.versions[v.ID] = v
				}
				for _, d := range ds {
					d.Open(context.Background())
				}
				const callers, each = 40, 50
				var wg sync.WaitGroup
				var failed, cold atomic.Int64
				for c := range callers {
					wg.Go(func() {
						for range each {
							p, err := call(ds[c%2], vs[c%3])
							if err != nil {
								t.Error(err)
								failed.Add(1)
							}
							if p.Cold() {
								cold.Add(1)
							}
						}
					})
				}
				wg.Wait()
				if failed.Load() != 0 || b.ran.Load() != callers*each {
					t.Errorf("%d failed, %d ran of %d", failed.Load(), b.ran.Load(), callers*each)
				}
				if cold.Load() == 0 {
					t.Error("no call told of its cold start")
				}
				if every == 0 && (b.over.Load() != 0 || sent.Load() > callers*each) {
					t.Errorf("%d calls met a busy slot; %d messages for %d calls", b.over.Load(), sent.Load(), callers*each)
				}
				t.Logf("%d messages, %d cold, %d busy slots", sent.Load(), cold.Load(), b.over.Load())
				time.Sleep(3 * time.Second)
				for _, d := range ds {
					if !d.keeper.parked.Load() {
						t.Error("a frontend still holds something")
					}
					d.Close()
				}
				close(b.done)
			})
		})
	}
}
