package relay

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sockets returns two ends of a connection.
func sockets(t testing.TB) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	return os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
}

func pipes(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	return r, w
}

// ends returns a node's and a guest's relay over one connection; both run until the test ends.
func ends(t testing.TB, node, guest Config) (n, g *Relay) {
	t.Helper()
	a, b := sockets(t)
	n, g = New(a, node), New(b, guest)
	return n, g
}

func run(t testing.TB, relays ...*Relay) {
	t.Helper()
	done := make(chan error, len(relays))
	for _, r := range relays {
		go func() { done <- r.Run() }()
	}
	t.Cleanup(func() {
		relays[0].conn.Close()
		for range relays {
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Error("a relay does not end with its connection")
			}
		}
	})
}

// TestStreamsCarryEverythingInOrder sends more than the window on two streams at once, while a third is not read at all.
func TestStreamsCarryEverythingInOrder(t *testing.T) {
	n, g := ends(t, Config{}, Config{})
	outR, outW := pipes(t) // guest's output
	errR, errW := pipes(t)
	gotOut, intoOut := pipes(t)
	gotErr, intoErr := pipes(t) // nobody reads it
	must(t, g.Join(Stdout, outR, nil))
	must(t, g.Join(Stderr, errR, nil))
	must(t, n.Join(Stdout, nil, intoOut))
	must(t, n.Join(Stderr, nil, intoErr))
	node, theirs := sockets(t)
	guest, ours := sockets(t)
	must(t, n.Join(Calls, theirs, theirs))
	must(t, g.Join(Calls, ours, ours))
	run(t, n, g)
	go errW.Write(make([]byte, 1<<20)) // blocks for good: it must hold up nothing else
	data := make([]byte, 3<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	go func() { outW.Write(data); outW.Close() }()
	go func() { node.Write(data); unix.Shutdown(int(node.Fd()), unix.SHUT_WR) }()
	echoed := make(chan []byte)
	go func() { b, _ := io.ReadAll(guest); echoed <- b }()
	got, err := io.ReadAll(gotOut)
	must(t, err)
	if !bytes.Equal(got, data) {
		t.Errorf("output: %d bytes arrived of %d, or other ones", len(got), len(data))
	}
	if got := <-echoed; !bytes.Equal(got, data) {
		t.Errorf("calls: %d bytes arrived of %d, or other ones", len(got), len(data))
	}
	errW.Close()
	gotErr.Close()
}

// TestOutputGoesAheadOfAnswers: what was printed before an answer lies in the node's pipe when the answer arrives.
func TestOutputGoesAheadOfAnswers(t *testing.T) {
	n, g := ends(t, Config{}, Config{First: []uint16{Stdout}})
	outR, outW := pipes(t)
	got, into := pipes(t)
	must(t, unix.SetNonblock(int(got.Fd()), true))
	must(t, g.Join(Stdout, outR, nil))
	must(t, n.Join(Stdout, nil, into))
	node, theirs := sockets(t)
	guest, ours := sockets(t)
	must(t, n.Join(Calls, theirs, theirs))
	must(t, g.Join(Calls, ours, ours))
	run(t, n, g)
	for i := range 200 {
		line := strings.Repeat("x", 1+i%50)
		outW.WriteString(line)
		guest.Write([]byte{1})
		if _, err := io.ReadFull(node, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		c, err := unix.Read(int(got.Fd()), b)
		if err != nil || string(b[:c]) != line {
			t.Fatalf("answer %d came before the output: %q, %v", i, b[:max(c, 0)], err)
		}
	}
}

// TestGuestOpensStreams: connections that the guest opens arrive as connections, and end when either side closes.
func TestGuestOpensStreams(t *testing.T) {
	accepted := make(chan *os.File, 10)
	n, g := ends(t, Config{Open: func() (*os.File, error) {
		a, b := sockets(t)
		accepted <- a
		return b, nil
	}}, Config{})
	run(t, n, g)
	for range 3 {
		local, theirs := sockets(t)
		must(t, g.Open(theirs))
		conn, err := net.FileConn(local)
		must(t, err)
		remote := <-accepted
		conn.Write([]byte("hello"))
		b := make([]byte, 5)
		if _, err := io.ReadFull(remote, b); err != nil || string(b) != "hello" {
			t.Fatalf("read %q, %v", b, err)
		}
		remote.Write([]byte("world"))
		if _, err := io.ReadFull(conn, b); err != nil || string(b) != "world" {
			t.Fatalf("read %q, %v", b, err)
		}
		remote.Close()
		if _, err := conn.Read(b); err != io.EOF {
			t.Fatalf("the other end closed, and reading gives %v", err)
		}
		conn.Close()
		local.Close()
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		left := len(g.streams)
		g.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d streams are left", left)
		}
	}
}

// TestHostileGuestLosesItsConnection sends what no relay sends.
func TestHostileGuestLosesItsConnection(t *testing.T) {
	frame := func(length uint32, id uint16, typ byte, body ...byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, length)
		b = binary.LittleEndian.AppendUint16(b, id)
		return append(append(b, typ, 0), body...)
	}
	for name, bytes := range map[string][]byte{
		"long frame":   frame(1<<31, Stdout, typeData),
		"strange type": frame(0, Stdout, 99),
		"no right":     frame(0, Opened, typeOpen),
		"short credit": frame(1, Stdout, typeCredit, 1),
		"a flow":       frame(6, Opened, typeFlow, 10, 7, 0, 10, 0, 80),
		"a datagram":   frame(12, 0, typeDgram, make([]byte, 12)...),
		"a reset":      frame(0, Stdout, typeReset),
		"false credit": frame(4, Stdout, typeCredit, 1, 0, 0, 0),
		// What the pipe takes at once, 64 KiB, gives the peer as much credit again.
		"over a window": bytesOf(frame(bodyMax, Stdout, typeData, make([]byte, bodyMax)...), 2*window/bodyMax+2),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := sockets(t)
			n := New(a, Config{})
			reads, into := pipes(t)
			defer reads.Close() // nobody reads from it, and yet it is open
			must(t, n.Join(Stdout, nil, into))
			done := make(chan error)
			go func() { done <- n.Run() }()
			b.Write(bytes)
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), "protocol") {
					t.Fatalf("it ended with %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("it goes on")
			}
			b.Close()
		})
	}
}

func bytesOf(b []byte, n int) (out []byte) {
	for range n {
		out = append(out, b...)
	}
	return out
}

func FuzzRelay(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 0, 1, 0})
	f.Add([]byte{4, 0, 0, 0, 2, 0, 2, 0, 1, 2, 3, 4})
	f.Add([]byte{0, 0, 0, 0, 16, 0, 3, 0, 1, 0, 0, 0, 16, 0, 1, 0, 9})
	f.Add([]byte{6, 0, 0, 0, 16, 0, 5, 0, 10, 7, 0, 10, 0, 80, 2, 0, 0, 0, 16, 0, 1, 0, 1, 2, 0, 0, 0, 0, 16, 0, 4, 0}) // a flow, data, its end
	f.Add([]byte{6, 0, 0, 0, 17, 0, 5, 0, 10, 7, 0, 10, 0, 80, 0, 0, 0, 0, 17, 0, 6, 0})                                // and a reset
	f.Add([]byte{13, 0, 0, 0, 0, 0, 7, 0, 127, 0, 0, 1, 1, 1, 10, 7, 0, 10, 0, 53, 9})                                  // a datagram
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := sockets(t)
		n := New(a, Config{Open: func() (*os.File, error) { c, d := sockets(t); c.Close(); return d, nil },
			Flow: func(_ netip.AddrPort, f *Flow) {
				go func() { io.Copy(f, f); f.CloseWrite(); f.Close() }()
			},
			Datagram: func(from, to netip.AddrPort, b []byte) {
				if !from.Addr().Is4() || !to.Addr().Is4() || len(b) > DatagramMax {
					t.Errorf("a datagram of %d bytes from %s to %s", len(b), from, to)
				}
			}})
		got, into := pipes(t)
		defer got.Close()
		must(t, n.Join(Stdout, nil, into))
		done := make(chan struct{})
		go func() { n.Run(); close(done) }()
		b.Write(data)
		b.Close()
		<-done
	})
}
