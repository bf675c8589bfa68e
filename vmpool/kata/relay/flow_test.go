package relay

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

var somewhere = netip.MustParseAddrPort("10.7.0.10:5432")

// function makes a connection as the function does: one end is the function's, the other the agent's.
func function(t testing.TB) (fn *net.TCPConn, agent *os.File) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	c, err := net.Dial("tcp4", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	a, err := l.Accept()
	must(t, err)
	f, err := a.(*net.TCPConn).File()
	must(t, err)
	a.Close()
	return c.(*net.TCPConn), f
}

// flows runs a node and a guest, and returns the guest and what its flows become at the node.
func flows(t testing.TB) (guest *Relay, taken chan *Flow) {
	taken = make(chan *Flow, flowMax)
	n, g := ends(t, Config{Flow: func(to netip.AddrPort, f *Flow) {
		if to != somewhere {
			t.Errorf("a flow to %s, want %s", to, somewhere)
		}
		taken <- f
	}}, Config{})
	run(t, n, g)
	return g, taken
}

// left waits until a relay has no flow any more.
func (r *Relay) left(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		n, streams := r.flows, len(r.streams)
		r.mu.Unlock()
		if n == 0 && streams == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d flows are left, %d streams", n, streams)
		}
	}
}

// A flow carries bytes both ways, each direction to its own end.
func TestFlowEndsEachDirectionByItself(t *testing.T) {
	g, taken := flows(t)
	fn, agent := function(t)
	must(t, g.OpenFlow(agent, somewhere))
	f := <-taken
	question, answer := bytes.Repeat([]byte("question"), 100_000), bytes.Repeat([]byte("answer"), 100_000)
	go func() { fn.Write(question); fn.CloseWrite() }()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, question) {
		t.Fatalf("%d bytes arrived of %d: %v", len(got), len(question), err)
	}
	go func() { f.Write(answer); f.CloseWrite() }()
	if got, err := io.ReadAll(fn); err != nil || !bytes.Equal(got, answer) {
		t.Fatalf("%d bytes came back of %d: %v", len(got), len(answer), err)
	}
	g.left(t)
	f.r.left(t)
}

// A server that speaks first is heard, however soon it does.
func TestFirstWordOfTheOtherEndArrives(t *testing.T) {
	n, g := ends(t, Config{Flow: func(_ netip.AddrPort, f *Flow) {
		go func() { f.Write([]byte("hello")); f.CloseWrite() }()
	}}, Config{})
	run(t, n, g)
	for range 100 {
		fn, agent := function(t)
		must(t, g.OpenFlow(agent, somewhere))
		if got, err := io.ReadAll(fn); err != nil || string(got) != "hello" {
			t.Fatalf("the function reads %q, %v", got, err)
		}
		fn.Close()
	}
}

// What is refused the function sees reset, not ended; and what it resets itself is reset at the node.
func TestResetsGoThrough(t *testing.T) {
	g, taken := flows(t)
	fn, agent := function(t)
	must(t, g.OpenFlow(agent, somewhere))
	(<-taken).Abort()
	if _, err := fn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a connection that was refused reads %v", err)
	}
	fn, agent = function(t)
	must(t, g.OpenFlow(agent, somewhere))
	f := <-taken
	must(t, fn.SetLinger(0))
	must(t, fn.Close())
	if _, err := f.Read(make([]byte, 1)); err != ErrReset {
		t.Errorf("a connection that the function reset reads %v", err)
	}
	if _, err := f.Write([]byte{1}); err == nil {
		t.Error("it can be written to")
	}
	g.left(t)
	f.r.left(t)
}

// Flows that nobody reads, at either end, hold up neither another flow nor the Runtime API.
func TestStalledFlowsHoldUpNothing(t *testing.T) {
	g, taken := flows(t)
	node, theirs := sockets(t)
	api, ours := sockets(t)
	var n *Relay
	for range 50 {
		fn, agent := function(t)
		must(t, g.OpenFlow(agent, somewhere))
		f := <-taken
		n = f.r
		go fn.Write(make([]byte, 16<<20)) // nobody reads it at the node
		go f.Write(make([]byte, 16<<20))  // nor this in the guest
	}
	must(t, n.Join(Calls, theirs, theirs))
	must(t, g.Join(Calls, ours, ours))
	fn, agent := function(t)
	must(t, g.OpenFlow(agent, somewhere))
	f := <-taken
	go io.Copy(f, f)
	for range 50 {
		for _, c := range []struct{ to, from io.ReadWriter }{{fn, fn}, {node, api}} {
			go c.to.Write(make([]byte, 10_000))
			if _, err := io.ReadFull(c.from, make([]byte, 10_000)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A guest has so many flows and no more; one more is reset, and others go on.
func TestFlowsOverTheLimitAreReset(t *testing.T) {
	g, taken := flows(t)
	var last *net.TCPConn
	for range flowMax {
		fn, agent := function(t)
		must(t, g.OpenFlow(agent, somewhere))
		last = fn
	}
	fn, agent := function(t)
	if err := g.OpenFlow(agent, somewhere); err == nil {
		t.Error("a flow over the limit is opened")
	}
	if _, err := fn.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a connection over the limit reads %v", err)
	}
	for range flowMax - 1 {
		(<-taken).Abort()
	}
	go func() { f := <-taken; f.Write([]byte("x")) }()
	if _, err := io.ReadFull(last, make([]byte, 1)); err != nil {
		t.Errorf("one within the limit reads %v", err)
	}
}

func TestDatagramsArriveWithTheirAddresses(t *testing.T) {
	type datagram struct {
		from, to netip.AddrPort
		text     string
	}
	heard := make(chan datagram, 2)
	take := func(from, to netip.AddrPort, b []byte) { heard <- datagram{from, to, string(b)} }
	n, g := ends(t, Config{Datagram: take}, Config{Datagram: take})
	run(t, n, g)
	fn := netip.MustParseAddrPort("127.0.0.1:40000")
	for r, d := range map[*Relay]datagram{g: {fn, somewhere, "question"}, n: {somewhere, fn, ""}} {
		must(t, r.Datagram(d.from, d.to, []byte(d.text)))
		if got := <-heard; got != d {
			t.Errorf("heard %+v, want %+v", got, d)
		}
	}
	if err := g.Datagram(fn, somewhere, make([]byte, DatagramMax+1)); err == nil {
		t.Error("a datagram that is too long is sent")
	}
	must(t, g.Datagram(fn, somewhere, make([]byte, DatagramMax)))
	if got := <-heard; len(got.text) != DatagramMax {
		t.Errorf("%d bytes arrive of the longest datagram", len(got.text))
	}
}

// A guest that opens flows and takes no word of their end is cut off before the node has kept much for it.
func TestGuestThatTakesNoWordIsCutOff(t *testing.T) {
	a, b := sockets(t)
	n := New(a, Config{Flow: func(_ netip.AddrPort, f *Flow) { f.Abort() }})
	done := make(chan error)
	go func() { done <- n.Run() }()
	go func() { // opens, and never reads
		opens := bytesOf(append([]byte{6, 0, 0, 0, 16, 0, typeFlow, 0}, 10, 7, 0, 10, 0, 80), 1000)
		for {
			if _, err := b.Write(opens); err != nil {
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it ended without a complaint")
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
	b.Close()
}

// A writer that waits for a guest that takes nothing is freed when the sandbox ends.
func TestEndFreesWhoWaitsForTheGuest(t *testing.T) {
	a, b := sockets(t)
	defer b.Close()
	taken := make(chan *Flow, 1)
	n := New(a, Config{Flow: func(_ netip.AddrPort, f *Flow) { taken <- f }})
	done := make(chan error)
	go func() { done <- n.Run() }()
	_, err := b.Write(append([]byte{6, 0, 0, 0, 16, 0, typeFlow, 0}, 10, 7, 0, 10, 0, 80))
	must(t, err)
	f := <-taken
	waits := make(chan error, 3)
	go func() { _, err := f.Read(make([]byte, 1)); waits <- err }()
	go func() { _, err := f.Write(make([]byte, 2*window)); waits <- err }()
	go func() {
		for {
			if err := n.Datagram(somewhere, somewhere, make([]byte, DatagramMax)); err != nil {
				waits <- err
				return
			}
		}
	}()
	time.Sleep(10 * time.Millisecond) // most of the time they wait by then; if not, they fail at once
	n.Abort()
	for range 3 {
		select {
		case err := <-waits:
			if err == nil {
				t.Error("it was done for nobody")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("somebody waits on")
		}
	}
	<-done
}
