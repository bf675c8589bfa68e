package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A space is a network namespace without a name: it is gone as soon as this process and those in it are, however
// they end. Work in it is done by one thread that never leaves it.
type space struct {
	file *os.File
	work chan func()
}

// newSpace makes an empty network namespace, or says why this process may not.
func newSpace() (*space, error) {
	s := &space{work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		made <- err
		if err != nil {
			return
		}
		for f := range s.work {
			f()
		}
	}()
	return s, <-made
}

// do runs f on the thread in the space and waits for it.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.work <- func() { defer close(done); f() }
	<-done
}

// run runs one command in the space.
func (s *space) run(t testing.TB, words string) {
	t.Helper()
	if err := s.try(words); err != nil {
		t.Fatal(err)
	}
}

// try is run for what may fail.
func (s *space) try(words string) (err error) {
	s.do(func() {
		args := strings.Fields(words)
		if out, e := exec.Command(args[0], args[1:]...).CombinedOutput(); e != nil {
			err = fmt.Errorf("%s: %w: %s", words, e, out)
		}
	})
	return err
}

// rules replaces the packet filter of the space; no rules remove it.
func (s *space) rules(rules ...string) (err error) {
	text := "add table inet faults\ndelete table inet faults\n"
	if len(rules) > 0 {
		text += "table inet faults {\nchain input {\ntype filter hook input priority 0; policy accept;\n" + strings.Join(rules, "\n") + "\n}\n}\n"
	}
	s.do(func() {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text)
		if out, e := cmd.CombinedOutput(); e != nil {
			err = fmt.Errorf("nft: %w: %s", e, out)
		}
	})
	return err
}

// hits returns how many packets the rules with a counter have met.
func (s *space) hits() (n int, err error) {
	return s.sum(`packets (\d+)`, "nft", "list", "table", "inet", "faults")
}

// shed returns how many packets the queue of the network card has dropped.
func (s *space) shed(t testing.TB) int {
	t.Helper()
	n, err := s.sum(`dropped (\d+)`, "tc", "-s", "qdisc", "show", "dev", "eth0")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sum adds up the numbers that a pattern finds in what a command prints.
func (s *space) sum(pattern string, args ...string) (n int, err error) {
	s.do(func() {
		out, e := exec.Command(args[0], args[1:]...).CombinedOutput()
		if e != nil {
			err = fmt.Errorf("%v: %w: %s", args, e, out)
			return
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(out), -1) {
			k, _ := strconv.Atoi(m[1])
			n += k
		}
	})
	return n, err
}

// path names the namespace for ip.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

func (s *space) close() {
	close(s.work)
	s.file.Close()
}

// dial connects from within the space, on a thread of its own.
func (s *space) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends here: it must not come back among the others
		if err = unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err == nil {
			conn, err = (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, addr)
		}
	}()
	<-done
	return conn, err
}

// httpClient speaks from within the space.
func (s *space) httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: s.dial, MaxIdleConnsPerHost: 32, IdleConnTimeout: time.Minute}}
}

// listen opens a UDP socket within the space.
func (s *space) listen(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	var conn net.PacketConn
	var err error
	s.do(func() { conn, err = net.ListenPacket("udp4", addr) })
	if err != nil {
		t.Fatal(err)
	}
	u := conn.(*net.UDPConn)
	u.SetReadBuffer(4 << 20)
	return u
}

// netHub is the address of the bridge, at which the relays are.
const netHub = "10.99.0.254"

func netAddr(i int) string { return fmt.Sprintf("10.99.0.%d", i) }

// A testNet is n namespaces, numbered from 1, at a bridge in one more.
type testNet struct {
	hub    *space
	spaces []*space // by number; the first is nil
}

// newTestNet makes the namespaces and joins them, or skips the test where that is not permitted.
func newTestNet(t *testing.T, n int) *testNet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, tool := range []string{"ip", "nft", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: run \"make needs\"", tool)
		}
	}
	hub, err := newSpace()
	if err != nil {
		t.Skipf("this machine permits no network namespaces: %v", err)
	}
	net := &testNet{hub: hub, spaces: []*space{nil}}
	t.Cleanup(net.close)
	for _, c := range []string{"ip link set lo up", "ip link add br0 type bridge", "ip addr add " + netHub + "/24 dev br0", "ip link set br0 up"} {
		hub.run(t, c)
	}
	for i := 1; i <= n; i++ {
		s, err := newSpace()
		if err != nil {
			t.Fatal(err)
		}
		net.spaces = append(net.spaces, s)
		hub.run(t, fmt.Sprintf("ip link add v%d type veth peer name eth0 netns %s", i, s.path()))
		hub.run(t, fmt.Sprintf("ip link set v%d master br0 up", i))
		for _, c := range []string{"ip link set lo up", "ip addr add " + netAddr(i) + "/24 dev eth0", "ip link set eth0 up"} {
			s.run(t, c)
		}
	}
	return net
}

func (n *testNet) close() {
	for _, s := range n.spaces[1:] {
		s.close()
	}
	n.hub.close()
}
