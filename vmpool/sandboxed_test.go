package vmpool_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/kata/katatest"
	"starling/vmpool/process/processtest"
)

// sandboxedPool returns an open pool over a real driver.
func sandboxedPool(t testing.TB, isolation starling.Isolation) *vmpool.Pool {
	p, _ := recordedPool(t, isolation, map[starling.Runtime]int{starling.Python311: 1, starling.NodeJS20: 1, starling.Provided: 1})
	return p
}

// recordedPool is sandboxedPool with so many warm sandboxes of each runtime, and its recorder.
func recordedPool(t testing.TB, isolation starling.Isolation, sizes map[starling.Runtime]int) (*vmpool.Pool, *recorder) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelError}))
	cfg := vmpool.PoolConfig{Log: log, Sizes: sizes}
	if isolation == starling.IsolationKata {
		cfg.Driver, cfg.ReadyTime = kata.New(katatest.Config(t)), katatest.Patience
	} else {
		cfg.Driver = processtest.Jail(t, isolation, log)
	}
	d := cfg.Driver
	r := &recorder{Driver: d}
	cfg.Driver = r
	return openPool(t, cfg, d), r
}

// openPool returns an open pool; it and the driver below it end with the test.
func openPool(t testing.TB, cfg vmpool.PoolConfig, d vmpool.Driver) *vmpool.Pool {
	t.Helper()
	p := vmpool.NewPool(cfg)
	if err := p.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestSandboxedInstances drives the runtimes, contracts and instances through the sandboxes they are made for.
func TestSandboxedInstances(t *testing.T) {
	for i, limit := range map[starling.Isolation]time.Duration{
		starling.IsolationProcess: 2 * time.Second,
		starling.IsolationGVisor:  6 * time.Second, // a gigabyte takes its time to touch
	} {
		t.Run(string(i), func(t *testing.T) {
			p := sandboxedPool(t, i)
			instancesWork(t, p, limit)
			t.Run("layers", func(t *testing.T) { layersWork(t, p, 2*limit) })
		})
	}
}

// instancesWork calls functions of every runtime in sandboxes of p, good ones and bad ones; limit is what a call may take, but for the
// one that hangs, which would take all of it.
func instancesWork(t *testing.T, p *vmpool.Pool, limit time.Duration) {
	goDir := goBootstrap(t, "./runtimeapi/testdata/echo")
	os.Chmod(goDir, 0o755)
	python := "import os, time\ndef echo(e, c): print('seen', e); return [e, os.getcwd(), os.environ['GREETING']]\n" +
		"def hog(e, c): return len(b'x' * (1 << 30))\ndef leave(e, c): os._exit(5)\ndef hang(e, c): time.sleep(60)\n" +
		"def pil(e, c):\n    import PIL\n    return bool(PIL.__version__)\n"
	node := "exports.echo = async (e) => { console.log('seen', e); return [e, process.cwd(), process.env.GREETING]; };\n"
	for _, c := range []struct {
		name, handler, file, code, payload, want string
		rt                                       starling.Runtime
		status                                   starling.Status
		kind                                     string
	}{
		{"python", "main.echo", "main.py", python, "1", `[1, "/var/task", "hej"]`, starling.Python311, 0, ""},
		{"pillow", "main.pil", "main.py", python, "1", `true`, starling.Python311, 0, ""},
		{"memory", "main.hog", "main.py", python, "1", "", starling.Python311, starling.Unhandled, starling.ErrOutOfMemory},
		{"exit", "main.leave", "main.py", python, "1", "", starling.Python311, starling.Unhandled, starling.ErrExit},
		{"hang", "main.hang", "main.py", python, "1", "", starling.Python311, starling.Unhandled, starling.ErrTimedOut},
		{"node", "main.echo", "main.js", node, "1", `[1,"/var/task","hej"]`, starling.NodeJS20, 0, ""},
		{"go", "bootstrap", "", "", `{"text":"x"}`, `{"echo":"x"}`, starling.Provided, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, dir := version(t, c.rt, c.handler, c.file+"x", "")
			if c.file != "" {
				v, dir = version(t, c.rt, c.handler, c.file, c.code)
			} else {
				dir = goDir
			}
			for up := dir; up != "/" && up != os.TempDir(); up = filepath.Dir(up) {
				os.Chmod(up, 0o755) // the code store makes folders that a sandbox may read
			}
			sink := &logs{}
			i := start(t, p, v, dir, sink)
			defer i.Close()
			within := limit
			if c.kind == starling.ErrTimedOut {
				within = time.Second
			}
			for n := range 3 {
				out, a, id := call(t, i, c.payload, func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(within) })
				if out.Status != c.status || out.ErrorType != c.kind || a.String() != c.want {
					t.Fatalf("call %d ended %v %q %s with %q", n, out.Status, out.ErrorType, out.Error, a.String())
				}
				if c.handler == "main.echo" {
					if got := sink.of(id); len(got) != 4 || got[1] != "stdout: seen 1" {
						t.Fatalf("call %d logged %q", n, got)
					}
				}
				if c.status == starling.Unhandled {
					return
				}
				if out.MemoryMax < 1<<20 || out.MemoryMax > 256<<20 {
					t.Errorf("call %d reports a peak of %d bytes", n, out.MemoryMax)
				}
				frozen(t, i)
			}
		})
	}
	t.Run("missing bootstrap", func(t *testing.T) {
		v, dir := version(t, starling.Provided, "bootstrap")
		_, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir})
		if starling.ReasonOf(err) != starling.ErrEntrypoint || !strings.Contains(err.Error(), "bootstrap") {
			t.Fatalf("got %v", err)
		}
	})
}

// frozen waits until the keeper froze an idle instance, so that the next call has to thaw it.
func frozen(t *testing.T, i *vmpool.Instance) {
	t.Helper()
	for limit := time.Now().Add(5 * time.Second); !i.Frozen(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("an idle instance is not frozen")
		}
	}
}
