package process_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
	"starling/vmpool/process/processtest"
)

func TestMain(m *testing.M) { os.Exit(processtest.Main(m)) }

// What the tests here share with gVisor's, by shorter names.
type box = processtest.Box

var (
	testConfig  = processtest.Config
	template    = processtest.Template
	clone       = processtest.Clone
	codeDir     = processtest.CodeDir
	attach      = processtest.Attach
	waitDone    = processtest.WaitDone
	leftNothing = processtest.LeftNothing
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDriver(t testing.TB, change func(*process.Config)) *process.Driver {
	t.Helper()
	cfg := testConfig(t)
	if change != nil {
		change(&cfg)
	}
	d := process.New(cfg)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

func TestSandboxRunsCode(t *testing.T) {
	d := newDriver(t, nil)
	b := clone(t, template(t, d, starling.Python311))
	if got := b.MustPython("import os; out = [os.getpid(), os.getuid(), os.listdir('/var/task')]"); fmt.Sprint(got) != "[1 1000 []]" {
		t.Fatalf("before attach: %v", got)
	}
	dir := codeDir(t, map[string]string{"main.py": "answer = 42\n"})
	must(t, b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
	if got := b.MustPython("import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
		t.Fatalf("after attach: %v", got)
	}
	if _, err := b.Python("open('/var/task/x', 'w')"); err == nil || !strings.Contains(err.Error(), "OSError") && !strings.Contains(err.Error(), "PermissionError") {
		t.Fatalf("write to code: %v", err)
	}
	if err := b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}); starling.KindOf(err) != starling.Invalid {
		t.Fatalf("second attach: %v", err)
	}
	b.MustPython("print('hello', flush=True)")
	stdout, _ := b.Output()
	line := make([]byte, 6)
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "hello\n" {
		t.Fatalf("output %q %v", line, err)
	}
	s, err := b.Stats()
	must(t, err)
	if s.MemoryBytes == 0 || s.CPU == 0 || s.Processes != 1 {
		t.Fatalf("stats %+v", s)
	}
}
