package vmpool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/fake"
)

// fakePool returns an open pool of Go funcs inside the bubble of its test.
func fakePool(t *testing.T, d *fake.Driver, cfg vmpool.PoolConfig) *vmpool.Pool {
	t.Helper()
	cfg.Driver = d
	p := vmpool.NewPool(cfg)
	if err := p.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	return p
}

func closePool(t *testing.T, p *vmpool.Pool, d *fake.Driver) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if n := d.Alive(); n != 0 {
		t.Errorf("%d sandboxes are left", n)
	}
}

func fakeVersion(handler string) *starling.Version {
	return &starling.Version{ID: 7, Function: starling.FunctionRef{Account: "acme", Name: "fn"},
		Config: starling.Config{Runtime: starling.Python311, Handler: handler}.WithDefaults()}
}

var python = map[starling.Runtime]int{starling.Python311: 2}

func TestPoolRefillsAndFollowsItsSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{BootTime: 100 * time.Millisecond, Handlers: map[string]fake.Handler{"main.h": fake.Echo}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
		defer closePool(t, p, d)
		stock := func() int { synctest.Wait(); return p.Stock()[starling.Python311] }
		time.Sleep(250 * time.Millisecond)
		if stock() != 2 {
			t.Fatalf("%d are warm", stock())
		}
		begun := time.Now()
		i := start(t, p, fakeVersion("main.h"), "", nil)
		if took := time.Since(begun); took > 10*time.Millisecond {
			t.Errorf("a warm start took %v", took)
		}
		time.Sleep(150 * time.Millisecond)
		if stock() != 2 || d.Made() != 3 {
			t.Fatalf("%d are warm of %d made", stock(), d.Made())
		}
		i.Close()
		if err := p.Resize(starling.Python311, 4); err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond)
		if stock() != 4 || d.Made() != 5 {
			t.Fatalf("%d are warm of %d made: an ended instance must not come back", stock(), d.Made())
		}
		p.Resize(starling.Python311, 1)
		time.Sleep(10 * time.Millisecond)
		if stock() != 1 || d.Alive() != 1 {
			t.Fatalf("%d are warm", stock())
		}
		if err := p.Resize("cobol", 1); starling.KindOf(err) != starling.NotFound {
			t.Errorf("got %v", err)
		}
	})
}

// TestACrowdedPoolKeepsHalfOfItsStock: while processors are queued for, what starts take is made good only up to half.
func TestACrowdedPoolKeepsHalfOfItsStock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{BootTime: 10 * time.Millisecond, Handlers: map[string]fake.Handler{"main.h": fake.Echo}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: map[starling.Runtime]int{starling.Python311: 4}})
		defer closePool(t, p, d)
		stock := func() int { return p.Stock()[starling.Python311] }
		time.Sleep(time.Second)
		p.Crowded(true)
		for left := 3; left >= 2; left-- {
			start(t, p, fakeVersion("main.h"), "", nil)
			if time.Sleep(time.Second); stock() != left {
				t.Fatalf("%d are warm beside a crowd, want %d", stock(), left)
			}
		}
		start(t, p, fakeVersion("main.h"), "", nil)
		if time.Sleep(time.Second); stock() != 2 {
			t.Fatalf("%d are warm beside a crowd, want half of four", stock())
		}
		p.Crowded(false)
		if time.Sleep(100 * time.Millisecond); stock() != 4 {
			t.Errorf("%d are warm after it", stock())
		}
	})
}

func TestAnEmptyPoolClonesAndItsFailuresBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		var tries atomic.Int32
		d := &fake.Driver{BootTime: 10 * time.Millisecond, Handlers: map[string]fake.Handler{"main.h": fake.Echo}, Spoil: func(act string) error {
			if act == "clone" {
				tries.Add(1)
				if broken.Load() {
					return errors.New("no more processes")
				}
			}
			return nil
		}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: map[starling.Runtime]int{starling.Python311: 1}})
		defer closePool(t, p, d)
		time.Sleep(time.Second)
		var all []*vmpool.Instance
		for range 3 { // faster than the filler
			all = append(all, start(t, p, fakeVersion("main.h"), "", nil))
		}
		time.Sleep(time.Second)
		broken.Store(true)
		tries.Store(0)
		start(t, p, fakeVersion("main.h"), "", nil)
		_, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: fakeVersion("main.h")})
		if starling.KindOf(err) != starling.Unavailable || !strings.Contains(err.Error(), "no more processes") {
			t.Fatalf("got %v", err)
		}
		time.Sleep(60 * time.Second)
		if n := tries.Load(); n < 5 || n > 14 {
			t.Errorf("%d clones were tried in a minute of failure", n)
		}
		broken.Store(false)
		time.Sleep(31 * time.Second)
		if n := p.Stock()[starling.Python311]; n != 1 {
			t.Errorf("%d are warm after the failure", n)
		}
		for _, i := range all {
			i.Close()
		}
	})
}

func TestAStartTakesWhatTheFillerMakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{BootTime: 100 * time.Millisecond, Handlers: map[string]fake.Handler{"main.h": fake.Echo}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: map[starling.Runtime]int{starling.Python311: 1}, CloneMax: 1})
		defer closePool(t, p, d)
		time.Sleep(10 * time.Millisecond) // the filler's clone is under way
		begun := time.Now()
		var took [2]time.Duration
		var wg sync.WaitGroup
		for n := range took {
			wg.Go(func() {
				start(t, p, fakeVersion("main.h"), "", nil)
				took[n] = time.Since(begun)
			})
		}
		wg.Wait()
		slices.Sort(took[:])
		if took[0] > 92*time.Millisecond || took[1] > 102*time.Millisecond {
			t.Errorf("two starts of an empty shelf took %v: one should get the filler's sandbox, one a clone of its own", took)
		}
	})
}

func TestAnInstanceSettlesOnceAfterItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{InitTime: 300 * time.Millisecond, Handlers: map[string]fake.Handler{"main.h": fake.Echo}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
		defer closePool(t, p, d)
		start(t, p, fakeVersion("main.h"), "", nil)
		if n := d.Settled(); n != 0 {
			t.Errorf("settled %d times during its initialisation", n)
		}
		time.Sleep(150 * time.Millisecond)
		if n := d.Settled(); n != 1 {
			t.Errorf("settled %d times soon after", n)
		}
		time.Sleep(time.Second)
		if n := d.Settled(); n != 1 {
			t.Errorf("settled %d times in the end", n)
		}
	})
}

func TestAnIdleInstanceIsFrozenLazily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{Handlers: map[string]fake.Handler{"main.h": func(c *fake.Call) {
			now, times := c.Paused()
			c.Answer("text/plain", fmt.Append(nil, now, times))
		}}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
		defer closePool(t, p, d)
		i := start(t, p, fakeVersion("main.h"), "", nil)
		for _, step := range []struct {
			pause time.Duration
			want  string
		}{{50 * time.Millisecond, "false 0"}, {80 * time.Millisecond, "false 0"}, {200 * time.Millisecond, "false 1"}, {10 * time.Second, "false 2"}, {0, "false 2"}} {
			time.Sleep(step.pause)
			if _, a, _ := call(t, i, ""); a.String() != step.want {
				t.Errorf("after %v: %q, want %q", step.pause, a.String(), step.want)
			}
		}
	})
}

func TestAnOldInstanceEndsWhenItIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{Handlers: map[string]fake.Handler{"main.h": func(c *fake.Call) { c.Sleep(3 * time.Second); c.Answer("", nil) }}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
		defer closePool(t, p, d)
		ended := make(chan string, 1)
		i, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: fakeVersion("main.h"), LifeMax: 2 * time.Second, Ended: func(_ *vmpool.Instance, why string) { ended <- why }})
		if err != nil {
			t.Fatal(err)
		}
		out, _, _ := call(t, i, "", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(10 * time.Second) })
		if out.Status != starling.Succeeded {
			t.Fatalf("the call in flight ended %+v", out)
		}
		if why := <-ended; why != "too old" {
			t.Fatalf("ended by %q", why)
		}
	})
}

func TestEndsOfProcessesAreTold(t *testing.T) {
	for name, c := range map[string]struct {
		handler fake.Handler
		kind    string
		says    string
	}{
		"exit":   {func(c *fake.Call) { c.Exit(3) }, starling.ErrExit, "exit status 3"},
		"quiet":  {func(c *fake.Call) { c.Exit(0) }, starling.ErrExit, "without providing a reason"},
		"memory": {func(c *fake.Call) { c.ExhaustMemory() }, starling.ErrOutOfMemory, "out of memory"},
		"hang":   {func(c *fake.Call) { c.Hang() }, starling.ErrTimedOut, "Task timed out after 3.00 seconds"},
		"raw":    {func(c *fake.Call) { c.Raw([]byte{1, 2, 3, 4, 5, 6, 7}); c.Hang() }, starling.ErrProtocol, "protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &fake.Driver{Handlers: map[string]fake.Handler{"main.h": c.handler}}
				p := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
				defer closePool(t, p, d)
				ended := make(chan string, 1)
				i, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: fakeVersion("main.h"), Ended: func(_ *vmpool.Instance, why string) { ended <- why }})
				if err != nil {
					t.Fatal(err)
				}
				out, _, _ := call(t, i, "")
				if out.Status != starling.Unhandled || out.ErrorType != c.kind || !bytes.Contains(out.Error, []byte(c.says)) {
					t.Errorf("%v %q %s", out.Status, out.ErrorType, out.Error)
				}
				if why := <-ended; why != c.kind {
					t.Errorf("ended by %q", why)
				}
				// Between calls too.
				i, err = p.Start(context.Background(), vmpool.InstanceConfig{Version: fakeVersion("main.h")})
				if err != nil {
					t.Fatal(err)
				}
				i.Close()
			})
		})
	}
}

// Close while starts are under way leaves nothing behind and hangs nobody.
func TestClosingEndsStartsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{BootTime: time.Second, AttachTime: time.Hour, Handlers: map[string]fake.Handler{"main.h": fake.Echo}}
		p := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
		errs := make(chan error, 3)
		for range 3 {
			go func() {
				_, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: fakeVersion("main.h")})
				errs <- err
			}()
		}
		time.Sleep(5 * time.Second)
		closePool(t, p, d)
		for range 3 {
			if err := <-errs; starling.KindOf(err) != starling.Unavailable {
				t.Errorf("got %v", err)
			}
		}
		if _, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: fakeVersion("main.h")}); starling.KindOf(err) != starling.Unavailable {
			t.Errorf("got %v", err)
		}
	})
}

// behindDriver counts what is cloned behind and brought forward.
type behindDriver struct {
	*fake.Driver
	behind, forward atomic.Int64
}

type behindTemplate struct {
	vmpool.Template
	d *behindDriver
}

func (d *behindDriver) BuildTemplate(ctx context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	t, err := d.Driver.BuildTemplate(ctx, spec)
	return &behindTemplate{t, d}, err
}

func (t *behindTemplate) CloneBehind(ctx context.Context) (vmpool.Sandbox, error) {
	s, err := t.Template.Clone(ctx)
	t.d.behind.Add(1)
	return &behindSandbox{s, t.d}, err
}

type behindSandbox struct {
	vmpool.Sandbox
	d *behindDriver
}

func (s *behindSandbox) Forward() error {
	s.d.forward.Add(1)
	return nil
}

// TestARefillStandsBehindUntilItIsWarm: what is cloned for the stock is brought forward before a start can take it, and a start that
// waits for a clone has one that never stood behind.
func TestARefillStandsBehindUntilItIsWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &behindDriver{Driver: &fake.Driver{BootTime: 50 * time.Millisecond, Handlers: map[string]fake.Handler{"h": fake.Echo}}}
		p := vmpool.NewPool(vmpool.PoolConfig{Driver: d, Sizes: map[starling.Runtime]int{starling.Python311: 1}})
		if err := p.Open(context.Background()); err != nil {
			t.Fatal(err)
		}
		defer closePool(t, p, d.Driver)
		time.Sleep(time.Second)
		if n := p.Stock()[starling.Python311]; n != 1 || d.behind.Load() != 1 || d.forward.Load() != 1 {
			t.Errorf("%d warm, %d cloned behind, %d brought forward, want one each", n, d.behind.Load(), d.forward.Load())
		}
		if err := p.Resize(starling.Python311, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		i, err := p.Start(t.Context(), vmpool.InstanceConfig{Version: fakeVersion("h")})
		if err != nil {
			t.Fatal(err)
		}
		i.Close()
		if n := d.behind.Load(); n != 1 {
			t.Errorf("%d cloned behind, though a start waited for the second", n)
		}
	})
}
