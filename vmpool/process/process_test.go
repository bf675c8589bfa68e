package process_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
	"starling/vmpool/process/attack"
)

// guest is the starling-guest binary, built once for all tests of the package.
var guest string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if guest = os.Getenv("STARLING_TEST_GUEST"); guest != "" {
		return m.Run() // a node of TestNodeKilled, which ends without a chance to tidy up
	}
	dir, err := os.MkdirTemp("", "starling-process-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	guest = filepath.Join(dir, "starling-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", guest, "starling/cmd/starling-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build starling-guest: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func testConfig(t testing.TB) process.Config {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	dir := t.TempDir()
	runtimes := filepath.Join(dir, "runtimes")
	must(t, os.Mkdir(runtimes, 0o755))
	must(t, os.WriteFile(filepath.Join(runtimes, "test.py"), []byte(attack.Runtime), 0o644))
	cfg := process.DefaultConfig()
	cfg.Dir, cfg.GuestPath, cfg.RuntimeDir = filepath.Join(dir, "process"), guest, runtimes
	cfg.Tag = fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1_000_000)
	cfg.Command = func(r starling.Runtime) []string {
		if r == starling.Python311 {
			return []string{"/usr/bin/python3", "-I", "-S", "-B", "/var/runtime/test.py"}
		}
		return nil
	}
	cfg.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	return cfg
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

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

func template(t testing.TB, d *process.Driver, r starling.Runtime) vmpool.Template {
	t.Helper()
	tpl, err := d.BuildTemplate(context.Background(), vmpool.TemplateSpec{Runtime: r})
	must(t, err)
	return tpl
}

// box is a sandbox of the attack suite's runtime, which executes what it is told.
type box struct {
	*attack.Box
	t testing.TB
}

func clone(t testing.TB, tpl vmpool.Template) *box {
	t.Helper()
	return &box{attack.NewBox(t, tpl), t}
}

func (b *box) python(source string) (any, error) { return b.Python(source) }

func (b *box) mustPython(source string) any {
	b.t.Helper()
	out, err := b.Python(source)
	if err != nil {
		b.t.Fatalf("%s: %v", source, err)
	}
	return out
}

func codeDir(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for name, text := range files {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	return dir
}

func TestSandboxRunsCode(t *testing.T) {
	d := newDriver(t, nil)
	b := clone(t, template(t, d, starling.Python311))
	if got := b.mustPython("import os; out = [os.getpid(), os.getuid(), os.listdir('/var/task')]"); fmt.Sprint(got) != "[1 1000 []]" {
		t.Fatalf("before attach: %v", got)
	}
	dir := codeDir(t, map[string]string{"main.py": "answer = 42\n"})
	must(t, b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
	if got := b.mustPython("import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
		t.Fatalf("after attach: %v", got)
	}
	if _, err := b.python("open('/var/task/x', 'w')"); err == nil || !strings.Contains(err.Error(), "OSError") && !strings.Contains(err.Error(), "PermissionError") {
		t.Fatalf("write to code: %v", err)
	}
	if err := b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}); starling.KindOf(err) != starling.Invalid {
		t.Fatalf("second attach: %v", err)
	}
	b.mustPython("print('hello', flush=True)")
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
