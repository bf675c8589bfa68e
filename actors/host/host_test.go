package host_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/host"
	"starling/actors/wire"
	store "starling/store/code"
	"starling/vmpool"
	"starling/vmpool/fake"
)

// catalog is the catalog of one account with one version for each handler.
type catalog struct {
	versions map[starling.VersionID]*starling.Version
}

func (c catalog) Version(_ context.Context, id starling.VersionID) (*starling.Version, error) {
	if v := c.versions[id]; v != nil {
		return v, nil
	}
	return nil, starling.Errorf(starling.NotFound, "find version", "no version %d", id)
}

func (catalog) Resolve(context.Context, starling.FunctionRef, starling.VersionNumber) (*starling.Version, error) {
	panic("a host resolves nothing")
}
func (catalog) Key(context.Context, [32]byte) (starling.Key, error) { panic("a host knows no keys") }
func (catalog) Account(context.Context, starling.AccountID) (starling.Account, error) {
	panic("a host knows no accounts")
}

// code counts directories that are in use.
type code struct {
	mu   sync.Mutex
	held int
	fail error
	slow chan struct{} // what is given back is kept until it is closed; nil: not at all
}

func (c *code) Take(context.Context, *starling.Version) (store.Taken, func(), error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return store.Taken{}, nil, c.fail
	}
	c.held++
	return store.Taken{Place: store.Place{Dir: "/nowhere"}}, c.release, nil
}

func (c *code) release() {
	if c.slow != nil {
		<-c.slow
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held--
}

// post keeps what a host sends.
type post struct {
	mu   sync.Mutex
	sent []sent
}

type sent struct {
	to wire.Address
	m  wire.Message
}

func (p *post) Send(to wire.Address, m wire.Message) {
	p.mu.Lock()
	p.sent = append(p.sent, sent{to, m})
	p.mu.Unlock()
}
func (p *post) Self() starling.NodeID { return 9 }

// take returns the messages of type T since the last take of all, without reports.
func (p *post) take() []sent {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []sent
	for _, s := range p.sent {
		if _, report := s.m.(*wire.HostReport); !report {
			out = append(out, s)
		}
	}
	p.sent = nil
	return out
}

func (p *post) lastReport() *wire.HostReport {
	p.mu.Lock()
	defer p.mu.Unlock()
	var last *wire.HostReport
	for _, s := range p.sent {
		if r, ok := s.m.(*wire.HostReport); ok {
			last = r
		}
	}
	return last
}

// rig is a host over a fake driver.
type rig struct {
	*host.Host
	driver *fake.Driver
	pool   *vmpool.Pool
	post   *post
	code   *code
}

const (
	echo, slow, boom, wide, gone, big, loud, noHandler = 1, 2, 3, 4, 5, 6, 7, 8
)

func newRig(t testing.TB, change ...func(*host.Config)) *rig {
	t.Helper()
	return newSlowRig(t, 5*time.Millisecond, change...)
}

// newSlowRig is newRig with sandboxes that take so long to make.
func newSlowRig(t testing.TB, boot time.Duration, change ...func(*host.Config)) *rig {
	t.Helper()
	r := &rig{post: &post{}, code: &code{}}
	r.driver = &fake.Driver{BootTime: boot, Handlers: map[string]fake.Handler{
		"main.echo": fake.Echo,
		"main.slow": func(c *fake.Call) { c.Sleep(200 * time.Millisecond); c.Answer("text/plain", []byte("slow")) },
		"main.boom": func(c *fake.Call) { c.Exit(3) },
		"main.hang": func(c *fake.Call) { c.Hang() },
		"main.big": func(c *fake.Call) {
			c.Head("application/octet-stream", true, 0)
			part := bytes.Repeat([]byte{7}, 64<<10)
			for range 32 {
				if c.Chunk(part) != nil {
					return
				}
			}
			c.End()
		},
		"wide": func(c *fake.Call) { c.Sleep(100 * time.Millisecond); c.Answer("application/json", c.Payload) },
	}}
	handlers := map[starling.VersionID]string{echo: "main.echo", slow: "main.slow", boom: "main.boom", gone: "main.hang", big: "main.big", noHandler: "main.none"}
	versions := map[starling.VersionID]*starling.Version{}
	for id, h := range handlers {
		versions[id] = &starling.Version{ID: id, Function: starling.FunctionRef{Account: "acme", Name: "fn"}, Code: "c0de",
			Config: starling.Config{Runtime: starling.Python311, Handler: h, MemoryMiB: 128, TimeoutMS: 1000}.WithDefaults()}
	}
	versions[loud] = &starling.Version{ID: loud, Function: starling.FunctionRef{Account: "loud", Name: "fn"},
		Config: starling.Config{Runtime: starling.Python311, Handler: "main.slow", MemoryMiB: 128, TimeoutMS: 1000}.WithDefaults()}
	versions[wide] = &starling.Version{ID: wide, Function: starling.FunctionRef{Account: "acme", Name: "wide"},
		Config: starling.Config{Runtime: starling.Provided, Handler: "wide", MemoryMiB: 256, Concurrency: 4}.WithDefaults()}
	r.pool = vmpool.NewPool(vmpool.PoolConfig{Driver: r.driver, Sizes: map[starling.Runtime]int{starling.Python311: 2, starling.Provided: 1}})
	if err := r.pool.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	cfg := host.Config{Node: 9, Pools: map[starling.Isolation]*vmpool.Pool{starling.IsolationProcess: r.pool}, Catalog: catalog{versions}, Code: r.code, Post: r.post, MemoryMiB: 1024, InstanceMax: 6, Crowd: func() float64 { return 0 },
		Schedulers: func() []starling.NodeID { return []starling.NodeID{1, 2} }}
	for _, f := range change {
		f(&cfg)
	}
	r.Host = host.New(cfg)
	if err := r.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) close(t testing.TB) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := r.pool.Close(); err != nil {
		t.Error(err)
	}
	r.code.mu.Lock()
	defer r.code.mu.Unlock()
	if n := r.driver.Alive(); n != 0 || r.code.held != 0 {
		t.Errorf("%d sandboxes and %d code folders are left", n, r.code.held)
	}
}

func instance(seq uint64) starling.InstanceID {
	return starling.InstanceID{Partition: 1, Epoch: 1, Seq: seq}
}

func startMsg(seq uint64, v starling.VersionID) *wire.Start {
	return &wire.Start{Partition: 1, Epoch: 1, Instance: instance(seq), Key: 100, Version: v}
}

func lease(id, seq uint64, v starling.VersionID) *starling.Lease {
	return &starling.Lease{ID: starling.LeaseID(id), Partition: 1, Epoch: 1, Version: v, Instance: instance(seq), Host: 9, Slots: 1, TTL: time.Second}
}

type sink struct {
	content string
	stream  bool
	body    bytes.Buffer
	pause   time.Duration
}

func (s *sink) Start(c string, streaming bool) { s.content, s.stream = c, streaming }
func (s *sink) Write(p []byte) (int, error) {
	time.Sleep(s.pause)
	return s.body.Write(p)
}

func invocation(v starling.VersionID, payload string) *starling.Invocation {
	return &starling.Invocation{ID: starling.RequestID{1, byte(time.Now().UnixNano()), byte(v)}, Version: v, Deadline: time.Now().Add(time.Second), Payload: []byte(payload)}
}

type invoker interface {
	Invoke(context.Context, *starling.Lease, *starling.Invocation, starling.Sink) (starling.Outcome, error)
}

func call(i invoker, l *starling.Lease, payload string) (string, starling.Outcome, error) {
	var s sink
	out, err := i.Invoke(context.Background(), l, invocation(l.Version, payload), &s)
	return s.body.String(), out, err
}

func TestAStartedInstanceServesItsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		r.Receive(1, []wire.Message{startMsg(1, echo)})
		synctest.Wait()
		time.Sleep(20 * time.Millisecond)
		got := r.post.take()
		if len(got) != 1 || got[0].to != (wire.Address{Node: 1, Partition: 1}) {
			t.Fatalf("sent %+v", got)
		}
		if m, ok := got[0].m.(*wire.Started); !ok || m.Instance != instance(1) || m.Host != 9 || m.Init <= 0 {
			t.Fatalf("sent %+v", got[0].m)
		}
		if body, out, err := call(r, lease(1, 1, echo), `"hej"`); err != nil || body != `"hej"` || out.Status != starling.Succeeded || out.Init == 0 {
			t.Fatalf("%q %+v %v", body, out, err)
		}
		r.Receive(1, []wire.Message{startMsg(1, echo)}) // a repeated start gets its answer again
		if got := r.post.take(); len(got) != 1 || got[0].m.(*wire.Started).Instance != instance(1) || r.driver.Made() > 4 {
			t.Fatalf("sent %+v", got)
		}
		if _, _, err := call(r, lease(1, 2, echo), ""); starling.KindOf(err) != starling.Moved {
			t.Fatalf("an unknown instance: %v", err)
		}
		if _, _, err := call(r, lease(1, 1, slow), ""); starling.KindOf(err) != starling.Moved {
			t.Fatalf("another version: %v", err)
		}
		r.Receive(1, []wire.Message{&wire.Stop{Partition: 1, Epoch: 1, Instance: instance(1)}})
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := r.post.take(); len(got) != 1 || got[0].m.(*wire.Exited).Reason != "stopped" {
			t.Fatalf("sent %+v", got)
		}
		r.Receive(1, []wire.Message{startMsg(1, echo)}) // and never lives twice
		if got := r.post.take(); len(got) != 1 || got[0].m.(*wire.Exited).Reason != "stopped" {
			t.Fatalf("sent %+v", got)
		}
	})
}

// An instance that ended by itself may still give its code back when the host closes.
func TestCloseWaitsForTheCodeOfAnEndedInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.code.slow = make(chan struct{})
		r.Receive(1, []wire.Message{startMsg(1, boom)})
		time.Sleep(20 * time.Millisecond)
		if _, out, err := call(r, lease(1, 1, boom), "1"); err != nil || out.ErrorType != starling.ErrExit {
			t.Fatalf("%+v %v", out, err)
		}
		synctest.Wait()
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			r.close(t) // which looks for code that is left
		}()
		synctest.Wait()
		close(r.code.slow)
		<-closed
	})
}

// The cores are wanted when a start begins and when its first call is about to come; a repeated or refused one wants nothing.
func TestCoresAreRousedForStartsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var roused atomic.Int32
		r := newRig(t, func(c *host.Config) { c.InstanceMax, c.Rouse = 1, func() { roused.Add(1) } })
		defer r.close(t)
		wants := func(want int32, when string) {
			t.Helper()
			synctest.Wait()
			if got := roused.Swap(0); got != want {
				t.Errorf("%s: roused %d times, want %d", when, got, want)
			}
		}
		wants(0, "nothing asked")
		r.Receive(1, []wire.Message{startMsg(1, echo)})
		time.Sleep(20 * time.Millisecond)
		wants(2, "a start that succeeds")
		if _, _, err := call(r, lease(1, 1, echo), `"hej"`); err != nil {
			t.Fatal(err)
		}
		r.Receive(1, []wire.Message{startMsg(1, echo)})
		wants(0, "a warm call, and a repeated start")
		r.Receive(1, []wire.Message{startMsg(2, echo)})
		wants(0, "a start that is refused")
	})
}

func TestAFrontendCannotOveruseALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		r.Receive(1, []wire.Message{startMsg(1, wide)})
		time.Sleep(50 * time.Millisecond)
		l := lease(1, 1, wide)
		l.Slots = 3
		other := lease(2, 1, wide)
		other.Slots = 9 // a lie: the instance has four
		var mu sync.Mutex
		kinds := map[starling.Kind]int{}
		var wg sync.WaitGroup
		for n := range 12 {
			wg.Go(func() {
				which := l
				if n >= 6 {
					which = other
				}
				_, _, err := callN(r, which, n)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					kinds[100]++
				} else {
					kinds[starling.KindOf(err)]++
				}
			})
		}
		wg.Wait()
		if kinds[100] != 4 || kinds[starling.Overloaded] != 8 {
			t.Fatalf("got %v", kinds)
		}
	})
}

func callN(i invoker, l *starling.Lease, n int) (string, starling.Outcome, error) {
	var s sink
	inv := invocation(l.Version, fmt.Sprint(n))
	inv.ID[8] = byte(n)
	inv.ID[9] = byte(n >> 8)
	out, err := i.Invoke(context.Background(), l, inv, &s)
	return s.body.String(), out, err
}

func TestRefusalsSayWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *host.Config) { c.MemoryMiB = 300 })
		defer r.close(t)
		for _, c := range []struct {
			m      *wire.Start
			fault  starling.Kind
			reason string
		}{
			{startMsg(1, noHandler), starling.Failed, starling.ErrHandler},
			{startMsg(2, 77), starling.NotFound, starling.ErrSandboxFailure},
		} {
			r.Receive(1, []wire.Message{c.m})
			time.Sleep(50 * time.Millisecond)
			got := r.post.take()
			if m, ok := got[0].m.(*wire.StartFailed); !ok || m.Fault != c.fault || m.Reason != c.reason || m.Instance != c.m.Instance {
				t.Errorf("sent %+v", got[0].m)
			}
		}
		r.Receive(1, []wire.Message{startMsg(3, echo), startMsg(4, echo), startMsg(5, echo)})
		time.Sleep(50 * time.Millisecond)
		started, full := 0, 0
		for _, s := range r.post.take() {
			switch m := s.m.(type) {
			case *wire.Started:
				started++
			case *wire.StartFailed:
				if m.Reason != "Full" {
					t.Errorf("sent %+v", m)
				}
				full++
			}
		}
		if started != 2 || full != 1 {
			t.Errorf("%d started and %d found no room", started, full)
		}
		time.Sleep(600 * time.Millisecond)
		if rep := r.post.lastReport(); rep.FreeMiB != 44 || rep.Instances != 2 || rep.Starting != 0 || len(rep.Pools) != 2 || len(rep.Versions) != 1 {
			t.Errorf("reported %+v", rep)
		}
	})
}

func TestAFullHostEndsWhatIsIdleLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *host.Config) { c.MemoryMiB = 512 })
		defer r.close(t)
		r.Receive(1, []wire.Message{startMsg(1, echo), startMsg(2, slow), startMsg(3, echo)})
		time.Sleep(2 * time.Second)
		r.post.take()
		if r.driver.Alive() != 3+3 {
			t.Fatalf("%d sandboxes: there was room for another instance", r.driver.Alive())
		}
		if _, _, err := call(r, lease(1, 1, echo), `1`); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			_, _, err := call(r, lease(2, 2, slow), `1`)
			done <- err
		}()
		synctest.Wait()
		r.Receive(1, []wire.Message{startMsg(4, echo)})
		time.Sleep(100 * time.Millisecond)
		var ended []starling.InstanceID
		for _, s := range r.post.take() {
			if m, ok := s.m.(*wire.Exited); ok {
				ended = append(ended, m.Instance)
			}
		}
		if err := <-done; err != nil || len(ended) != 1 || ended[0] != instance(3) {
			t.Errorf("ended %v, the call at work: %v", ended, err)
		}
		if rep := r.post.lastReport(); rep != nil && rep.FreeMiB < 128 {
			t.Errorf("reported %+v", rep)
		}
	})
}

func TestAFenceLeavesOnlyLeasesInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		r.Receive(1, []wire.Message{startMsg(1, wide), startMsg(2, echo)})
		time.Sleep(50 * time.Millisecond)
		r.post.take()
		used, unused := lease(1, 1, wide), lease(2, 1, wide)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := call(r, used, "1"); err != nil {
				t.Errorf("the call in flight: %v", err)
			}
		})
		time.Sleep(10 * time.Millisecond)
		fence := &wire.Fence{Partition: 5, Epoch: 4, Since: 4, Range: starling.Range{Lo: 0, Hi: 1 << 32}}
		r.Receive(2, []wire.Message{fence})
		got := r.post.take()
		m, ok := got[0].m.(*wire.Fenced)
		if !ok || got[0].to != (wire.Address{Node: 2, Partition: 5}) || m.Epoch != 4 || len(m.Instances) != 2 {
			t.Fatalf("sent %+v", got[0])
		}
		for _, i := range m.Instances {
			if i.Instance == instance(1) && (i.Busy != 1 || len(i.Leases) != 1 || i.Leases[0].ID != 1 || !i.Ready) || i.Instance == instance(2) && (i.Busy != 0 || len(i.Leases) != 0) {
				t.Errorf("reported %+v", i)
			}
		}
		if _, _, err := call(r, unused, "1"); starling.KindOf(err) != starling.Moved {
			t.Errorf("a lease of a past epoch that was never shown: %v", err)
		}
		wg.Wait()
		if _, _, err := call(r, used, "1"); err != nil {
			t.Errorf("a lease in use: %v", err)
		}
		time.Sleep(1100 * time.Millisecond)
		if _, _, err := call(r, used, "1"); starling.KindOf(err) != starling.Moved {
			t.Errorf("a lease that ended: %v", err)
		}
		fresh := lease(1, 1, wide)
		fresh.Partition, fresh.Epoch = 5, 4
		if _, _, err := call(r, fresh, "1"); err != nil {
			t.Errorf("a lease of the new owner: %v", err)
		}
		// The old owner is not obeyed any more, and its fence is not answered.
		r.post.take()
		r.Receive(1, []wire.Message{startMsg(3, echo), &wire.Stop{Partition: 1, Epoch: 1, Instance: instance(2)},
			&wire.Fence{Partition: 1, Epoch: 3, Since: 3, Range: starling.Range{Lo: 0, Hi: 1 << 31}}})
		time.Sleep(50 * time.Millisecond)
		got = r.post.take()
		if f, ok := got[0].m.(*wire.StartFailed); len(got) != 1 || !ok || f.Fault != starling.Moved {
			t.Fatalf("sent %+v", got)
		}
		// News of an instance goes to its new owner.
		r.Receive(2, []wire.Message{&wire.Stop{Partition: 5, Epoch: 4, Instance: instance(2), Now: true}})
		time.Sleep(10 * time.Millisecond)
		if got := r.post.take(); len(got) != 1 || got[0].to != (wire.Address{Node: 2, Partition: 5}) {
			t.Fatalf("sent %+v", got)
		}
	})
}

func TestAFaultEndsTheInstanceAndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		for seq, c := range map[uint64]struct {
			v    starling.VersionID
			kind string
		}{1: {boom, starling.ErrExit}, 2: {gone, starling.ErrTimedOut}} {
			r.Receive(1, []wire.Message{startMsg(seq, c.v)})
			time.Sleep(50 * time.Millisecond)
			r.post.take()
			if _, out, err := call(r, lease(1, seq, c.v), "1"); err != nil || out.Status != starling.Unhandled || out.ErrorType != c.kind {
				t.Fatalf("%+v %v", out, err)
			}
			time.Sleep(400 * time.Millisecond)
			got := r.post.take()
			if m, ok := got[0].m.(*wire.Exited); !ok || m.Reason != c.kind || m.Instance != instance(seq) {
				t.Fatalf("sent %+v", got[0].m)
			}
		}
	})
}

func TestDrainFinishesCallsAndTakesNoStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		r.Receive(1, []wire.Message{startMsg(1, slow)})
		time.Sleep(50 * time.Millisecond)
		r.post.take()
		var wg sync.WaitGroup
		wg.Go(func() {
			if body, _, err := call(r, lease(1, 1, slow), "1"); err != nil || body != "slow" {
				t.Errorf("the call in flight: %q %v", body, err)
			}
		})
		time.Sleep(10 * time.Millisecond)
		begun := time.Now()
		if err := r.Drain(context.Background()); err != nil || time.Since(begun) < 150*time.Millisecond {
			t.Errorf("drained in %v: %v", time.Since(begun), err)
		}
		wg.Wait()
		if _, _, err := call(r, lease(1, 1, slow), "1"); starling.KindOf(err) != starling.Moved {
			t.Errorf("a call after the drain: %v", err)
		}
		r.post.take()
		r.Receive(1, []wire.Message{startMsg(2, echo)})
		if m, ok := r.post.take()[0].m.(*wire.StartFailed); !ok || m.Reason != "Full" {
			t.Errorf("sent %+v", m)
		}
	})
}
