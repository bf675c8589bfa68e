package vpcproxy

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/cluster/identity"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/gateway"
	"starling/vpcproxy/netns"
)

// Helpers are processes of their own for tests with more connections than one process may have descriptors. A helper answers each line of its
// standard input with a view of itself, and ends with its parent.

// A view is what a process has.
type view struct {
	Descriptors, Routines, Reset int
	RSS, Heap                    float64 // KiB
	CPU                          time.Duration
	Numbers                      string // of a gateway
}

// look returns what this process has; of memory what is left when all that is free was given back.
func look(t testing.TB) view {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	v := view{Descriptors: len(all), Routines: runtime.NumGoroutine(), Heap: float64(m.HeapAlloc+m.StackInuse) / 1024, CPU: cpu()}
	text, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			v.RSS, err = strconv.ParseFloat(strings.Fields(rest)[0], 64)
			must(t, err)
		}
	}
	return v
}

// A helper is such a process.
type helper struct {
	t    testing.TB
	cmd  *exec.Cmd
	say  io.WriteCloser
	hear *bufio.Reader
	said string // its first line
}

const helperRole = "STARLING_TEST_HELPER"

// help starts a helper that has files as descriptors from 3 on, and waits until it says that it is at work.
func help(t testing.TB, role string, files []*os.File, args ...string) *helper {
	t.Helper()
	h := &helper{t: t, cmd: exec.Command("/proc/self/exe", "-test.run", "^TestHelper$", "-test.timeout", "10m", "-test.count", "1")}
	h.cmd.Env = append(os.Environ(), helperRole+"="+strings.Join(append([]string{role}, args...), " "))
	h.cmd.ExtraFiles, h.cmd.Stderr = files, os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	h.say, err = h.cmd.StdinPipe()
	must(t, err)
	out, err := h.cmd.StdoutPipe()
	must(t, err)
	h.hear = bufio.NewReader(out)
	runtime.LockOSThread() // whose end would be the helper's
	must(t, h.cmd.Start())
	t.Cleanup(func() { h.end(); runtime.UnlockOSThread() })
	h.said, err = h.hear.ReadString('\n')
	must(t, err)
	return h
}

// look asks what the helper has.
func (h *helper) look() (v view) {
	h.t.Helper()
	_, err := io.WriteString(h.say, "\n")
	must(h.t, err)
	line, err := h.hear.ReadBytes('\n')
	must(h.t, err)
	must(h.t, json.Unmarshal(line, &v))
	return v
}

func (h *helper) end() {
	h.say.Close()
	_, _ = io.Copy(io.Discard, h.hear) // until it has ended
	_ = h.cmd.Wait()                   // as what it ended does not matter
}

// TestHelper is no test, but the main function of helpers.
func TestHelper(t *testing.T) {
	args := strings.Fields(os.Getenv(helperRole))
	if len(args) == 0 {
		t.Skip("it is for processes that other tests start")
	}
	var r unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &r))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: r.Max, Max: r.Max}))
	see := func() view { return look(t) }
	said := "at work"
	switch args[0] {
	case "gateway":
		g := helperGateway(t, args[1], atoi(t, args[2]))
		said = g.node.Addr
		see = func() view {
			v := look(t)
			v.Numbers = string(numbers(g))
			return v
		}
	case "servers":
		helperServers(t)
	case "crowd":
		c := gather(t, atoi(t, args[1]), atoi(t, args[2]))
		see = func() view {
			v := look(t)
			v.Reset = int(c.reset.Load())
			return v
		}
	}
	out := json.NewEncoder(os.Stdout)
	_, err := os.Stdout.WriteString(said + "\n")
	must(t, err)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		must(t, out.Encode(see()))
	}
}

func atoi(t testing.TB, text string) int {
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

// helperGateway is a gateway with the uplinks of acme and zeta as descriptors 3 and 4, at which an account may have as many flows. dir has the CA.
func helperGateway(t testing.TB, dir string, conns int) *gatewayNode {
	ca, err := identity.LoadCA(dir)
	must(t, err)
	w := &world{t: t, ca: ca, tenants: map[starling.AccountID]*tenant{}, networks: networks(t), signer: newSigner()}
	for i, account := range []starling.AccountID{"acme", "zeta"} {
		w.tenants[account] = &tenant{uplink: os.NewFile(uintptr(3+i), string(account))}
	}
	w.addGateway(ca, 10, func(c *gateway.Config) {
		c.AccountLimits, c.Handover = flowtable.Limits{Conns: conns, Rate: 2_000}, gateway.Handover{}
	})
	return w.gateways[0]
}

// helperServers are a tenant's, in the namespace that is descriptor 3: on port 9081 one that sends as fast as it can, and on 9082 one that reads.
func helperServers(t testing.TB) {
	inside := os.NewFile(3, "tenant")
	for addr, serve := range map[string]func(net.Conn){"0.0.0.0:9081": func(c net.Conn) { sendForEver(c, 16<<10) }, // which is of another machine in life
		"0.0.0.0:9082": countBytes} {
		var l net.Listener
		must(t, netns.Do(inside, func() (err error) {
			l, err = net.Listen("tcp4", addr)
			return err
		}))
		go answer(l, serve)
	}
}
