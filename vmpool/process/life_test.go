package process_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
	"starling/vmpool/process/processtest"
)

func TestExitTellsHow(t *testing.T) {
	tpl := template(t, newDriver(t, nil), starling.Python311)
	for source, want := range map[string]vmpool.Exit{
		"import os; os._exit(7)": {Code: 7},
		"import resource; x = []\nwhile True: x.append(bytearray(1 << 20))":                                                                    {Code: -1, Signal: "killed", OutOfMemory: true},
		"import ctypes, signal; signal.signal(11, signal.SIG_DFL); ctypes.string_at(0)":                                                        {Code: -1, Signal: "segmentation fault"},
		"import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)":                                                                            {Code: -1, Signal: "bad system call"},
		"import os\nfor i in range(3):\n  if os.fork() == 0: os.setsid()\nif os.getpid() == 1: os._exit(3)\nelse: import time; time.sleep(99)": {Code: 3},
	} {
		b := clone(t, tpl)
		if _, err := b.Python(source); err == nil {
			t.Fatalf("%s: came back", source)
		}
		if got := waitDone(t, b); got != want {
			t.Errorf("%s: %+v, want %+v", source, got, want)
		}
	}
}

func TestPauseStopsEveryProcess(t *testing.T) {
	processtest.PauseStopsEveryProcess(t, template(t, newDriver(t, nil), starling.Python311))
}

// bootstrapSource serves one call of the Runtime API and then reports itself to it.
const bootstrapSource = `#!/usr/bin/python3 -IS
import os, socket
s = socket.create_connection(os.environ["AWS_LAMBDA_RUNTIME_API"].split(":"))
fds = ",".join(f for f in sorted(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd/" + f))
s.sendall(("GET /hello?fds=%s&answer=%s HTTP/1.0\r\n\r\n" % (fds, os.environ["ANSWER"])).encode())
print(s.recv(4096).decode())
`

func TestProvidedRunsBootstrap(t *testing.T) {
	b := clone(t, template(t, newDriver(t, nil), starling.Provided))
	if b.Channel() != nil {
		t.Fatal("a provided sandbox has no framed channel")
	}
	asked := make(chan string, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.String() })}
	go func() { _ = server.Serve(b.Listener()) }()
	defer server.Close()
	must(t, b.Attach(context.Background(), vmpool.Code{Dir: codeDir(t, map[string]string{"bootstrap": bootstrapSource}), MemoryMiB: 128, Env: map[string]string{"ANSWER": "42"}}))
	select {
	case got := <-asked:
		// Descriptor 3 is the socket that asks, 4 the listing itself.
		if got != "/hello?fds=0,1,2,3&answer=42" && got != "/hello?fds=0,1,2,3,4&answer=42" {
			t.Fatalf("asked %s", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no request")
	}
	stdout, _ := b.Output()
	if text, err := io.ReadAll(stdout); err != nil || !strings.Contains(string(text), "200 OK") {
		t.Fatalf("output %q %v", text, err)
	}
	if e := waitDone(t, b); e.Code != 0 {
		t.Fatalf("exit %+v", e)
	}
}

func TestProvidedRefusesWhatIsNoBootstrap(t *testing.T) {
	processtest.ProvidedRefusesWhatIsNoBootstrap(t, template(t, newDriver(t, nil), starling.Provided))
}

func TestSandboxesListenApart(t *testing.T) {
	tpl := template(t, newDriver(t, nil), starling.Provided)
	a, b := clone(t, tpl), clone(t, tpl)
	if a.Listener().Addr().String() != vmpool.RuntimeAPI || b.Listener().Addr().String() != vmpool.RuntimeAPI {
		t.Fatal("both listen on the same address of different networks")
	}
	if c, err := net.DialTimeout("tcp", vmpool.RuntimeAPI, time.Second); err == nil {
		c.Close()
		t.Fatal("the host reaches a sandbox's listener")
	}
}

func TestFailedCloneLeavesNothing(t *testing.T) {
	cfg := testConfig(t)
	cfg.Command = func(starling.Runtime) []string { return []string{"/usr/bin/python3.11", "-c", "pass"} }
	cfg.SandboxMax = 1
	d := process.New(cfg)
	tpl := template(t, d, starling.Python311)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 20 {
		if s, err := tpl.Clone(ctx); err == nil {
			must(t, s.Close())
		}
	}
	s, err := tpl.Clone(context.Background()) // the one slot is free again
	must(t, err)
	if _, err := tpl.Clone(context.Background()); starling.KindOf(err) != starling.Unavailable {
		select {
		case <-s.Done(): // it ended at once, which freed the slot
		default:
			t.Fatalf("beyond the limit: %v", err)
		}
	}
	must(t, d.Close())
	leftNothing(t, cfg)
	if _, err := tpl.Clone(context.Background()); starling.KindOf(err) != starling.Unavailable {
		t.Fatalf("clone after close: %v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	cfg := testConfig(t)
	d := process.New(cfg)
	py, prov := template(t, d, starling.Python311), template(t, d, starling.Provided)
	for range 3 {
		b := clone(t, py)
		attach(t, b, codeDir(t, nil))
		b.MustPython("import os\nfor i in range(5):\n  if os.fork() == 0:\n    os.setsid()\n    while True: pass")
		clone(t, prov)
	}
	if len(processtest.Traces(cfg)) == 0 {
		t.Fatal("nothing to see while sandboxes run: the test looks in the wrong place")
	}
	must(t, d.Close())
	leftNothing(t, cfg)
}

func TestWardenIsReplaced(t *testing.T) {
	cfg := testConfig(t)
	d := process.New(cfg)
	tpl := template(t, d, starling.Python311)
	b := clone(t, tpl)
	attach(t, b, codeDir(t, nil))
	must(t, b.Pause())
	must(t, syscall.Kill(wardenOf(t), syscall.SIGKILL))
	waitDone(t, b)
	must(t, b.Close())
	again := clone(t, tpl)
	if got := again.MustPython("out = 1"); got != 1.0 {
		t.Fatal(got)
	}
	must(t, d.Close())
	leftNothing(t, cfg)
}

// wardenOf returns the process id of this process's warden.
func wardenOf(t testing.TB) int {
	t.Helper()
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, p := range stats {
		b, _ := os.ReadFile(p)
		f := strings.Fields(string(b))
		if len(f) > 3 && f[1] == "(starling-guest)" && f[3] == strconv.Itoa(os.Getpid()) {
			pid, _ := strconv.Atoi(f[0])
			return pid
		}
	}
	t.Fatal("no warden")
	return 0
}

func TestNodeKilled(t *testing.T) {
	processtest.NodeKilled(t, testConfig(t), syscall.SIGKILL, syscall.SIGTERM)
}

func TestTwoNodesWithOneTagDoNotSweepEachOther(t *testing.T) {
	cfg := testConfig(t)
	d := process.New(cfg)
	b := clone(t, template(t, d, starling.Python311))
	other := cfg
	other.Dir += "2"
	other.TakeOver = 100 * time.Millisecond
	o := process.New(other)
	_, err := o.BuildTemplate(context.Background(), vmpool.TemplateSpec{Runtime: starling.Python311})
	if starling.KindOf(err) != starling.Unavailable || !strings.Contains(err.Error(), "tag") {
		t.Fatalf("second node: %v", err)
	}
	must(t, o.Close())
	if got := b.MustPython("out = 1"); got != 1.0 {
		t.Fatal(got)
	}
	must(t, d.Close())
	leftNothing(t, cfg)
}

func TestCheckFindsThisMachineFit(t *testing.T) {
	for _, f := range process.Check(context.Background()) {
		t.Logf("%-12s %-5v %s", f.Name, f.OK, f.Detail)
		if !f.OK && f.Fix == "" {
			t.Errorf("%s fails and says not what to do", f.Name)
		}
	}
}

func TestBadSettingsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*process.Config){
		"tag":     func(c *process.Config) { c.Tag = "../x" },
		"path":    func(c *process.Config) { c.GuestPath = "starling-guest" },
		"tmp":     func(c *process.Config) { c.TmpBytes = 0 },
		"cpu":     func(c *process.Config) { c.CPUMin = 0 },
		"binary":  func(c *process.Config) { c.GuestPath = "/nowhere/starling-guest" },
		"cgroups": func(c *process.Config) { c.CgroupRoot = "/nowhere" },
	} {
		d := newDriver(t, change)
		_, err := d.BuildTemplate(context.Background(), vmpool.TemplateSpec{Runtime: starling.Python311})
		if k := starling.KindOf(err); k != starling.Invalid && k != starling.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}
