package code

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"starling"
	"starling/transport"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/kata/katatest"
	"starling/vmpool/process/processtest"
)

const slotBytes = 320 << 20 // kata.DefaultConfig().CodeMiB

// reader is a function that reads a part of a large file of its package, and says which bytes it found.
const reader = `
import os
def part(event, context):
    with open(os.path.dirname(__file__) + "/big", "rb") as f:
        f.seek(event)
        return f.read(8).hex()
`

// sandboxes opens a pool of Python sandboxes of one isolation.
func sandboxes(t *testing.T, isolation starling.Isolation) *vmpool.Pool {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	cfg := vmpool.PoolConfig{Sizes: map[starling.Runtime]int{starling.Python311: 1}, Log: slog.New(slog.DiscardHandler)}
	if isolation == starling.IsolationKata {
		if testing.Short() {
			t.Skip("microVMs are slow without hardware; run it without -short")
		}
		cfg.Driver, cfg.ReadyTime = kata.New(katatest.Config(t)), katatest.Patience
	} else {
		cfg.Driver = processtest.Jail(t, isolation, cfg.Log)
	}
	p := vmpool.NewPool(cfg)
	if err := p.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := cfg.Driver.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// A run is an instance of a package and what it was told by.
type run struct {
	*vmpool.Instance
	release func()
	ended   chan string // why it ended
}

// start starts an instance of a package on node 1, in one of p's sandboxes.
func (w *town) start(t *testing.T, p *vmpool.Pool, v *starling.Version) run {
	t.Helper()
	at, release, err := w.stores[1].Take(context.Background(), v)
	if err != nil {
		t.Fatal(err)
	}
	r := run{release: release, ended: make(chan string, 1)}
	r.Instance, err = p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: at.Dir, Mount: at.Mount, Disk: (*vmpool.Disk)(at.Disk), Lost: at.Lost,
		InitTimeout: time.Minute, Ended: func(_ *vmpool.Instance, reason string) { r.ended <- reason }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// hangs has the origin take every question and answer none.
func (w *town) hangs(t *testing.T) {
	hung := make(chan struct{})
	t.Cleanup(func() { close(hung) })
	w.wire.mu.Lock()
	defer w.wire.mu.Unlock()
	w.wire.nodes[nodeName(0)].handler = map[transport.Channel]func(transport.Stream){transport.ChannelCode: func(transport.Stream) { <-hung }}
}

// part asks for the eight bytes of the large file at off, with a minute to read them.
func (r run) part(t *testing.T, off int) (starling.Outcome, string) {
	t.Helper()
	return r.partWithin(t, off, time.Minute)
}

func (r run) partWithin(t *testing.T, off int, limit time.Duration) (starling.Outcome, string) {
	t.Helper()
	var a said
	out, err := r.Invoke(&starling.Invocation{Version: r.Version().ID, Deadline: time.Now().Add(limit), Payload: fmt.Append(nil, off)}, &a)
	if err != nil {
		t.Fatal(err)
	}
	return out, a.String()
}

type said struct{ bytes.Buffer }

func (*said) Start(string, bool) {}

// TestSandboxesReadPackagesOnDemand runs a package of which the host has next to nothing: what the function reads is fetched, and when
// that cannot be had the instance ends, typed, and another starts when it can.
func TestSandboxesReadPackagesOnDemand(t *testing.T) {
	for _, isolation := range []starling.Isolation{starling.IsolationProcess, starling.IsolationGVisor, starling.IsolationKata} {
		t.Run(string(isolation), func(t *testing.T) {
			p := sandboxes(t, isolation)
			const mib = 24
			w := newTown(t, 2, 0, func(c *Config) {
				c.Images.RestWait, c.Images.Patience, c.Images.DiskBytes = time.Hour, 100*time.Millisecond, slotBytes
			})
			_, noise := large(t, mib)
			hash := put(t, w.stores[0], "acme", pack1(t, item{"main.py", reader, 0}, item{"big", string(noise), 0}))
			v := version(hash)
			v.Config = starling.Config{Runtime: starling.Python311, Handler: "main.part", Isolation: isolation}.WithDefaults()

			first := w.start(t, p, v)
			if out, got := first.part(t, 10<<20); out.Status != starling.Succeeded || got != fmt.Sprintf("%q", fmt.Sprintf("%x", noise[10<<20:10<<20+8])) {
				t.Fatalf("the call ended %v %q with %q", out.Status, out.Error, got)
			}
			s := w.stores[1]
			if n := s.count.fetchedHost.Get() + s.count.fetchedOrigin.Get(); n == 0 || n > 6<<20 {
				t.Errorf("%d bytes of %d MiB came for one read", n, mib)
			}
			if lies(t, w.dirs[1], "os.path.dirname") {
				t.Error("code lies open on the disk of the host")
			}

			w.wire.mu.Lock()
			origin := w.wire.nodes[nodeName(0)]
			delete(w.wire.nodes, nodeName(0))
			w.wire.mu.Unlock()
			second := w.start(t, p, v) // of what is there
			first.unreadable(t, 20<<20)
			if reason := <-second.ended; reason != starling.ErrCodeLost {
				t.Errorf("another instance of the package ended of %q", reason)
			}
			second.release()

			w.wire.mu.Lock()
			w.wire.nodes[nodeName(0)] = origin
			w.wire.mu.Unlock()
			flip(t, w.object(0, hash, "blocks")) // in the middle of the only copy
			third := w.start(t, p, v)
			if out, got := third.part(t, 20<<20); out.Status != starling.Succeeded || got != fmt.Sprintf("%q", fmt.Sprintf("%x", noise[20<<20:20<<20+8])) {
				t.Errorf("the origin is back, and the call ended %v %q with %q", out.Status, out.Error, got)
			}
			third.unreadable(t, mib<<20/2)
			if s.count.damaged.Get() == 0 {
				t.Error("nobody saw the damage")
			}
			last := w.start(t, p, v)
			w.hangs(t)
			last.tooLate(t, 4<<20)
		})
	}
}

// unreadable asks for a part that cannot be had, which is the instance's end.
func (r run) unreadable(t *testing.T, off int) {
	t.Helper()
	out, got := r.part(t, off)
	if out.Status != starling.Unhandled || out.ErrorType != starling.ErrCodeLost || !bytes.Contains(out.Error, []byte(starling.ErrCodeLost)) {
		t.Errorf("a part that is nowhere: %v %q %s %q", out.Status, out.ErrorType, out.Error, got)
	}
	if reason := <-r.ended; reason != starling.ErrCodeLost {
		t.Errorf("the instance ended of %q", reason)
	}
	r.release()
}

// tooLate asks for a part that nobody refuses and nobody gives: the call ends at its deadline, and its instance with it although a read is
// under way.
func (r run) tooLate(t *testing.T, off int) {
	t.Helper()
	out, got := r.partWithin(t, off, time.Second)
	if out.Status != starling.Unhandled || out.ErrorType != starling.ErrTimedOut {
		t.Errorf("a part that does not come: %v %q %s %q", out.Status, out.ErrorType, out.Error, got)
	}
	if reason := <-r.ended; reason != starling.ErrTimedOut {
		t.Errorf("the instance ended of %q", reason)
	}
	r.release()
}
