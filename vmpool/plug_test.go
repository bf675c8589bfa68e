package vmpool_test

import (
	"context"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/fake"
)

// namespaced makes the fake's sandboxes such as have a namespace.
type namespaced struct{ *fake.Driver }

type namespacedTemplate struct{ vmpool.Template }

type namespacedBox struct{ vmpool.Sandbox }

func (d namespaced) BuildTemplate(ctx context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	t, err := d.Driver.BuildTemplate(ctx, spec)
	return namespacedTemplate{t}, err
}

func (t namespacedTemplate) Clone(ctx context.Context) (vmpool.Sandbox, error) {
	s, err := t.Template.Clone(ctx)
	if err != nil {
		return nil, err
	}
	return namespacedBox{s}, nil
}

func (namespacedBox) Namespace() (*os.File, error) { return os.Open(os.DevNull) }

// plugs counts what was plugged in and what was taken out.
type plugs struct {
	mu           sync.Mutex
	made, closed int
	as           []starling.Attachment
}

type plug struct{ of *plugs }

func (p *plugs) make(ns *os.File) (vmpool.Plug, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made++
	return plug{p}, ns.Close()
}

func (p plug) Connect(as starling.Attachment) error {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.of.as = append(p.of.as, as)
	return nil
}

func (p plug) Close() error {
	p.of.mu.Lock()
	defer p.of.mu.Unlock()
	p.of.closed++
	return nil
}

// A version with a network is let out before it has code, whether its sandbox was prepared or not; one without never; and nothing stays plugged in.
func TestOnlyVersionsWithANetworkAreLetOut(t *testing.T) {
	for name, ahead := range map[string]bool{"prepared": true, "on demand": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, p := &fake.Driver{Handlers: map[string]fake.Handler{"main.h": fake.Echo}}, &plugs{}
				pool := vmpool.NewPool(vmpool.PoolConfig{Driver: namespaced{d}, Sizes: python, Plug: p.make, PlugAhead: func() bool { return ahead }})
				if err := pool.Open(context.Background()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if want := map[bool]int{true: 2, false: 0}[ahead]; p.made != want {
					t.Errorf("%d warm sandboxes are prepared, want %d", p.made, want)
				}
				bare := start(t, pool, fakeVersion("main.h"), "", nil)
				synctest.Wait()
				if want := map[bool]int{true: 1, false: 0}[ahead]; len(p.as) != 0 || p.closed != want {
					t.Errorf("a version without a network is let out as %+v; %d taken out, want %d", p.as, p.closed, want)
				}
				v := fakeVersion("main.h")
				v.Config.Network = "db"
				i := start(t, pool, v, "", nil)
				if want := (starling.Attachment{Instance: i.ID(), Function: v.Function, Version: 7, Network: "db"}); len(p.as) != 1 || p.as[0] != want {
					t.Errorf("let out as %+v, want %+v", p.as, want)
				}
				bare.Close()
				i.Close()
				closePool(t, pool, d)
				if p.made != p.closed {
					t.Errorf("%d of %d are taken out", p.closed, p.made)
				}
			})
		})
	}
}

// catching makes the fake's sandboxes such as catch by themselves.
type catching struct {
	*fake.Driver
	boxes chan *catchingBox
}

type catchingTemplate struct {
	vmpool.Template
	boxes chan *catchingBox
}

type catchingBox struct {
	vmpool.Sandbox
	catcher vmpool.Catcher
	closed  bool
}

func (d catching) BuildTemplate(ctx context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	t, err := d.Driver.BuildTemplate(ctx, spec)
	return catchingTemplate{t, d.boxes}, err
}

func (t catchingTemplate) Clone(ctx context.Context) (vmpool.Sandbox, error) {
	s, err := t.Template.Clone(ctx)
	if err != nil {
		return nil, err
	}
	b := &catchingBox{Sandbox: s}
	t.boxes <- b
	return b, nil
}

func (b *catchingBox) Catch(c vmpool.Catcher) { b.catcher = c }

func (b *catchingBox) Answer(_, _ netip.AddrPort, _ []byte) {}

func (b *catchingBox) Close() error {
	b.closed = true
	return b.Sandbox.Close()
}

// guestPlug says when it is closed whether its sandbox was.
type guestPlug struct {
	plug
	after func()
}

func (p guestPlug) Flow(netip.AddrPort, vmpool.Flow)                {}
func (p guestPlug) Datagram(netip.AddrPort, netip.AddrPort, []byte) {}
func (p guestPlug) Close() error {
	p.after()
	return p.plug.Close()
}

// A sandbox that catches by itself is told to for a version with a network, and for no other; its flows end after it, because they may
// wait for it.
func TestASandboxCatchesForAVersionWithANetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := &fake.Driver{Handlers: map[string]fake.Handler{"main.h": fake.Echo}}, &plugs{}
		boxes := make(chan *catchingBox, 10)
		var box *catchingBox
		pool := vmpool.NewPool(vmpool.PoolConfig{Driver: catching{d, boxes}, Sizes: map[starling.Runtime]int{starling.Python311: 0},
			PlugGuest: func(func(as, to netip.AddrPort, d []byte)) vmpool.GuestPlug {
				return guestPlug{plug{p}, func() {
					if !box.closed {
						t.Error("flows end before the sandbox")
					}
				}}
			}})
		if err := pool.Open(context.Background()); err != nil {
			t.Fatal(err)
		}
		bare := start(t, pool, fakeVersion("main.h"), "", nil)
		if box = <-boxes; box.catcher != nil || len(p.as) != 0 {
			t.Errorf("a version without a network is let out as %+v", p.as)
		}
		v := fakeVersion("main.h")
		v.Config.Network = "db"
		i := start(t, pool, v, "", nil)
		if box = <-boxes; box.catcher == nil || len(p.as) != 1 || p.as[0].Network != "db" {
			t.Errorf("a version with a network is let out as %+v", p.as)
		}
		bare.Close()
		i.Close()
		closePool(t, pool, d)
		if p.closed != 1 {
			t.Errorf("%d plugs are closed", p.closed)
		}
	})
}

func TestAVersionWithANetworkDoesNotStartWhereThereIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &fake.Driver{Handlers: map[string]fake.Handler{"main.h": fake.Echo}}
		pool := fakePool(t, d, vmpool.PoolConfig{Sizes: python})
		defer closePool(t, pool, d)
		v := fakeVersion("main.h")
		v.Config.Network = "db"
		if _, err := pool.Start(t.Context(), vmpool.InstanceConfig{Version: v}); starling.KindOf(err) != starling.Unavailable || starling.ReasonOf(err) != "NoNetwork" {
			t.Errorf("got %v", err)
		}
	})
}
