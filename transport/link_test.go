package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling"
)

// byThree gives its bytes three at a time.
type byThree struct{ left []byte }

func (b *byThree) Read(p []byte) (int, error) {
	if len(b.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(3, len(p))], b.left)
	b.left = b.left[n:]
	return n, nil
}

// pipeStream makes a Stream of a net.Conn.
type pipeStream struct{ net.Conn }

func (p pipeStream) CloseWrite() error { return p.Conn.Close() }
func (p pipeStream) Cancel()           { p.Conn.Close() }
func (p pipeStream) Peer() Peer        { return Peer{Node: 9} }

func streams() (a, b Stream) {
	x, y := net.Pipe() // unbuffered: a write waits for its reader
	return pipeStream{x}, pipeStream{y}
}

func TestFramesSentDuringAWriteLeaveTogether(t *testing.T) {
	for _, inline := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := streams()
			l := OpenLink(a, LinkConfig{Inline: inline})
			defer l.Close()
			defer b.Cancel()
			go l.Send(1, 0, []byte("first")) // blocks in its write: nobody reads yet
			synctest.Wait()
			for i := range 10 {
				if err := l.Send(1, uint64(i+1), []byte("more")); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 4096)
			n, _ := b.Read(buf)
			if f, size, _ := NextFrame(buf[:n]); size != n || string(f.Body) != "first" {
				t.Fatalf("inline=%t: the first write is %d bytes", inline, n)
			}
			n, _ = b.Read(buf)
			if want := 10 * (frameLength + frameHead + 4); n != want {
				t.Errorf("inline=%t: the second write is %d bytes, want all ten frames, %d", inline, n, want)
			}
		})
	}
}

func TestInlineSenderHandsOverAfterAFewRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streams()
		l := OpenLink(a, LinkConfig{Inline: true})
		defer l.Close()
		defer b.Cancel()
		returned := false
		go func() {
			l.Send(1, 0)
			returned = true
		}()
		buf := make([]byte, 64)
		for i := range inlineRounds + 3 { // somebody always has one more frame
			synctest.Wait()
			if i > inlineRounds && !returned {
				t.Fatalf("the first sender still writes for others in round %d", i)
			}
			l.Send(1, 1)
			if _, err := io.ReadFull(b, buf[:frameLength+frameHead]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestFullLinkRefuses(t *testing.T) {
	a, b := streams()
	defer b.Cancel()
	l := OpenLink(a, LinkConfig{PendingMax: 4096})
	defer l.Close()
	body := make([]byte, 1000)
	var err error
	for i := 0; i < 20 && err == nil; i++ {
		err = l.Send(1, 0, body)
	}
	if starling.KindOf(err) != starling.Overloaded {
		t.Errorf("a peer that reads nothing: %v, want Overloaded", err)
	}
	if err := l.Send(1, 0, make([]byte, FrameBodyMax+1)); starling.KindOf(err) != starling.TooLarge {
		t.Errorf("a body over the limit: %v", err)
	}
}

func TestStalledPeerLosesTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streams()
		defer b.Cancel()
		l := OpenLink(a, LinkConfig{})
		defer l.Close()
		l.Send(1, 0)
		start := time.Now()
		<-l.Done()
		if d := time.Since(start); d != writeStall || starling.KindOf(l.Err()) != starling.Unavailable {
			t.Errorf("ended after %v: %v", d, l.Err())
		}
	})
}

func TestReaderHandsOverWhatHasArrived(t *testing.T) {
	a, b := streams()
	l := OpenLink(b, LinkConfig{BatchMax: 8})
	defer l.Close()
	var wire []byte
	for i := range 20 {
		wire = AppendFrame(wire, 1, uint64(i), []byte("x"))
	}
	big := bytes.Repeat([]byte("y"), FrameBodyMax)
	wire = AppendFrame(wire, 2, 20, big)
	go func() {
		a.Write(wire[:len(wire)-5])
		a.Write(wire[len(wire)-5:])
		a.CloseWrite()
	}()
	var sizes []int
	next := uint64(0)
	err := l.Serve(func(batch []Frame) {
		sizes = append(sizes, len(batch))
		for _, f := range batch {
			if f.ID != next || f.Kind == 2 && !bytes.Equal(f.Body, big) {
				t.Fatalf("frame %d comes as %d with %d bytes", next, f.ID, len(f.Body))
			}
			next++
		}
	})
	if err != nil || next != 21 || sizes[0] != 8 || sizes[1] != 8 {
		t.Errorf("%d frames in batches %v, %v", next, sizes, err)
	}
	if err := l.Send(1, 1); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("a send after the end: %v", err)
	}
}

func TestCutFrameIsAnError(t *testing.T) {
	a, b := streams()
	l := OpenLink(b, LinkConfig{})
	defer l.Close()
	go func() {
		a.Write([]byte{40, 0, 0, 0, 1})
		a.CloseWrite()
	}()
	if err := l.Serve(func([]Frame) {}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut frame: %v", err)
	}
}

func TestCallsEndWithTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streams()
		l := OpenLink(a, LinkConfig{})
		c := NewCaller(l)
		go func() {
			err := l.Serve(func(batch []Frame) { c.Take(batch) })
			if err == nil {
				err = l.Err()
			}
			c.Fail(err)
		}()
		go io.Copy(io.Discard, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Call(ctx, 1, nil); starling.KindOf(err) != starling.Timeout {
			t.Errorf("no answer: %v, want Timeout", err)
		}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if _, err := c.Call(t.Context(), 1, nil); starling.KindOf(err) != starling.Unavailable {
					t.Errorf("a call under way when the link ends: %v", err)
				}
			})
		}
		synctest.Wait()
		b.Cancel()
		all.Wait()
		if _, err := c.Call(t.Context(), 1, nil); starling.KindOf(err) != starling.Unavailable {
			t.Errorf("a call after the end: %v", err)
		}
		l.Close()
	})
}

func TestBackoffDoublesAndForgets(t *testing.T) {
	var b Backoff
	now := time.Unix(0, 0)
	if !b.Ready(now) || b.Down() {
		t.Fatal("the first try must wait")
	}
	want := backoffMin
	for range 8 {
		b.Fail(now)
		if w := b.Wait(now); w < want/2 || w > want || b.Ready(now) {
			t.Errorf("pause %v, want %v to %v", w, want/2, want)
		}
		want = min(2*want, backoffMax)
	}
	b.Succeed()
	if !b.Ready(now) || b.Down() {
		t.Error("success is not remembered")
	}
}

// discard is a stream that takes everything and brings nothing.
type discard struct{ gone chan struct{} }

func (d discard) Write(p []byte) (int, error)      { return len(p), nil }
func (d discard) Read([]byte) (int, error)         { <-d.gone; return 0, io.EOF }
func (d discard) CloseWrite() error                { return nil }
func (d discard) Cancel()                          { close(d.gone) }
func (d discard) SetReadDeadline(time.Time) error  { return nil }
func (d discard) SetWriteDeadline(time.Time) error { return nil }
func (d discard) Peer() Peer                       { return Peer{} }

func BenchmarkSend(b *testing.B) {
	for name, inline := range map[string]bool{"writer": false, "inline": true} {
		b.Run(name, func(b *testing.B) {
			l := OpenLink(discard{make(chan struct{})}, LinkConfig{Inline: inline})
			defer l.Close()
			head, body := make([]byte, 32), make([]byte, 1024)
			b.ReportAllocs()
			for b.Loop() {
				for l.Send(1, 2, head, body) != nil {
					time.Sleep(time.Microsecond) // full: the writer is behind
				}
			}
		})
	}
}

// repeated gives a run of frames so many times.
type repeated struct {
	run       []byte
	at, times int
}

func (e *repeated) Read(p []byte) (int, error) {
	if e.times <= 0 {
		return 0, io.EOF
	}
	n := copy(p, e.run[e.at:])
	if e.at += n; e.at == len(e.run) {
		e.at = 0
		e.times--
	}
	return n, nil
}

func BenchmarkReadFrames(b *testing.B) {
	var run []byte
	for i := range 50 {
		run = AppendFrame(run, 1, uint64(i), make([]byte, 1024))
	}
	b.ReportAllocs()
	seen := 0
	if err := readFrames(&repeated{run: run, times: (b.N + 49) / 50}, 1024, func(batch []Frame) { seen += len(batch) }); err != nil || seen < b.N {
		b.Fatalf("%d frames, %v", seen, err)
	}
}

// TestSteadyStateAllocatesNothing holds what the benchmarks show.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	l := OpenLink(discard{make(chan struct{})}, LinkConfig{Inline: true})
	defer l.Close()
	body := make([]byte, 1024)
	l.Send(1, 1, body)
	if n := testing.AllocsPerRun(1000, func() { l.Send(1, 2, body, body) }); n > 0 {
		t.Errorf("%v allocations a frame sent", n)
	}
}
