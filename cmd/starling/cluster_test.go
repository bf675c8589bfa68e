package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	name, dir   string
	quic        string // host:port of its QUIC endpoint
	args        []string
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

// freePort returns a port that was free for TCP and UDP a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
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

// starlingCLI runs the binary once and returns its standard output.
func starlingCLI(t testing.TB, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command(starlingBinary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		t.Fatalf("starling %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), diag.String())
	}
	return out.String()
}

// startCluster makes a cluster of n nodes with all roles and waits until each is ready.
func startCluster(t *testing.T, n int) *testCluster {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("real sandboxes need root")
	}
	c := &testCluster{}
	root := t.TempDir()
	for i := range n {
		node := newTestNode(t, fmt.Sprintf("node%d", i+1), filepath.Join(root, fmt.Sprintf("node%d", i+1)))
		c.nodes = append(c.nodes, node)
		if i == 0 {
			var made struct{ Key, AdminKey string }
			out := starlingCLI(t, nil, "cluster", "init", "--data", node.dir, "--listen", node.quic, "--name", "test", "-o", "json")
			if err := json.Unmarshal([]byte(out), &made); err != nil {
				t.Fatalf("cluster init printed %q: %v", out, err)
			}
			c.key, c.root = made.Key, made.AdminKey
		} else {
			env := []string{"STARLING_SERVER=" + c.nodes[0].url, "STARLING_KEY=" + c.root}
			token := strings.TrimSpace(starlingCLI(t, env, "cluster", "token"))
			node.args = append(node.args, "--join", c.nodes[0].quic, "--token", token)
		}
		node.http, node.admin = client.NewHTTP(node.url, c.key), client.NewHTTP(node.url, c.root)
		node.start(t)
		t.Cleanup(node.stop)
		node.ready(t, 30*time.Second)
	}
	return c
}

func (c *testCluster) stop() {
	for _, n := range c.nodes {
		n.stop()
	}
}

func newTestNode(t testing.TB, name, dir string) *testNode {
	quic, web, health := freePort(t), freePort(t), freePort(t)
	return &testNode{name: name, dir: dir, quic: quic, url: "http://" + web, health: "http://" + health,
		args: []string{"node", "--data", dir, "--name", name, "--listen", quic, "--http", web, "--admin", health, "--pool", "2"}}
}

func (n *testNode) start(t testing.TB) {
	t.Helper()
	n.cmd = exec.Command(starlingBinary(t), n.args...)
	if n.log == nil {
		f, err := os.Create(n.dir + ".log")
		if err != nil {
			t.Fatal(err)
		}
		n.log = f
	}
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
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
	case <-time.After(30 * time.Second):
		n.cmd.Process.Kill()
		<-done
	}
	n.cmd = nil
	n.log.Close()
	n.log = nil
}
