package processtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
)

// Tests that every driver with a warden passes.

// PauseStopsEveryProcess checks pause and resume of a Python sandbox, whose closing while it is paused, too.
func PauseStopsEveryProcess(t *testing.T, tpl vmpool.Template) {
	b := Clone(t, tpl)
	Attach(t, b, CodeDir(t, nil))
	b.MustPython("import os\nif os.fork() == 0:\n  while True: pass")
	cpu := func() time.Duration {
		s, err := b.Stats()
		must(t, err)
		return s.CPU
	}
	must(t, b.Pause())
	before := cpu()
	time.Sleep(50 * time.Millisecond) // real time must pass for a running process to show
	if used := cpu() - before; used > time.Millisecond {
		t.Fatalf("used %v of CPU while paused", used)
	}
	must(t, b.Resume())
	for deadline := time.Now().Add(5 * time.Second); cpu()-before < time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not run after Resume")
		}
	}
	must(t, b.Pause())
	must(t, b.Close()) // also while paused
}

// ProvidedRefusesWhatIsNoBootstrap gives sandboxes of provided code that cannot start.
func ProvidedRefusesWhatIsNoBootstrap(t *testing.T, tpl vmpool.Template) {
	plain := CodeDir(t, map[string]string{"bootstrap": "#!/bin/sh\n"})
	must(t, os.Chmod(filepath.Join(plain, "bootstrap"), 0o644))
	for name, dir := range map[string]string{
		"missing": CodeDir(t, nil), "not executable": plain,
		"for another machine": CodeDir(t, map[string]string{"bootstrap": "\x7fELF\x01\x01\x01 nothing"}),
		"without interpreter": CodeDir(t, map[string]string{"bootstrap": "#!/nowhere/sh\n"}),
	} {
		err := Clone(t, tpl).Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128})
		if starling.KindOf(err) != starling.Failed || starling.ReasonOf(err) != starling.ErrEntrypoint {
			t.Errorf("%s: %v (%s)", name, err, starling.ReasonOf(err))
		}
	}
}

// How the node of NodeKilled, a process of its own, knows what it is.
const (
	nodeVariable  = "STARLING_TEST_NODE" // its folder
	tagVariable   = "STARLING_TEST_TAG"
	guestVariable = "STARLING_TEST_GUEST"
)

// NodeKilled runs a node with busy sandboxes in a process of its own, ends it without warning by each of the signals, and looks
// for traces. It is the whole of the test that calls it, which that process runs again.
func NodeKilled(t *testing.T, cfg process.Config, signals ...syscall.Signal) {
	if dir := os.Getenv(nodeVariable); dir != "" {
		cfg.Dir, cfg.Tag = dir, os.Getenv(tagVariable)
		nodeForTest(t, cfg)
	}
	for _, sig := range signals {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), nodeVariable+"="+cfg.Dir, tagVariable+"="+cfg.Tag, guestVariable+"="+Guest, "TMPDIR="+t.TempDir())
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		seen, buf := "", make([]byte, 4096)
		for !strings.Contains(seen, nodeUp) {
			n, err := out.Read(buf)
			seen += string(buf[:n])
			if err != nil {
				t.Fatalf("%v: the node did not start: %s", sig, seen)
			}
		}
		must(t, cmd.Process.Signal(sig))
		_ = cmd.Wait()
		_ = os.Remove(filepath.Join(cfg.Dir, "root")) // the node's own folder, empty; its next life would use it
		LeftNothing(t, cfg)
	}
}

const nodeUp = "sandboxes are up"

// nodeForTest makes busy sandboxes and waits to be killed.
func nodeForTest(t *testing.T, cfg process.Config) {
	d := process.New(cfg)
	py, provided := Template(t, d, starling.Python311), Template(t, d, starling.Provided)
	for range 2 {
		b := Clone(t, py)
		Attach(t, b, CodeDir(t, nil))
		b.MustPython("import os\nif os.fork() == 0:\n  os.setsid()\n  while True: pass")
		Clone(t, provided)
	}
	fmt.Println(nodeUp)
	select {}
}
