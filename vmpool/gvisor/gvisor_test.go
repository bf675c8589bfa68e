package gvisor_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/gvisor"
	"starling/vmpool/process"
	"starling/vmpool/process/attack"
)

// guest and runsc are the binaries that the driver starts, the one built for all tests of the package.
var guest, runsc string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	runsc, _ = filepath.Abs("../../bin/runsc")
	if guest = os.Getenv("STARLING_TEST_GUEST"); guest != "" {
		return m.Run() // a node of TestNodeKilled, which ends without a chance to tidy up
	}
	dir, err := os.MkdirTemp("", "starling-gvisor-test")
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
	if _, err := os.Stat(runsc); err != nil {
		t.Skip("no bin/runsc: run \"make runsc\"")
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
	return gvisor.Config(cfg, runsc)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDriver(t testing.TB) *process.Driver {
	t.Helper()
	cfg := testConfig(t)
	d := process.New(cfg)
	t.Cleanup(func() { must(t, d.Close()); leftNothing(t, cfg) })
	return d
}

func template(t testing.TB, d *process.Driver, r starling.Runtime) vmpool.Template {
	t.Helper()
	tpl, err := d.BuildTemplate(context.Background(), vmpool.TemplateSpec{Runtime: r})
	must(t, err)
	return tpl
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

func attach(t testing.TB, b *attack.Box, dir string) {
	t.Helper()
	must(t, b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}))
}

func mustPython(t testing.TB, b *attack.Box, source string) any {
	t.Helper()
	out, err := b.Python(source)
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return out
}

func waitDone(t testing.TB, s vmpool.Sandbox) vmpool.Exit {
	t.Helper()
	select {
	case <-s.Done():
		return s.Exit()
	case <-time.After(20 * time.Second):
		t.Fatal("the sandbox did not end")
		return vmpool.Exit{}
	}
}

func TestSandboxHasAKernelOfItsOwn(t *testing.T) {
	d := newDriver(t)
	b := attack.NewBox(t, template(t, d, starling.Python311))
	if got := mustPython(t, b, "import os; out = [os.getpid(), os.getuid(), os.listdir('/var/task')]"); fmt.Sprint(got) != "[1 1000 []]" {
		t.Fatalf("before attach: %v", got)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	must(t, err)
	if got := mustPython(t, b, "import os; out = os.uname().release"); got == strings.TrimSpace(string(release)) {
		t.Fatalf("the kernel inside is the host's: %v", got)
	}
	dir := codeDir(t, map[string]string{"main.py": "answer = 42\n"})
	attach(t, b, dir)
	if got := mustPython(t, b, "import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
		t.Fatalf("after attach: %v", got)
	}
	if _, err := b.Python("open('/var/task/x', 'w')"); err == nil {
		t.Fatal("the code can be written")
	}
	if err := b.Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128}); starling.KindOf(err) != starling.Invalid {
		t.Fatalf("second attach: %v", err)
	}
	s, err := b.Stats()
	must(t, err)
	if s.MemoryBytes < 8<<20 || s.CPU == 0 {
		t.Fatalf("the kernel of the sandbox is not counted: %+v", s)
	}
}

func TestExitTellsHow(t *testing.T) {
	tpl := template(t, newDriver(t), starling.Python311)
	for source, want := range map[string]vmpool.Exit{
		"import os; os._exit(7)": {Code: 7},
		"import ctypes, signal; signal.signal(11, signal.SIG_DFL); ctypes.string_at(0)": {Code: -1, Signal: "segmentation fault"},
		"x = []\nwhile True: x.append(bytearray(1 << 20))":                              {Code: -1, Signal: "killed", OutOfMemory: true},
	} {
		b := attack.NewBox(t, tpl)
		attach(t, b, codeDir(t, nil))
		if _, err := b.Python(source); err == nil {
			t.Fatalf("%s: came back", source)
		}
		if got := waitDone(t, b); got != want {
			t.Errorf("%s: %+v, want %+v", source, got, want)
		}
	}
}

func TestPauseStopsEveryProcess(t *testing.T) {
	b := attack.NewBox(t, template(t, newDriver(t), starling.Python311))
	attach(t, b, codeDir(t, nil))
	mustPython(t, b, "import os\nif os.fork() == 0:\n  while True: pass")
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

// bootstrapSource serves one call of the Runtime API and then reports itself to it.
const bootstrapSource = `#!/usr/bin/python3 -IS
import os, socket, sys
s = socket.create_connection(os.environ["AWS_LAMBDA_RUNTIME_API"].split(":"))
s.sendall(("GET /hello?uid=%d&answer=%s HTTP/1.0\r\n\r\n" % (os.getuid(), os.environ["ANSWER"])).encode())
sys.exit(5 if "200 OK" in s.recv(4096).decode() else 6)
`

func TestProvidedRunsBootstrap(t *testing.T) {
	b := attack.NewBox(t, template(t, newDriver(t), starling.Provided))
	asked := make(chan string, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.String() })}
	go func() { _ = server.Serve(b.Listener()) }()
	defer server.Close()
	must(t, b.Attach(context.Background(), vmpool.Code{Dir: codeDir(t, map[string]string{"bootstrap": bootstrapSource}), MemoryMiB: 128, Env: map[string]string{"ANSWER": "42"}}))
	select {
	case got := <-asked:
		if got != "/hello?uid=1000&answer=42" {
			t.Fatalf("asked %s", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no request")
	}
	if e := waitDone(t, b); e.Code != 5 {
		t.Fatalf("exit %+v", e)
	}
}

func TestProvidedRefusesWhatIsNoBootstrap(t *testing.T) {
	tpl := template(t, newDriver(t), starling.Provided)
	plain := codeDir(t, map[string]string{"bootstrap": "#!/bin/sh\n"})
	must(t, os.Chmod(filepath.Join(plain, "bootstrap"), 0o644))
	for name, dir := range map[string]string{
		"missing": codeDir(t, nil), "not executable": plain,
		"for another machine": codeDir(t, map[string]string{"bootstrap": "\x7fELF\x01\x01\x01 nothing"}),
		"without interpreter": codeDir(t, map[string]string{"bootstrap": "#!/nowhere/sh\n"}),
	} {
		err := attack.NewBox(t, tpl).Attach(context.Background(), vmpool.Code{Dir: dir, MemoryMiB: 128})
		if starling.KindOf(err) != starling.Failed || starling.ReasonOf(err) != starling.ErrEntrypoint {
			t.Errorf("%s: %v (%s)", name, err, starling.ReasonOf(err))
		}
	}
}

// TestNodeKilled runs a node in a process of its own, kills it without warning and looks for traces.
func TestNodeKilled(t *testing.T) {
	if dir := os.Getenv("STARLING_TEST_NODE"); dir != "" {
		nodeForTest(t, dir)
		return
	}
	cfg := testConfig(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNodeKilled$", "-test.v")
	cmd.Env = append(os.Environ(), "STARLING_TEST_NODE="+cfg.Dir, "STARLING_TEST_TAG="+cfg.Tag, "STARLING_TEST_GUEST="+guest, "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	seen, buf := "", make([]byte, 4096)
	for !strings.Contains(seen, "sandboxes are up") {
		n, err := out.Read(buf)
		seen += string(buf[:n])
		if err != nil {
			t.Fatalf("the node did not start: %s", seen)
		}
	}
	must(t, cmd.Process.Signal(syscall.SIGKILL))
	_ = cmd.Wait()
	_ = os.Remove(filepath.Join(cfg.Dir, "root")) // the node's own folder, empty; its next life would use it
	leftNothing(t, cfg)
}

func nodeForTest(t *testing.T, dir string) {
	cfg := testConfig(t)
	cfg.Dir, cfg.Tag = dir, os.Getenv("STARLING_TEST_TAG")
	d := process.New(cfg)
	b := attack.NewBox(t, template(t, d, starling.Python311))
	attach(t, b, codeDir(t, nil))
	mustPython(t, b, "import os\nif os.fork() == 0:\n  os.setsid()\n  while True: pass")
	attack.NewBox(t, template(t, d, starling.Provided))
	fmt.Println("sandboxes are up")
	select {}
}

// leftNothing fails when a cgroup, a process or the scratch folder of the driver is still there after a while.
func leftNothing(t testing.TB, cfg process.Config) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := traces(cfg)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

func traces(cfg process.Config) (left []string) {
	left, _ = filepath.Glob("/sys/fs/cgroup/*/starling-" + cfg.Tag)
	texts, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, path := range texts {
		if text, _ := os.ReadFile(path); strings.Contains(string(text), "starling-"+cfg.Tag) {
			left = append(left, "process "+filepath.Base(filepath.Dir(path)))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), cfg.Dir) {
		left = append(left, "a mount below "+cfg.Dir)
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, "root")); err == nil {
		left = append(left, cfg.Dir)
	}
	return left
}

// TestAttacks is the escape suite; what a sandbox's own kernel answers proves nothing there, the host is the judge.
func TestAttacks(t *testing.T) {
	if testing.Short() || os.Getenv("STARLING_ATTACK_GVISOR") == "" {
		t.Skip("the escape suite of gVisor takes minutes: \"make attack\" runs it")
	}
	cfg := testConfig(t)
	cfg.TmpBytes, cfg.TmpInodes = 64<<20, 4096
	d := process.New(cfg)
	defer func() { must(t, d.Close()); leftNothing(t, cfg) }()
	secrets := []string{cfg.Dir, filepath.Dir(cfg.Dir), cfg.GuestPath, cfg.Tag, "starling-test", "/sys/fs/cgroup", os.TempDir() + "/"}
	if host, _ := os.Hostname(); len(host) > 3 { // a shorter name turns up by chance
		secrets = append(secrets, host)
	}
	attack.Run(t, attack.Target{
		Template: template(t, d, starling.Python311), MemoryMiB: 192, TmpBytes: cfg.TmpBytes, TmpInodes: cfg.TmpInodes, OwnKernel: true,
		Processes: cfg.ProcessesMax, Files: cfg.Files, SpareMiB: 128, Secrets: secrets, PIDs: process.Processes,
	})
}
