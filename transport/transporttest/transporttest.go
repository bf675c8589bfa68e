// Package transporttest holds what every transport must do, as tests that the real one and the one in memory
// both run.
package transporttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/transport"
)

// A Node is an endpoint that has not been opened.
type Node interface {
	transport.Endpoint
	Listen() error
}

// A Maker returns the endpoint of a node at an address, "" for any. Nodes of one maker belong to one cluster.
type Maker func(t *testing.T, node starling.NodeID, addr string) Node

const patience = 10 * time.Second

// Run runs the contract.
func Run(t *testing.T, newMaker func(t *testing.T) Maker) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, Maker)
	}{
		{"Echo", echoes}, {"HalfClose", halfClose}, {"Cancel", cancels}, {"NoHandler", noHandler},
		{"NobodyThere", nobodyThere}, {"Deadline", deadline}, {"CloseWaits", closeWaits}, {"Restart", restart},
		{"Bulk", bulk}, {"Links", links}, {"Respond", respond},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, newMaker(t)) })
	}
}

func peers() chan transport.Peer { return make(chan transport.Peer, 1) }
func failures() chan error       { return make(chan error, 1) }
func buffer() []byte             { return make([]byte, 16) }

// open listens and closes with the test.
func open(t *testing.T, n Node) Node {
	t.Helper()
	if err := n.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func mustOpen(t *testing.T, from Node, to transport.Endpoint, ch transport.Channel) transport.Stream {
	t.Helper()
	s, err := from.Open(within(t), to.Addr(), ch)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func echo(s transport.Stream) {
	io.Copy(s, s)
	s.CloseWrite()
}

func echoes(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	peers := peers()
	b.Handle(transport.ChannelActor, func(s transport.Stream) {
		peers <- s.Peer()
		echo(s)
	})
	open(t, b)
	s := mustOpen(t, a, b, transport.ChannelActor)
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	s.CloseWrite()
	got, err := io.ReadAll(s)
	if err != nil || string(got) != "hello" {
		t.Fatalf("read %q, %v", got, err)
	}
	if p := <-peers; p.Node != 1 || p.Addr == "" {
		t.Errorf("the acceptor sees %+v, want node 1 with an address", p)
	}
	if p := s.Peer(); p.Node != 2 || p.Addr != b.Addr() {
		t.Errorf("the opener sees %+v, want node 2 at %s", p, b.Addr())
	}
}

func halfClose(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	b.Handle(transport.ChannelCode, func(s transport.Stream) {
		all, err := io.ReadAll(s)
		if err != nil {
			return
		}
		sum := sha256.Sum256(all)
		s.Write(sum[:])
		s.CloseWrite()
	})
	open(t, b)
	s := mustOpen(t, a, b, transport.ChannelCode)
	data := bytes.Repeat([]byte("starling"), 10_000)
	if _, err := s.Write(data); err != nil {
		t.Fatal(err)
	}
	s.CloseWrite()
	got, err := io.ReadAll(s)
	want := sha256.Sum256(data)
	if err != nil || !bytes.Equal(got, want[:]) {
		t.Fatalf("the answer after our end: %x, %v", got, err)
	}
}

func cancels(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	ended := failures()
	b.Handle(transport.ChannelActor, func(s transport.Stream) {
		s.Write([]byte("up"))
		_, err := io.ReadAll(s)
		ended <- err
	})
	open(t, b)
	s := mustOpen(t, a, b, transport.ChannelActor)
	if _, err := io.ReadFull(s, buffer()[:2]); err != nil { // the peer has it
		t.Fatal(err)
	}
	s.Cancel()
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("a write after Cancel went well")
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the peer took a cancelled stream for a finished one")
		}
	case <-time.After(patience):
		t.Fatal("the peer still reads")
	}
}

func noHandler(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), open(t, make(t, 2, ""))
	s := mustOpen(t, a, b, transport.ChannelLogs)
	_, err := io.ReadAll(s)
	if starling.KindOf(err) != starling.Unavailable {
		t.Fatalf("a channel that nobody serves: %v, want Unavailable", err)
	}
}

func nobodyThere(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), open(t, make(t, 2, ""))
	addr := b.Addr()
	b.Close()
	_, err := a.Open(within(t), addr, transport.ChannelActor)
	if starling.KindOf(err) != starling.Unavailable {
		t.Fatalf("nobody there: %v, want Unavailable", err)
	}
	start := time.Now()
	if _, err = a.Open(within(t), addr, transport.ChannelActor); starling.KindOf(err) != starling.Unavailable || time.Since(start) > 500*time.Millisecond {
		t.Errorf("known to be down: %v after %v, want Unavailable at once", err, time.Since(start))
	}
}

func deadline(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	b.Handle(transport.ChannelActor, echo)
	open(t, b)
	s := mustOpen(t, a, b, transport.ChannelActor)
	s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Read(buffer()); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a read past its deadline: %v", err)
	}
	s.SetReadDeadline(time.Time{})
	s.Write([]byte("late"))
	buf := buffer()
	if n, err := io.ReadFull(s, buf[:4]); err != nil || string(buf[:n]) != "late" {
		t.Fatalf("after the deadline was lifted: %q, %v", buf[:n], err)
	}
	s.Cancel()
}

func closeWaits(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	var running atomic.Int32
	b.Handle(transport.ChannelActor, func(s transport.Stream) {
		running.Add(1)
		defer running.Add(-1)
		s.Write([]byte("up"))
		io.Copy(io.Discard, s)
	})
	open(t, b)
	s := mustOpen(t, a, b, transport.ChannelActor)
	if _, err := io.ReadFull(s, buffer()[:2]); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if n := running.Load(); n != 0 {
		t.Errorf("%d handlers run after Close", n)
	}
	start := time.Now()
	if _, err := s.Read(buffer()); err == nil || err == io.EOF || time.Since(start) > 500*time.Millisecond {
		t.Errorf("the peer of a closed endpoint: %v after %v, want an error at once", err, time.Since(start))
	}
	if err := b.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func restart(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	b.Handle(transport.ChannelActor, echo)
	open(t, b)
	mustOpen(t, a, b, transport.ChannelActor).Cancel()
	addr := b.Addr()
	b.Close()
	a.Open(within(t), addr, transport.ChannelActor)
	b2 := make(t, 2, addr)
	b2.Handle(transport.ChannelActor, echo)
	open(t, b2)
	start := time.Now()
	for {
		s, err := a.Open(within(t), addr, transport.ChannelActor)
		if err == nil {
			s.Write([]byte("again"))
			s.CloseWrite()
			if got, err := io.ReadAll(s); err == nil && string(got) == "again" {
				break
			}
		}
		if time.Since(start) > patience {
			t.Fatalf("no stream to a peer that came back: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("back after %v", time.Since(start).Round(time.Millisecond))
}

func bulk(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	b.Handle(transport.ChannelCode, echo)
	open(t, b)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			s, err := a.Open(within(t), b.Addr(), transport.ChannelCode)
			if err != nil {
				t.Error(err)
				return
			}
			data := bytes.Repeat([]byte{byte(i), 1, 2, 3, 4, 5, 6}, 1<<20/7)
			go func() {
				s.Write(data)
				s.CloseWrite()
			}()
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, data) {
				t.Errorf("stream %d: %d of %d bytes, %v", i, len(got), len(data), err)
			}
		})
	}
	all.Wait()
}

// links checks that Links calls, notices a lost peer and finds it again.
func links(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	serve := func(s transport.Stream) {
		l := transport.OpenLink(s, transport.LinkConfig{})
		defer l.Close()
		l.Serve(func(batch []transport.Frame) {
			for _, f := range batch {
				l.Send(f.Kind+1, f.ID, f.Body)
			}
		})
	}
	b.Handle(transport.ChannelInvoke, serve)
	open(t, b)
	down := failures()
	p := transport.NewLinks(transport.LinksConfig{Endpoint: a, Channel: transport.ChannelInvoke, Link: transport.LinkConfig{Inline: true},
		Down: func(_ string, err error) {
			select {
			case down <- err:
			default: // the first is looked at
			}
		}})
	defer p.Close()
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for j := range 20 {
				body := bytes.Repeat([]byte{byte(i), byte(j)}, 1+i*j)
				f, err := p.Call(within(t), b.Addr(), 7, nil, body)
				if err != nil || f.Kind != 8 || !bytes.Equal(f.Body, body) {
					t.Errorf("call %d/%d: kind %d, %d bytes, %v", i, j, f.Kind, len(f.Body), err)
					return
				}
			}
		})
	}
	all.Wait()
	addr := b.Addr()
	b.Close()
	select {
	case err := <-down:
		if starling.KindOf(err) != starling.Unavailable {
			t.Errorf("down with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("nobody said that the link is down")
	}
	if _, err := p.Call(within(t), addr, 7, nil); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("a call to a peer that is down: %v", err)
	}
	b2 := make(t, 2, addr)
	b2.Handle(transport.ChannelInvoke, serve)
	open(t, b2)
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if _, err := p.Call(within(t), addr, 7, nil); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the link does not come back: %v", err)
		}
	}
}

func respond(t *testing.T, make Maker) {
	a, b := open(t, make(t, 1, "")), make(t, 2, "")
	var atOnce, most atomic.Int32
	b.Handle(transport.ChannelControl, func(s transport.Stream) {
		transport.Respond(context.Background(), s, transport.LinkConfig{}, 4, func(ctx context.Context, req transport.Frame) (uint8, []byte) {
			n := atOnce.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(time.Millisecond)
			atOnce.Add(-1)
			return req.Kind, bytes.ToUpper(req.Body)
		})
	})
	open(t, b)
	p := transport.NewLinks(transport.LinksConfig{Endpoint: a, Channel: transport.ChannelControl})
	defer p.Close()
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			f, err := p.Call(within(t), b.Addr(), 1, nil, []byte("ab"), []byte("c"))
			if err != nil || string(f.Body) != "ABC" {
				t.Errorf("answer %q, %v", f.Body, err)
			}
		})
	}
	all.Wait()
	if most.Load() > 4 {
		t.Errorf("%d handlers at once, limit 4", most.Load())
	}
}
