package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"starling/vmpool/kata/relay"
	"starling/vmpool/process/jail"
)

// TestExitCatchesWhatIsSentOut runs the guest's half of a network in a namespace of its own, in a process of its own, without a VM.
func TestExitCatchesWhatIsSentOut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	const inside = "STARLING_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		catchAll(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestExitCatchesWhatIsSentOut$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// catchAll is a guest whose node answers every connection and datagram with where it was for.
func catchAll(t *testing.T) {
	must(t, jail.RaiseLoopback())
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	var node *relay.Relay
	node = relay.New(os.NewFile(uintptr(fds[0]), "node"), relay.Config{
		Flow: func(to netip.AddrPort, f *relay.Flow) {
			go func() {
				if to.Port() == 9 {
					f.Abort()
					return
				}
				fmt.Fprint(f, to)
				f.CloseWrite()
				io.Copy(io.Discard, f)
			}()
		},
		Datagram: func(from, to netip.AddrPort, d []byte) {
			text := fmt.Appendf(nil, "%s for %s", d, to)
			go node.Datagram(to, from, text)
		}})
	g := &guest{exit: newExit(), connected: make(chan struct{}), fresh: freshAll}
	must(t, g.exit.missing)
	g.relay = relay.New(os.NewFile(uintptr(fds[1]), "guest"), relay.Config{Datagram: g.exit.answer})
	close(g.connected)
	go node.Run()
	go g.relay.Run()

	if c, err := net.Dial("tcp4", "10.7.0.10:80"); err == nil {
		c.Close()
		t.Fatal("the way is open before it is opened")
	}
	if c, err := net.Dial("tcp4", "127.0.0.1:1"); err == nil {
		c.Close()
		t.Fatal("the agent's own socket is heard before the way is open")
	}
	_, err = g.letOut(nil)
	must(t, err)
	if _, err := g.letOut(nil); err == nil {
		t.Error("the way is opened twice")
	}
	for _, to := range []string{"10.7.0.10:80", "169.254.169.254:8080", "8.8.8.8:53", "127.0.0.1:53"} {
		c, err := net.DialTimeout("tcp4", to, 5*time.Second)
		must(t, err)
		if text, err := io.ReadAll(c); err != nil || string(text) != to {
			t.Errorf("a connection to %s is one to %s, %v", to, text, err)
		}
		c.Close()
		if text := tell(t, to); text != "hello for "+to {
			t.Errorf("a datagram to %s: %q", to, text)
		}
	}
	for _, own := range []string{"127.0.0.1:1", "127.0.0.1:80", "127.0.0.2:53"} {
		if c, err := net.Dial("tcp4", own); err == nil {
			c.Close()
			t.Errorf("somebody listens at %s", own)
		}
	}
	c, err := net.Dial("tcp4", "10.7.0.10:9")
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) { // which may come before the one who dials is told that he is connected
		t.Errorf("a connection that is refused: %v", err)
	}
}

// tell sends a datagram and returns the answer, which must come from where it was sent to.
func tell(t *testing.T, to string) string {
	t.Helper()
	c, err := net.Dial("udp4", to) // connected: hears nobody else
	must(t, err)
	defer c.Close()
	must(t, c.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = c.Write([]byte("hello"))
	must(t, err)
	b := make([]byte, 100)
	n, err := c.Read(b)
	must(t, err)
	return string(b[:n])
}
