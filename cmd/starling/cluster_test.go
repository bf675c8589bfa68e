package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"starling/frontend/client"
)

// A testCluster is real nodes as processes on loopback, each with its own data directory.
type testCluster struct {
	nodes []*testNode
	key   string // of a user
	root  string // of the administrator
}

// A testNode is one process; it can be killed and started again over the same data.
type testNode struct {
	t           testing.TB
	name, dir   string
	quic        string // host:port of its QUIC endpoint
	args        []string
	roles       string // "" for all
	bin         string // "" for the binary of this commit
	mute        bool   // nobody says that accounts may share its kernel
	url, health string
	http, admin *client.HTTP
	cmd         *exec.Cmd
	log         *os.File
	lives       atomic.Int64 // raised by every kill
}

func repo(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// starlingBinary returns the binary that "make build" made; make runs it before the tests.
func starlingBinary(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(repo(t), "bin/starling")
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: run \"make build\" first", err)
	}
	return bin
}

// portsGiven are those that freePort has returned: a node binds its own a while later, and tests run beside each other.
var portsGiven sync.Map

// freePort returns a port that was free for TCP and UDP a moment ago, and each only once. It lies below those that the kernel gives
// to whoever dials: with 30 nodes one of them was taken before its node began.
func freePort(t testing.TB) string {
	t.Helper()
	for range 50 {
		addr := fmt.Sprintf("127.0.0.1:%d", 12_000+rand.IntN(20_000))
		if _, given := portsGiven.LoadOrStore(addr, true); given {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", addr)
		l.Close()
		if err == nil {
			u.Close()
			return addr
		}
	}
	t.Fatal("no port is free for both TCP and UDP")
	return ""
}

// binary returns what the node runs.
func (n *testNode) binary(t testing.TB) string {
	if n.bin != "" {
		return n.bin
	}
	return starlingBinary(t)
}

// starlingCLI runs the binary once and returns its standard output.
func starlingCLI(t testing.TB, env []string, args ...string) string {
	t.Helper()
	return runCLI(t, starlingBinary(t), env, args...)
}

func runCLI(t testing.TB, bin string, env []string, args ...string) string {
	t.Helper()
	out, err := tryCLI(bin, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tryCLI is runCLI for a goroutine that isn't the test's: it must not end the test itself.
func tryCLI(bin string, env []string, args ...string) (string, error) {
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("starling %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), diag.String())
	}
	return out.String(), nil
}

// A testKind says what one node of a cluster is.
type testKind struct {
	roles string   // "" for all
	bin   string   // "" for the binary of this commit
	parts string   // partitions of a cluster whose first node it is; "" for the default
	args  []string // further ones of its command line
	mute  bool     // nobody says that accounts may share its kernel
}

// does reports whether the node has a role.
func (n *testNode) does(role string) bool {
	return n.roles == "" || slices.Contains(strings.Split(n.roles, ","), role)
}

// frontends returns the nodes that answer calls and operators.
func (c *testCluster) frontends() []*testNode {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return !n.does("frontend") })
}

// startCluster makes a cluster of n nodes with all roles and waits until each is ready.
func startCluster(t *testing.T, n int) *testCluster {
	t.Helper()
	return startNodes(t, make([]testKind, n)...)
}

// startNodes makes a cluster and waits until each node is ready. The first is a manager and a frontend.
func startNodes(t *testing.T, kinds ...testKind) *testCluster {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("real sandboxes need root")
	}
	c := &testCluster{}
	root := t.TempDir()
	if *keepLog != "" {
		t.Cleanup(func() {
			for _, n := range c.nodes {
				text, _ := os.ReadFile(n.dir + ".log")
				os.WriteFile(filepath.Join(*keepLog, strings.ReplaceAll(t.Name(), "/", "-")+"-"+n.name+".log"), text, 0o600)
			}
		})
	}
	t.Cleanup(func() { c.end(t) })
	for i, kind := range kinds {
		node := newTestNode(t, fmt.Sprintf("node%d", i+1), filepath.Join(root, fmt.Sprintf("node%d", i+1)))
		node.roles, node.bin, node.mute = kind.roles, kind.bin, kind.mute
		node.args = append(node.args, kind.args...)
		if kind.roles != "" {
			node.args = append(node.args, "--roles", kind.roles)
		}
		c.nodes = append(c.nodes, node)
		if i == 0 {
			var made struct{ Key, AdminKey string }
			args := []string{"cluster", "init", "--data", node.dir, "--listen", node.quic, "--name", "test", "-o", "json"}
			if kind.roles != "" {
				args = append(args, "--roles", kind.roles)
			}
			if kind.parts != "" {
				args = append(args, "--partitions", kind.parts)
			}
			out := runCLI(t, node.binary(t), nil, args...)
			if err := json.Unmarshal([]byte(out), &made); err != nil {
				t.Fatalf("cluster init printed %q: %v", out, err)
			}
			c.key, c.root = made.Key, made.AdminKey
		} else {
			env := []string{"STARLING_SERVER=" + c.nodes[0].url, "STARLING_KEY=" + c.root}
			ask := []string{"cluster", "token"}
			if node.does("gateway") && kind.roles != "" {
				ask = append(ask, "--roles", kind.roles)
			}
			token := strings.TrimSpace(runCLI(t, node.binary(t), env, ask...))
			node.args = append(node.args, "--join", c.nodes[0].quic, "--token", token)
		}
		node.http, node.admin = client.NewHTTP(node.url, c.key), client.NewHTTP(node.url, c.root)
		node.start(t)
		if kind.roles == "" {
			node.ready(t, 30*time.Second)
		} else if i == 0 {
			node.listens(t) // it is ready when there are schedulers
		}
	}
	for _, n := range c.nodes {
		n.ready(t, 30*time.Second)
	}
	c.replicated(t)
	return c
}

// replicated waits until every node that may vote does: a cluster of three that has just been made survives no
// death before.
func (c *testCluster) replicated(t *testing.T) {
	t.Helper()
	managers := len(slices.DeleteFunc(slices.Clone(c.nodes), func(n *testNode) bool { return !n.does("manager") }))
	c.nodes[0].shows(t, "starling_manager_voters", float64(managers-(managers+1)%2))
}

// stop ends all nodes at once as an operator does: each waits seconds for others to take its partitions.
func (c *testCluster) stop() {
	var wg sync.WaitGroup
	for _, n := range c.nodes {
		wg.Go(n.stop)
	}
	wg.Wait()
}

// end stops a node that is alone; of several it kills all that still run, which saves those seconds, and nothing of them may be left.
func (c *testCluster) end(t *testing.T) {
	t.Helper()
	if len(c.nodes) == 1 {
		c.stop()
	}
	families := map[*testNode][]testProcess{}
	for _, n := range c.nodes {
		if n.cmd != nil {
			families[n] = n.below(t)
		}
	}
	since := time.Now()
	for n := range families {
		n.kill(t)
	}
	for n, family := range families {
		n.noOrphans(t, family, since)
		n.log.Close()
	}
}

// sharedKernel lets tests make several accounts; by the environment, because an older release has no flag for it.
const sharedKernel = "STARLING_NODE_ALLOW_SHARED_KERNEL=true"

func newTestNode(t testing.TB, name, dir string) *testNode {
	quic, web, health := freePort(t), freePort(t), freePort(t)
	return &testNode{t: t, name: name, dir: dir, quic: quic, url: "http://" + web, health: "http://" + health,
		args: []string{"node", "--data", dir, "--name", name, "--listen", quic, "--http", web, "--admin", health, "--pool", "2"}}
}

func (n *testNode) start(t testing.TB) {
	t.Helper()
	n.cmd = exec.Command(n.binary(t), n.args...)
	if n.log == nil {
		f, err := os.OpenFile(n.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		n.log = f
	}
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if !n.mute {
		n.cmd.Env = append(os.Environ(), sharedKernel)
	}
	if err := startChild(n.cmd); err != nil {
		t.Fatal(err)
	}
}

// listens waits until the node answers anything.
func (n *testNode) listens(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if res, err := http.Get(n.url + "/v1/whoami"); err == nil {
			res.Body.Close()
			return
		}
	}
	t.Fatalf("%s does not listen on %s", n.name, n.url)
}

// ready waits until the node says that it serves.
func (n *testNode) ready(t testing.TB, limit time.Duration) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		res, err := http.Get(n.health + "/readyz")
		if err == nil {
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	text, _ := os.ReadFile(n.dir + ".log")
	t.Fatalf("%s was not ready within %v; its log:\n%s", n.name, limit, text)
}

// kill ends the node with SIGKILL, as a power cut would.
func (n *testNode) kill(t testing.TB) {
	t.Helper()
	n.lives.Add(1)
	if err := n.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n.cmd.Wait()
	n.cmd = nil
}

// A testProcess is one process for sure: its number may be another's later.
type testProcess struct {
	pid     int
	started string // in ticks since boot
}

// processes returns every process of the machine with its parent.
func processes(t testing.TB) map[testProcess]int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	all := map[testProcess]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name may hold anything, so count from its closing bracket: state, parent, ..., start time.
		f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, _ := strconv.Atoi(f[1])
		if f[0] != "Z" {
			all[testProcess{pid, f[19]}] = parent
		}
	}
	return all
}

// family returns the processes below a node that has any: the warden and all that runs in sandboxes.
func (n *testNode) family(t testing.TB) []testProcess {
	t.Helper()
	family := n.below(t)
	if len(family) == 0 {
		t.Fatalf("%s has no process below it: there is nothing to see die", n.name)
	}
	return family
}

// below returns the processes below a node.
func (n *testNode) below(t testing.TB) (family []testProcess) {
	t.Helper()
	all := processes(t)
	for level := []int{n.cmd.Process.Pid}; len(level) > 0; {
		var next []int
		for p, parent := range all {
			if slices.Contains(level, parent) {
				family = append(family, p)
				next = append(next, p.pid)
			}
		}
		level = next
	}
	return family
}

// noOrphans fails the test when twenty seconds after since anything is left of the node: a process of its former
// family or a cgroup.
func (n *testNode) noOrphans(t testing.TB, family []testProcess, since time.Time) {
	t.Helper()
	_, port, _ := net.SplitHostPort(n.quic)
	for {
		all := processes(t)
		left := slices.DeleteFunc(slices.Clone(family), func(p testProcess) bool { _, lives := all[p]; return !lives })
		groups, err := filepath.Glob("/sys/fs/cgroup/*/starling-*-" + port)
		if err != nil {
			t.Fatal(err)
		}
		behind, err := filepath.Glob("/sys/fs/cgroup/*/starling-*-" + port + "-behind")
		if err != nil {
			t.Fatal(err)
		}
		groups = append(groups, behind...)
		if len(left) == 0 && len(groups) == 0 {
			t.Logf("%s: %d processes and their cgroups are gone %v after its death", n.name, len(family), time.Since(since).Round(time.Millisecond))
			return
		}
		if time.Since(since) > 20*time.Second {
			t.Errorf("%s died %v ago and left processes %v and cgroups %v", n.name, time.Since(since), left, groups)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// gaveUp waits until the node has ended by itself and returns its exit code and its log; one that goes on is killed, and has no code.
func (n *testNode) gaveUp(limit time.Duration) (code int, says string) {
	cmd := n.cmd
	defer time.AfterFunc(limit, func() { cmd.Process.Kill() }).Stop()
	cmd.Wait()
	code = cmd.ProcessState.ExitCode()
	n.cmd = nil
	text, _ := os.ReadFile(n.dir + ".log")
	return code, string(text)
}

// restart ends the node as an operator does and starts it again over the same data.
func (n *testNode) restart(t testing.TB) {
	t.Helper()
	n.stop()
	n.start(t)
	n.ready(t, 20*time.Second)
}

// stop ends the node as an operator does and waits; it may be called twice.
func (n *testNode) stop() {
	if n.cmd == nil {
		return
	}
	n.lives.Add(1)
	n.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	cmd := n.cmd
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		n.t.Errorf("%s does not stop: the end of its log shows where it hangs", n.name)
		n.cmd.Process.Signal(syscall.SIGQUIT)
		<-done
	}
	n.cmd = nil
	n.log.Close()
	n.log = nil
}
