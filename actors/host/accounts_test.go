package host_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/host"
	"starling/actors/wire"
	"starling/sched/flow"
)

// TestALoudAccountIsHeldOnACrowdedHost: while more threads want to run than there are processors for, of the account with
// far more calls at work than others only its share begins, the rest is refused for what it is, and its next instance
// waits; a quiet account notices nothing. When the crowd is gone everybody is let in.
func TestALoudAccountIsHeldOnACrowdedHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var crowd atomic.Int64
		r := newRig(t, func(c *host.Config) {
			c.Crowd = func() float64 { return float64(crowd.Load()) }
			c.MemoryMiB, c.InstanceMax = 8192, 64
		})
		defer r.close(t)
		const calls = 24
		r.Receive(1, []wire.Message{startMsg(1, slow)})
		for n := range uint64(calls) {
			r.Receive(1, []wire.Message{startMsg(10+n, loud)})
		}
		time.Sleep(time.Second)
		if n := len(r.post.take()); n != 1+calls {
			t.Fatalf("%d instances were started", n)
		}
		var began, refused int
		var mu sync.Mutex
		burst := func() {
			var wg sync.WaitGroup
			for n := range uint64(calls) {
				wg.Go(func() {
					_, err := r.Invoke(t.Context(), lease(10+n, 10+n, loud), invocation(loud, "x"), &sink{})
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						began++
					case starling.KindOf(err) == starling.Overloaded && starling.ReasonOf(err) == flow.ReasonOverload:
						refused++
					default:
						t.Error(err)
					}
				})
			}
			time.Sleep(50 * time.Millisecond)
			if _, err := r.Invoke(t.Context(), lease(1, 1, slow), invocation(slow, "q"), &sink{}); err != nil {
				t.Errorf("the quiet account: %v", err)
			}
			wg.Wait()
		}
		burst()
		if began != calls {
			t.Fatalf("%d of %d calls began on a host with time for all", began, calls)
		}
		crowd.Store(8)
		for range 3 {
			burst()
		}
		began, refused = 0, 0
		r.Receive(1, []wire.Message{startMsg(100, loud)})
		burst()
		if began == 0 || began > 4 || began+refused != calls {
			t.Errorf("%d calls began and %d were refused on a crowded host", began, refused)
		}
		crowd.Store(0)
		time.Sleep(2 * time.Second)
		if len(r.post.take()) != 1 {
			t.Error("the instance that waited did not start")
		}
		began = 0
		burst()
		if began != calls {
			t.Errorf("%d of %d calls began after the crowd was gone", began, calls)
		}
	})
}

// TestStartsOfOneAccountTakeTurnsBesideOthers: an account that has the host for itself starts as many instances at once as
// are asked for; where another one calls it starts half as many as there are processors, before there is any crowd.
func TestStartsOfOneAccountTakeTurnsBesideOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *host.Config) { c.MemoryMiB, c.InstanceMax, c.Processors = 8192, 64, 4 })
		defer r.close(t)
		r.driver.AttachTime = 100 * time.Millisecond
		start := func(from uint64) (after time.Duration) { // until the last of eight is ready
			r.post.take()
			begun := time.Now()
			for n := range uint64(8) {
				r.Receive(1, []wire.Message{startMsg(from+n, loud)})
			}
			for all := 0; all < 8; all += len(r.post.take()) {
				time.Sleep(10 * time.Millisecond)
			}
			return time.Since(begun)
		}
		r.Receive(1, []wire.Message{startMsg(1, slow)})
		time.Sleep(time.Second)
		if took := start(10); took > 150*time.Millisecond {
			t.Errorf("eight starts took %v where nobody else called", took)
		}
		stop := r.keepCalling(t)
		time.Sleep(time.Second)
		if took := start(20); took < 400*time.Millisecond || took > 800*time.Millisecond {
			t.Errorf("eight starts, two at once, took %v beside another account", took)
		}
		stop()
	})
}

// keepCalling calls the quiet account's function, one call after the other, until the returned function is called.
func (r *rig) keepCalling(t *testing.T) (stop func()) {
	ended := make(chan struct{})
	var calls sync.WaitGroup
	calls.Go(func() {
		for id := uint64(1); ; id++ {
			select {
			case <-ended:
				return
			default:
			}
			if _, err := r.Invoke(t.Context(), lease(id, 1, slow), invocation(slow, "q"), &sink{}); err != nil {
				t.Errorf("the quiet account: %v", err)
				return
			}
		}
	})
	return func() {
		close(ended)
		calls.Wait()
	}
}

// newCrowdRig has two processors, as many threads as crowd says that want each, and sandboxes that take so long to make.
func newCrowdRig(t *testing.T, boot time.Duration) (r *rig, crowd *atomic.Int64) {
	crowd = new(atomic.Int64)
	return newSlowRig(t, boot, func(c *host.Config) {
		c.Crowd = func() float64 { return float64(crowd.Load()) }
		c.MemoryMiB, c.InstanceMax, c.Processors = 8192, 64, 2
	}), crowd
}

// begin asks for n instances of the loud account's function, numbered from first, and returns how many are ready a while later.
func (r *rig) begin(first, n uint64, later time.Duration) int {
	r.post.take()
	for i := range n {
		r.Receive(1, []wire.Message{startMsg(first+i, loud)})
	}
	time.Sleep(later)
	return len(r.post.take())
}

// TestStartsOfOneAccountRestOnACrowdedHost: where processors are queued for and another account calls, an account that has
// just started an instance leaves the machine to calls for several times as long; where they are not, starts follow each other.
func TestStartsOfOneAccountRestOnACrowdedHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, crowd := newCrowdRig(t, 5*time.Millisecond)
		defer r.close(t)
		r.driver.AttachTime = 100 * time.Millisecond
		r.Receive(1, []wire.Message{startMsg(1, slow)})
		time.Sleep(time.Second)
		stop := r.keepCalling(t)
		time.Sleep(time.Second)
		if n := r.begin(10, 4, 500*time.Millisecond); n != 4 {
			t.Errorf("%d of four starts of 100 ms in half a second on a host with time", n)
		}
		crowd.Store(8)
		time.Sleep(time.Second)
		if n := r.begin(20, 4, 500*time.Millisecond); n != 1 {
			t.Errorf("%d starts in half a second on a crowded host, want the first", n)
		}
		if time.Sleep(4 * time.Second); len(r.post.take()) != 3 {
			t.Error("those that waited did not start in four seconds")
		}
		stop()
	})
}

// TestAStartCountsWithItsSandbox: a start that finds a warm sandbox is over in a moment, but another sandbox has to be made for it.
// Where somebody else calls, the account's next start waits as long as that takes, on a crowded host several times as long,
// and the pool leaves the machine to calls meanwhile.
func TestAStartCountsWithItsSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, crowd := newCrowdRig(t, 200*time.Millisecond)
		defer r.close(t)
		if err := r.pool.Resize(starling.Python311, 4); err != nil {
			t.Fatal(err)
		}
		r.Receive(1, []wire.Message{startMsg(1, slow)})
		time.Sleep(time.Second)
		stop := r.keepCalling(t)
		time.Sleep(3*time.Second + flow.LookTime/2) // a look before the pool refills, not at the same instant
		if n := r.begin(10, 3, 300*time.Millisecond); n != 2 {
			t.Errorf("%d starts in 300 ms on a host with time, want the first and one when its sandbox could have been made", n)
		}
		if n := r.pool.Stock()[starling.Python311]; n != 2 {
			t.Errorf("%d warm sandboxes while the account rests, want the two that are left", n)
		}
		time.Sleep(3 * time.Second)
		if n := r.pool.Stock()[starling.Python311]; n != 4 {
			t.Errorf("%d warm sandboxes a while later, want all four", n)
		}
		crowd.Store(8)
		time.Sleep(time.Second)
		if n := r.begin(20, 3, 1300*time.Millisecond); n != 1 {
			t.Errorf("%d starts in 1.3 s on a crowded host, want the first", n)
		}
		if time.Sleep(400 * time.Millisecond); len(r.post.take()) != 1 {
			t.Error("the second did not start after seven times the cost of a sandbox")
		}
		stop()
	})
}

// TestWhoCallsAtTheDoorCounts: where the calls of another account pass this node on their way to other hosts, an account has
// not the machine for itself, though nobody else has an instance here: it starts in turn.
func TestWhoCallsAtTheDoorCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *host.Config) { c.MemoryMiB, c.InstanceMax, c.Processors = 8192, 64, 2 })
		defer r.close(t)
		r.driver.AttachTime = 100 * time.Millisecond
		r.Callers([]starling.AccountID{"loud"})
		if n := r.begin(10, 4, 150*time.Millisecond); n != 4 {
			t.Errorf("%d of four starts of 100 ms in 150 beside nobody", n)
		}
		time.Sleep(2 * time.Second)
		r.Callers([]starling.AccountID{"loud", "acme"})
		time.Sleep(100 * time.Millisecond)
		if n := r.begin(20, 4, 150*time.Millisecond); n != 1 {
			t.Errorf("%d starts at once while another account calls at the door, want one", n)
		}
	})
}
