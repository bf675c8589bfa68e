package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/internal/audit"
	"starling/internal/judge"
)

// A netCluster is three nodes as processes, each in a network namespace of its own, that reach each other through
// a relay. Only one goroutine starts and ends processes.
type netCluster struct {
	net       *testNet
	relay     *relay
	http      *http.Client
	root      string
	bin       string     // the program
	key, boss string     // keys of a user and of the administrator
	nodes     []*netNode // numbered from 1; the first is nil
}

// A netNode is one of them. Its addresses stay; its process, and after a lost disk its data and id, do not.
type netNode struct {
	number      int
	name, dir   string
	args        []string
	http, admin *client.HTTP
	cmd         *exec.Cmd
	last        *os.ProcessState // how the last process ended
	log         *os.File

	mu    sync.Mutex // guards lives
	lives []judge.Life
}

func (n *netNode) addr(port int) string { return fmt.Sprintf("%s:%d", netAddr(n.number), port) }

// front is where other nodes reach it: at the relay.
func (n *netNode) front() string { return fmt.Sprintf("%s:%d", netHub, frontPort(n.number)) }

// life names the process that runs now.
func (n *netNode) life() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprintf("%s/%d", n.name, len(n.lives))
}

func startNetCluster(t *testing.T, seed uint64) *netCluster {
	t.Helper()
	if _, err := os.Stat("/sys/fs/cgroup"); err != nil {
		t.Skipf("real sandboxes need control groups: %v", err)
	}
	n := newTestNet(t, 3)
	c := &netCluster{net: n, relay: newRelay(t, n, seed), http: n.hub.httpClient(), root: t.TempDir(), nodes: []*netNode{nil}, bin: starlingBinary(t)}
	if *e2e {
		c.bin = crashBinary(t)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	for i := 1; i <= 3; i++ {
		node := &netNode{number: i, name: fmt.Sprintf("node%d", i), dir: filepath.Join(c.root, fmt.Sprintf("node%d", i))}
		c.nodes = append(c.nodes, node)
		node.args = []string{"node", "--data", node.dir, "--name", node.name, "--listen", node.addr(nodePort()), "--advertise", node.front(),
			"--http", node.addr(8080), "--admin", node.addr(8081), "--pool", "1"}
		if i == 1 {
			var made struct{ Key, AdminKey string }
			out := starlingCLI(t, nil, "cluster", "init", "--data", node.dir, "--listen", node.addr(nodePort()), "--advertise", node.front(),
				"--name", "test", "--partitions", "8", "-o", "json")
			if err := json.Unmarshal([]byte(out), &made); err != nil {
				t.Fatalf("cluster init printed %q: %v", out, err)
			}
			c.key, c.boss = made.Key, made.AdminKey
		}
		base := "http://" + node.addr(8080)
		node.http, node.admin = client.NewHTTP(base, c.key, client.WithHTTPClient(c.http)), client.NewHTTP(base, c.boss, client.WithHTTPClient(c.http))
		t.Cleanup(func() { node.end(t, syscall.SIGKILL) })
		extra := []string(nil)
		if i > 1 {
			extra = c.invitation(t, c.nodes[1])
		}
		c.start(t, node, extra...)
		c.ready(t, node, 30*time.Second)
	}
	c.voters(t, 3, 20*time.Second)
	t.Cleanup(func() { c.keepLogs(t) })
	return c
}

// invitation lets a new node in, by a member that lives.
func (c *netCluster) invitation(t *testing.T, by *netNode) []string {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		token, err := by.admin.CreateToken(t.Context(), protocol.TokenSpec{})
		if err == nil {
			return []string{"--join", by.front(), "--token", token.Token}
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// start begins the next life of a node.
func (c *netCluster) start(t testing.TB, n *netNode, extra ...string) {
	t.Helper()
	n.mu.Lock()
	life := len(n.lives) + 1
	n.lives = append(n.lives, judge.Life{Name: fmt.Sprintf("%s/%d", n.name, life)})
	n.mu.Unlock()
	if n.log == nil {
		f, err := os.OpenFile(n.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		n.log = f
	}
	fmt.Fprintf(n.log, "--- life %d\n", life)
	n.cmd = exec.Command(c.bin, append(append([]string{}, n.args...), append(extra, "--audit", n.audit(life))...)...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.Env = append(os.Environ(), sharedKernel, "STARLING_CRASH="+n.crashFile())
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // with the space's thread, which ends with the test
	var err error
	c.net.spaces[n.number].do(func() { err = n.cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
}

func (n *netNode) audit(life int) string { return fmt.Sprintf("%s.audit%d", n.dir, life) }

// end ends the process by a signal and notes when it was gone. A node that does not obey SIGTERM shows its stacks.
func (n *netNode) end(t testing.TB, s syscall.Signal) {
	if n.cmd == nil {
		return
	}
	n.cmd.Process.Signal(s)
	done := make(chan struct{})
	go func() { n.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(40 * time.Second):
		t.Errorf("%s did not stop within 40 s of %v", n.name, s)
		n.cmd.Process.Signal(syscall.SIGQUIT)
		<-done
	}
	n.mu.Lock()
	n.lives[len(n.lives)-1].Died = audit.Now()
	n.mu.Unlock()
	n.last, n.cmd = n.cmd.ProcessState, nil
	n.log.Close()
	n.log = nil
}

// says reports whether a page of the node's admin address holds text; any page that answers 200 when text is empty.
func (c *netCluster) says(n *netNode, path, text string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.addr(8081)+path, nil)
	res, err := c.http.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	var b strings.Builder
	buf := make([]byte, 32<<10)
	for err == nil {
		var k int
		k, err = res.Body.Read(buf)
		b.Write(buf[:k])
	}
	return res.StatusCode == http.StatusOK && strings.Contains(b.String(), text)
}

// date returns what time a node says it is.
func (c *netCluster) date(n *netNode) (time.Time, error) {
	res, err := c.http.Get("http://" + n.addr(8081) + "/readyz")
	if err != nil {
		return time.Time{}, err
	}
	res.Body.Close()
	return http.ParseTime(res.Header.Get("Date"))
}

// ready waits until the node serves.
func (c *netCluster) ready(t testing.TB, n *netNode, limit time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(limit); !c.says(n, "/readyz", ""); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(n.dir + ".log")
			t.Fatalf("%s was not ready within %v; the end of its log:\n%s", n.name, limit, text[max(0, len(text)-6000):])
		}
	}
}

// voters waits until some node leads a group of want.
func (c *netCluster) voters(t testing.TB, want int, limit time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if l := c.leader(); l != nil && c.says(l, "/metrics", fmt.Sprintf("starling_manager_voters %d\n", want)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody came to lead %d voters within %v", want, limit)
		}
	}
}

// leader returns the node that leads the managers, or nil.
func (c *netCluster) leader() *netNode {
	for _, n := range c.nodes[1:] {
		if c.says(n, "/metrics", "starling_manager_leads 1\n") {
			return n
		}
	}
	return nil
}

// lives returns what all processes wrote down. Call it when all have ended.
func (c *netCluster) lives(t *testing.T) (all []judge.Life) {
	t.Helper()
	for _, n := range c.nodes[1:] {
		for i, l := range n.lives {
			f, err := os.Open(n.audit(i + 1))
			if os.IsNotExist(err) {
				continue // it was killed before it opened it
			}
			if err != nil {
				t.Fatal(err)
			}
			l.Records, err = audit.Read(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, l)
		}
	}
	return all
}

func (c *netCluster) keepLogs(t *testing.T) {
	if *keepLog == "" {
		return
	}
	files, _ := filepath.Glob(filepath.Join(c.root, "*.*"))
	for _, f := range files {
		text, _ := os.ReadFile(f)
		os.WriteFile(filepath.Join(*keepLog, t.Name()+"-"+filepath.Base(f)), text, 0o600)
	}
}

// deploy makes the functions that are called: one program under several names, so that their keys lie in several partitions.
func (c *netCluster) deploy(t *testing.T, count int) (names []starling.FunctionName) {
	t.Helper()
	zip, err := os.Open(filepath.Join(repo(t), "bin/functions/echo-go.zip"))
	if err != nil {
		t.Fatalf("%v: run \"make functions\" first", err)
	}
	defer zip.Close()
	code, err := c.nodes[1].http.PutCode(t.Context(), zip, -1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		config := starling.Config{Runtime: starling.Provided, TimeoutMS: 5000}
		name := starling.FunctionName(fmt.Sprintf("echo%d", i))
		if _, err := c.nodes[1].http.CreateFunction(t.Context(), protocol.FunctionSpec{Name: name, Config: &config, Code: code.Hash}); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}
