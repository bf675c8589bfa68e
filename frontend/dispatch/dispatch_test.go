package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched/flow"
)

// A world is a small true cluster without a network: a map, partitions that grant slots of instances they
// start, and a host that checks that no slot is used twice.
type world struct {
	mu       sync.Mutex
	d        *Dispatcher
	m        *partmap.Map
	changed  chan struct{}
	drop     func(to wire.Address, m wire.Message) bool // true loses the message
	answer   func(a *wire.Acquire) wire.Message         // non-nil answers instead of the partition
	max      int                                        // instances
	slots    uint16
	seq      uint64
	free     []starling.Lease // granted by nobody
	granted  map[starling.LeaseID]*granted
	queue    []*wire.Acquire
	seen     []wire.Message
	instance map[starling.InstanceID]*atomic.Int32
	run      func(l *starling.Lease, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error)
	ran      atomic.Int64
	over     atomic.Int64
}

const self, owner = starling.NodeID(1), starling.NodeID(2)

func newWorld(max int) *world {
	return &world{max: max, slots: 1, changed: make(chan struct{}), granted: map[starling.LeaseID]*granted{},
		instance: map[starling.InstanceID]*atomic.Int32{},
		m:        &partmap.Map{Partitions: []partmap.Partition{{ID: 7, Epoch: 1, Owner: owner}}}}
}

func (w *world) open(t testing.TB) *Dispatcher {
	w.d = New(Config{Node: self, Post: w, Topology: w, Remote: w, Log: slog.New(slog.DiscardHandler)})
	w.d.Open(context.Background())
	t.Cleanup(func() { w.d.Close() })
	return w.d
}

func (w *world) Self() starling.NodeID { return self }

func (w *world) Map() *partmap.Map { w.mu.Lock(); defer w.mu.Unlock(); return w.m }

func (w *world) Changed() <-chan struct{} { w.mu.Lock(); defer w.mu.Unlock(); return w.changed }

// setOwner moves the partition to another node, with all that was granted forgotten.
func (w *world) setOwner(n starling.NodeID, e starling.Epoch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.m = &partmap.Map{Partitions: []partmap.Partition{{ID: 7, Epoch: e, Owner: n}}}
	w.free, w.queue, w.granted = nil, nil, map[starling.LeaseID]*granted{}
	close(w.changed)
	w.changed = make(chan struct{})
}

// Send is the partition: it decides at once and answers on the same goroutine.
func (w *world) Send(to wire.Address, m wire.Message) {
	w.mu.Lock()
	if w.drop != nil && w.drop(to, m) {
		w.mu.Unlock()
		return
	}
	w.seen = append(w.seen, m)
	var out []wire.Message
	switch m := m.(type) {
	case *wire.Acquire:
		if w.answer != nil {
			if r := w.answer(m); r != nil {
				out = append(out, r)
				break
			}
		}
		if p := w.m.Partitions[0]; to.Node != p.Owner || m.Epoch != p.Epoch {
			out = append(out, &wire.Reject{Call: m.Call, Partition: 7, Reject: starling.Moved})
			break
		}
		if known := slices.ContainsFunc(w.queue, func(a *wire.Acquire) bool { return a.Call == m.Call }); !known {
			w.queue = append(w.queue, m)
		}
	case *wire.Cancel:
		for i, a := range w.queue {
			if a.Call == m.Call {
				w.queue = append(w.queue[:i], w.queue[i+1:]...)
				break
			}
		}
	case *wire.Release:
		for _, id := range m.Leases {
			if l, ok := w.granted[id]; ok {
				delete(w.granted, id)
				w.free = append(w.free, l.Lease)
			}
		}
	case *wire.Renew:
		r := &wire.Renewed{Partition: 7, Epoch: m.Epoch, TTL: starling.LeaseTTL}
		for _, id := range m.Leases {
			if l, ok := w.granted[id]; ok {
				l.ends = time.Now().Add(starling.LeaseTTL)
				r.Leases = append(r.Leases, id)
			}
		}
		out = append(out, r)
	}
	out = append(out, w.grant()...)
	d := w.d
	w.mu.Unlock()
	d.Receive(to.Node, out)
}

type granted struct {
	starling.Lease
	ends time.Time
}

func (w *world) grant() (out []wire.Message) {
	for id, l := range w.granted {
		if time.Now().After(l.ends) {
			delete(w.granted, id)
			w.free = append(w.free, l.Lease)
		}
	}
	for len(w.queue) > 0 {
		if len(w.free) == 0 {
			if len(w.granted) >= w.max {
				return out
			}
			w.seq++
			w.free = append(w.free, starling.Lease{Instance: starling.InstanceID{Partition: 7, Seq: w.seq}})
		}
		l := w.free[0]
		w.free = w.free[1:]
		a := w.queue[0]
		w.queue = w.queue[1:]
		w.seq++
		l = starling.Lease{ID: starling.LeaseID(w.seq), Partition: 7, Epoch: a.Epoch, Version: a.Version, Instance: l.Instance,
			Host: 9, Slots: w.slots, TTL: starling.LeaseTTL, Phases: starling.Phases{Start: time.Millisecond}}
		w.granted[l.ID] = &granted{l, time.Now().Add(l.TTL)}
		out = append(out, &wire.Grant{Call: a.Call, Lease: l})
	}
	return out
}

// Invoke is the host.
func (w *world) Invoke(ctx context.Context, l *starling.Lease, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error) {
	w.mu.Lock()
	busy := w.instance[l.Instance]
	if busy == nil {
		busy = new(atomic.Int32)
		w.instance[l.Instance] = busy
	}
	run := w.run
	w.mu.Unlock()
	if busy.Add(1) > int32(w.slots) {
		w.over.Add(1)
	}
	defer busy.Add(-1)
	if err := ctx.Err(); err != nil {
		return starling.Outcome{}, err
	}
	w.ran.Add(1)
	if run != nil {
		return run(l, inv, sink)
	}
	return starling.Outcome{}, nil
}

// count tells how many messages of m's type were sent so far.
func (w *world) count(k wire.Kind) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.seen {
		if m.Kind() == k {
			n++
		}
	}
	return n
}

func (w *world) held() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.granted) }

type nothing struct{}

func (nothing) Start(string, bool)          {}
func (nothing) Write(p []byte) (int, error) { return len(p), nil }

func version(id starling.VersionID) *starling.Version {
	return &starling.Version{ID: id, Function: starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", id))},
		Config: starling.Config{Runtime: starling.Python311}.WithDefaults()}
}

func call(d *Dispatcher, v *starling.Version) (starling.Phases, error) {
	_, p, err := d.Invoke(context.Background(), v, &starling.Invocation{}, nothing{})
	return p, err
}

func TestWarmCallsAskNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		d := w.open(t)
		v := version(5)
		p, err := call(d, v)
		if err != nil || !p.Cold() {
			t.Fatalf("the first call: %v, %v; it waited for an instance", p, err)
		}
		for range 100 {
			if p, err := call(d, v); err != nil || p.Cold() {
				t.Fatalf("a warm call: %v, %v", p, err)
			}
		}
		if n := w.count(wire.KindAcquire); n != 1 {
			t.Fatalf("%d acquires for one call at a time", n)
		}
	})
}

// A node is told to stop by a signal that ends the context of its opening; calls go on until Close.
func TestCallsOutliveTheContextOfOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		ctx, stop := context.WithCancel(context.Background())
		w.d = New(Config{Node: self, Post: w, Topology: w, Remote: w, Log: slog.New(slog.DiscardHandler)})
		w.d.Open(ctx)
		defer w.d.Close()
		if _, err := call(w.d, version(5)); err != nil {
			t.Fatal(err)
		}
		stop()
		time.Sleep(50 * time.Millisecond) // virtual: the slot goes back meanwhile
		if _, err := call(w.d, version(5)); err != nil || w.count(wire.KindRelease) != 1 {
			t.Fatalf("after the signal: %v, %d releases", err, w.count(wire.KindRelease))
		}
	})
}

// Leases on a host that is gone are not used again, whether the manager says so or a call finds out.
func TestLeasesOnALostHostEnd(t *testing.T) {
	for _, told := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(10)
			var gone atomic.Bool
			w.d = New(Config{Node: self, Post: w, Topology: w, Remote: w, Alive: func(starling.NodeID) bool { return !told || !gone.Load() }, Log: slog.New(slog.DiscardHandler)})
			w.d.Open(t.Context())
			defer w.d.Close()
			if _, err := call(w.d, version(5)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			gone.Store(true)
			if told {
				w.mu.Lock()
				close(w.changed)
				w.changed = make(chan struct{})
				w.mu.Unlock()
			} else {
				w.mu.Lock()
				w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
					return starling.Outcome{}, starling.Errorf(starling.Unavailable, "invoke", "lost")
				}
				w.mu.Unlock()
				if _, _, err := w.d.Invoke(t.Context(), version(6), &starling.Invocation{}, nothing{}); starling.ReasonOf(err) != "HostLost" {
					t.Fatalf("got %v, want HostLost", err)
				}
				w.mu.Lock()
				w.run = nil
				w.mu.Unlock()
			}
			synctest.Wait()
			before := w.count(wire.KindAcquire)
			if _, err := call(w.d, version(5)); err != nil || w.count(wire.KindAcquire) != before+1 {
				t.Fatalf("told %v: %v, %d acquires: the old lease was used", told, err, w.count(wire.KindAcquire)-before)
			}
		})
	}
}

func TestIdleSlotsAreReturnedAndTheKeeperRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		d := w.open(t)
		if _, err := call(d, version(5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Millisecond)
		if w.held() != 1 {
			t.Fatal("returned before it was idle for 20 ms")
		}
		time.Sleep(20 * time.Millisecond)
		if w.held() != 0 {
			t.Fatal("an idle slot is still held after 35 ms")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !d.keeper.parked.Load() {
			t.Fatal("the keeper runs although nothing is held")
		}
		if _, err := call(d, version(5)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		if w.held() != 0 {
			t.Fatal("the keeper did not wake")
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		arrivals := 0
		for _, m := range w.seen {
			var ds []wire.Demand
			switch m := m.(type) {
			case *wire.Release:
				ds = m.Demand
			case *wire.Renew:
				ds = m.Demand
			}
			for _, q := range ds {
				arrivals += int(q.Arrivals)
			}
		}
		if arrivals != 2 {
			t.Fatalf("reported %d arrivals of 2", arrivals)
		}
	})
}

func TestLeasesAreRenewedWhileTheyWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			time.Sleep(5 * time.Second)
			return starling.Outcome{}, nil
		}
		d := w.open(t)
		for range 2 {
			if _, err := call(d, version(5)); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.count(wire.KindAcquire); n != 1 {
			t.Fatalf("%d acquires: the lease did not live through the first call", n)
		}
		if n := w.count(wire.KindRenew); n < 25 {
			t.Fatalf("%d renewals in 10 s", n)
		}
	})
}

func TestLeaseWithoutRenewalEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		w.drop = func(_ wire.Address, m wire.Message) bool { return m.Kind() == wire.KindRenew }
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			time.Sleep(2 * time.Second)
			return starling.Outcome{}, nil
		}
		d := w.open(t)
		for range 2 {
			if _, err := call(d, version(5)); err != nil {
				t.Fatal(err)
			}
		}
		if n := w.count(wire.KindAcquire); n != 2 {
			t.Fatalf("%d acquires: a lease was used after its end", n)
		}
	})
}

// atWork opens a dispatcher with one call at work, which end lets go on to its end.
func (w *world) atWork(t *testing.T) (d *Dispatcher, end func()) {
	block, done := make(chan struct{}), make(chan error)
	w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
		<-block
		return starling.Outcome{}, nil
	}
	d = w.open(t)
	go func() { _, err := call(d, version(5)); done <- err }()
	synctest.Wait()
	return d, func() {
		t.Helper()
		close(block)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestLeaseNotNamedInARenewalIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		d, end := w.atWork(t)
		w.mu.Lock()
		clear(w.granted)
		w.mu.Unlock()
		time.Sleep(400 * time.Millisecond) // one renewal
		end()
		if _, err := call(d, version(5)); err != nil {
			t.Fatal(err)
		}
		if n := w.count(wire.KindAcquire); n != 2 {
			t.Fatalf("%d acquires: a lease that the partition forgot was used again", n)
		}
	})
}

func TestRecalledLeaseGoesBackWhenItsCallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		d, end := w.atWork(t)
		w.mu.Lock()
		recall := &wire.Recall{Partition: 7, Epoch: 1}
		for id := range w.granted {
			recall.Leases = append(recall.Leases, id)
		}
		w.mu.Unlock()
		d.Receive(owner, []wire.Message{recall})
		synctest.Wait()
		if w.held() != 1 {
			t.Fatal("returned while a call is at work")
		}
		end()
		synctest.Wait() // no time passes
		if w.held() != 0 {
			t.Fatal("not returned at once when its call ended")
		}
		if _, err := call(d, version(5)); err != nil || w.count(wire.KindAcquire) != 2 {
			t.Fatalf("a recalled lease was used again (%v)", err)
		}
	})
}

func TestLostMessagesCostTimeAndNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		lost := 0
		w.drop = func(_ wire.Address, m wire.Message) bool {
			if m.Kind() == wire.KindAcquire && lost < 3 {
				lost++
				return true
			}
			return false
		}
		d := w.open(t)
		began := time.Now()
		if _, err := call(d, version(5)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); lost != 3 || took < 250*time.Millisecond || took > 2500*time.Millisecond {
			t.Fatalf("took %v with %d lost", took, lost)
		}
	})
}

func TestAGrantThatComesTwiceIsOneLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		d := w.open(t)
		if _, err := call(d, version(5)); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		var g *wire.Grant
		for _, l := range w.granted {
			g = &wire.Grant{Call: 64, Lease: l.Lease}
		}
		w.mu.Unlock()
		d.Receive(owner, []wire.Message{g})
		time.Sleep(100 * time.Millisecond) // returned
		d.Receive(owner, []wire.Message{g})
		if n := d.cache.Live(); n != 0 {
			t.Fatalf("%d leases: a late copy of a grant brought back what was returned", n)
		}
	})
}

func TestNewOwnerIsAskedAtOnceAndOldLeasesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		d := w.open(t)
		if _, err := call(d, version(5)); err != nil { // holds a lease of epoch 1
			t.Fatal(err)
		}
		w.mu.Lock()
		w.drop = func(to wire.Address, m wire.Message) bool { return to.Node == owner } // the owner dies
		w.mu.Unlock()
		done := make(chan error)
		began := time.Now()
		go func() { _, err := call(d, version(6)); done <- err }()
		time.Sleep(40 * time.Millisecond)
		w.setOwner(3, 2)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Fatalf("the call waited %v although the map changed after 40 ms", took)
		}
		w.run = func(l *starling.Lease, _ *starling.Invocation, _ starling.Sink) (starling.Outcome, error) {
			if l.Epoch != 2 {
				t.Errorf("used a lease of epoch %d", l.Epoch)
			}
			return starling.Outcome{}, nil
		}
		if _, err := call(d, version(5)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCallThatDidNotStartIsPlacedAgain(t *testing.T) {
	for name, refusal := range map[string]error{
		"moved":       starling.Errorf(starling.Moved, "invoke", "unknown instance"),
		"busy":        starling.Errorf(starling.Overloaded, "invoke", "slots busy"),
		"unreachable": starling.Errorf(starling.Unavailable, "invoke", "no route").With(ReasonNotStarted),
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(100)
			refused := 0
			w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
				if refused < 5 {
					refused++
					return starling.Outcome{}, refusal
				}
				return starling.Outcome{}, nil
			}
			if _, err := call(w.open(t), version(5)); err != nil || refused != 5 {
				t.Fatalf("%s: %v after %d refusals", name, err, refused)
			}
		})
	}
}

// TestACrowdedHostHasTheLastWord: a call that its host refuses for its account's share is answered at once, with a pause,
// and its lease serves the next one.
func TestACrowdedHostHasTheLastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(100)
		full := true
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			if full {
				return starling.Outcome{}, starling.Errorf(starling.Overloaded, "", "crowded").With(flow.ReasonOverload)
			}
			return starling.Outcome{}, nil
		}
		d := w.open(t)
		var e *starling.Error
		_, err := call(d, version(5))
		if !errors.As(err, &e) || e.Kind != starling.Overloaded || e.Reason != flow.ReasonOverload || e.After < time.Second || w.ran.Load() != 1 {
			t.Fatalf("%v after %d attempts", err, w.ran.Load())
		}
		full = false
		if _, err := call(d, version(5)); err != nil || w.count(wire.KindAcquire) != 1 {
			t.Errorf("%v after %d acquires", err, w.count(wire.KindAcquire))
		}
	})
}

func TestCallThatMayHaveRunIsNeverRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			return starling.Outcome{}, starling.Errorf(starling.Unavailable, "invoke", "connection lost")
		}
		_, err := call(w.open(t), version(5))
		if starling.KindOf(err) != starling.Unavailable || starling.ReasonOf(err) != "HostLost" || w.ran.Load() != 1 {
			t.Fatalf("%v after %d runs", err, w.ran.Load())
		}
	})
}

func TestRefusalReachesTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		w.answer = func(a *wire.Acquire) wire.Message {
			return &wire.Reject{Call: a.Call, Partition: 7, Reject: starling.Overloaded, Reason: "ConcurrencyLimit", Message: "no", After: time.Second}
		}
		_, err := call(w.open(t), version(5))
		var e *starling.Error
		if !errors.As(err, &e) || e.Kind != starling.Overloaded || e.Reason != "ConcurrencyLimit" || e.After != time.Second {
			t.Fatalf("got %v", err)
		}
	})
}

func TestWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(0)
		d := w.open(t)
		began := time.Now()
		if _, err := call(d, version(5)); starling.ReasonOf(err) != "QueueTimeout" {
			t.Fatalf("got %v", err)
		}
		if took := time.Since(began); took < starling.QueueAgeMax || took > starling.QueueAgeMax+time.Second {
			t.Fatalf("waited %v", took)
		}
		inv := &starling.Invocation{Deadline: time.Now().Add(time.Second)}
		if _, _, err := d.Invoke(context.Background(), version(5), inv, nothing{}); starling.KindOf(err) != starling.Timeout {
			t.Fatalf("past the caller's deadline: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		if _, _, err := d.Invoke(ctx, version(5), &starling.Invocation{}, nothing{}); starling.ReasonOf(err) != "CallerGone" {
			t.Fatalf("caller gone: %v", err)
		}
		time.Sleep(time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.queue) != 0 {
			t.Fatalf("%d acquires were left in the partition's queue", len(w.queue))
		}
	})
}

func TestWaitingDoesNotShortenTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(10)
		w.drop = func(_ wire.Address, m wire.Message) bool {
			return time.Now().Nanosecond() < 500_000_000 && m.Kind() == wire.KindAcquire
		}
		var left time.Duration
		w.run = func(_ *starling.Lease, inv *starling.Invocation, _ starling.Sink) (starling.Outcome, error) {
			left = time.Until(inv.Deadline)
			return starling.Outcome{}, nil
		}
		v := version(5)
		if _, err := call(w.open(t), v); err != nil || left != v.Timeout() {
			t.Fatalf("%v; %v of %v were left", err, left, v.Timeout())
		}
	})
}

func TestCallThatRunsOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			time.Sleep(time.Second)
			return starling.Outcome{}, nil
		}
		d := w.open(t)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		began := time.Now()
		if _, _, err := d.Invoke(ctx, version(5), &starling.Invocation{}, nothing{}); err != nil || time.Since(began) != time.Second {
			t.Fatalf("%v after %v: its slot was given to others while it ran", err, time.Since(began))
		}
	})
}

func TestCloseAnswersWhoWaitsAndReturnsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1)
		block := make(chan struct{})
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			<-block
			return starling.Outcome{}, nil
		}
		d := w.open(t)
		first, second := make(chan error), make(chan error)
		go func() { _, err := call(d, version(5)); first <- err }()
		synctest.Wait()
		go func() { _, err := call(d, version(5)); second <- err }()
		synctest.Wait()
		go d.Close()
		if err := <-second; starling.KindOf(err) != starling.Unavailable {
			t.Fatalf("a waiting call at close: %v", err)
		}
		close(block)
		if err := <-first; err != nil {
			t.Fatalf("a call at work at close: %v", err)
		}
		if _, err := call(d, version(6)); starling.KindOf(err) != starling.Unavailable {
			t.Fatalf("a call after close: %v", err)
		}
	})
}

// Ten thousand callers of functions with few instances: each call gets one answer, no slot is used twice.
func TestTenThousandCallersShareFewSlots(t *testing.T) {
	for _, slots := range []uint16{1, 4} {
		w := newWorld(50)
		w.slots = slots
		d := w.open(t)
		var wg sync.WaitGroup
		var failed atomic.Int64
		for i := range 10_000 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if _, err := call(d, version(starling.VersionID(1+i%5))); err != nil {
					failed.Add(1)
				}
			}()
		}
		wg.Wait()
		if failed.Load() != 0 || w.ran.Load() != 10_000 || w.over.Load() != 0 {
			t.Fatalf("%d failed, %d ran, %d over the slots", failed.Load(), w.ran.Load(), w.over.Load())
		}
	}
}

// Messages are lost, owners change, hosts refuse: still one answer each.
func TestEveryCallIsAnsweredUnderFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(40)
		var n atomic.Uint64
		w.drop = func(wire.Address, wire.Message) bool { return n.Add(1)%4 == 0 }
		var turn atomic.Uint64
		w.run = func(*starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
			k := turn.Add(1)
			time.Sleep(time.Duration(k%7) * time.Millisecond)
			if k%11 == 0 {
				return starling.Outcome{}, starling.Errorf(starling.Moved, "invoke", "gone")
			}
			if k%17 == 0 {
				return starling.Outcome{Status: starling.Unhandled}, nil
			}
			return starling.Outcome{}, nil
		}
		d := w.open(t)
		var wg sync.WaitGroup
		var answered, failed atomic.Int64
		for c := range 200 {
			wg.Go(func() {
				for i := range 20 {
					if _, err := call(d, version(starling.VersionID(1+(c+i)%9))); err != nil {
						t.Log(err)
						failed.Add(1)
					}
					answered.Add(1)
				}
			})
		}
		for e := starling.Epoch(2); e < 8; e++ {
			time.Sleep(300 * time.Millisecond)
			w.setOwner(owner+starling.NodeID(e%2), e)
		}
		wg.Wait()
		if answered.Load() != 4000 || failed.Load() != 0 {
			t.Fatalf("%d answered, %d of them with an error", answered.Load(), failed.Load())
		}
	})
}

func BenchmarkHit(b *testing.B) {
	w := newWorld(1 << 20)
	w.d = New(Config{Node: self, Post: w, Topology: w, Remote: direct{}, Log: slog.New(slog.DiscardHandler)})
	w.d.Open(context.Background())
	defer w.d.Close()
	v, inv := version(5), &starling.Invocation{}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		inv.Deadline = time.Time{}
		if _, _, err := w.d.Invoke(ctx, v, inv, nothing{}); err != nil {
			b.Fatal(err)
		}
	}
}

type direct struct{}

func (direct) Invoke(context.Context, *starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error) {
	return starling.Outcome{}, nil
}

func TestAHitAllocatesNothing(t *testing.T) {
	w := newWorld(10)
	w.d = New(Config{Node: self, Post: w, Topology: w, Remote: direct{}, Log: slog.New(slog.DiscardHandler)})
	w.d.Open(context.Background())
	defer w.d.Close()
	v, inv := version(5), &starling.Invocation{}
	n := testing.AllocsPerRun(5000, func() {
		inv.Deadline = time.Time{}
		if _, _, err := w.d.Invoke(context.Background(), v, inv, nothing{}); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Fatalf("%v allocations a call", n)
	}
}
