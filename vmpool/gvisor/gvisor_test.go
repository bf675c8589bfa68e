package gvisor_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/gvisor"
	"starling/vmpool/process"
	"starling/vmpool/process/attack"
	"starling/vmpool/process/processtest"
)

func TestMain(m *testing.M) { os.Exit(processtest.Main(m)) }

// What the tests here share with those of the process driver, by shorter names.
var (
	template    = processtest.Template
	clone       = processtest.Clone
	codeDir     = processtest.CodeDir
	attach      = processtest.Attach
	waitDone    = processtest.WaitDone
	leftNothing = processtest.LeftNothing
)

func testConfig(t testing.TB) process.Config {
	t.Helper()
	return gvisor.Config(processtest.Config(t), processtest.Runsc(t))
}

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

func TestSandboxHasAKernelOfItsOwn(t *testing.T) {
	d := newDriver(t)
	b := clone(t, template(t, d, starling.Python311))
	if got := b.MustPython("import os; out = [os.getpid(), os.getuid(), os.listdir('/var/task')]"); fmt.Sprint(got) != "[1 1000 []]" {
		t.Fatalf("before attach: %v", got)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	must(t, err)
	if got := b.MustPython("import os; out = os.uname().release"); got == strings.TrimSpace(string(release)) {
		t.Fatalf("the kernel inside is the host's: %v", got)
	}
	dir := codeDir(t, map[string]string{"main.py": "answer = 42\n"})
	attach(t, b, dir)
	if got := b.MustPython("import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
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
		b := clone(t, tpl)
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
	processtest.PauseStopsEveryProcess(t, template(t, newDriver(t), starling.Python311))
}

// bootstrapSource serves one call of the Runtime API and then reports itself to it.
const bootstrapSource = `#!/usr/bin/python3 -IS
import os, socket, sys
s = socket.create_connection(os.environ["AWS_LAMBDA_RUNTIME_API"].split(":"))
s.sendall(("GET /hello?uid=%d&answer=%s HTTP/1.0\r\n\r\n" % (os.getuid(), os.environ["ANSWER"])).encode())
sys.exit(5 if "200 OK" in s.recv(4096).decode() else 6)
`

func TestProvidedRunsBootstrap(t *testing.T) {
	b := clone(t, template(t, newDriver(t), starling.Provided))
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
	processtest.ProvidedRefusesWhatIsNoBootstrap(t, template(t, newDriver(t), starling.Provided))
}

func TestNodeKilled(t *testing.T) { processtest.NodeKilled(t, testConfig(t), syscall.SIGKILL) }

// TestAttacks is the escape suite; what a sandbox's own kernel answers proves nothing there, the host is the judge.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("the escape suite is slow; run it without -short")
	}
	cfg := testConfig(t)
	cfg.TmpBytes, cfg.TmpInodes = 64<<20, 4096
	d := process.New(cfg)
	defer func() { must(t, d.Close()); leftNothing(t, cfg) }()
	attack.Run(t, attack.Target{
		Template: template(t, d, starling.Python311), MemoryMiB: 192, MostMiB: 1769, TmpBytes: cfg.TmpBytes, TmpInodes: cfg.TmpInodes, OwnKernel: true, Few: true,
		Processes: cfg.ProcessesMax, Files: cfg.Files, SpareMiB: 128, Secrets: processtest.Secrets(cfg), PIDs: process.Processes,
	})
}
