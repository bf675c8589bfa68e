package framed

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"starling"
)

type sink struct {
	content string
	stream  bool
	starts  int
	body    bytes.Buffer
}

func (s *sink) Start(c string, streaming bool) { s.content, s.stream = c, streaming; s.starts++ }
func (s *sink) Write(p []byte) (int, error)    { return s.body.Write(p) }
func invocation(payload string) *starling.Invocation {
	return &starling.Invocation{ID: starling.RequestID{1, 2, 3}, Deadline: time.Now().Add(time.Second), Payload: []byte(payload), Trace: "00-ab", ClientContext: "e30=", ContentType: "text/x"}
}

// connect returns the contract with a guest whose calls handle serves.
func connect(t testing.TB, handle func(*Call)) *Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		g := Guest{Init: func(Setup) *Failure { return nil }, Handle: handle}
		g.Serve(theirs)
		theirs.Close()
		close(done)
	}()
	c := New(ours, Setup{Handler: "h"})
	t.Cleanup(func() { c.Close(); <-done })
	if err := c.Ready(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := c.Init(context.Background()); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestACallCarriesEverything(t *testing.T) {
	for _, size := range []int{0, 10, bufferSize - 40, bufferSize, FrameMax - callFixed, FrameMax + 1, starling.PayloadMax} {
		payload := strings.Repeat("p", size)
		c := connect(t, func(k *Call) {
			if k.Trace != "00-ab" || k.ClientContext != "e30=" || k.ContentType != "text/x" || k.Remaining < 900*time.Millisecond || k.ID != (starling.RequestID{1, 2, 3}) {
				t.Errorf("the runtime saw %+v", k)
			}
			k.Answer("text/y", k.Payload)
		})
		for range 2 {
			var s sink
			inv := invocation(payload)
			inv.Deadline = time.Now().Add(20 * time.Second) // megabytes over a pipe take their time on a busy machine
			if out := c.Invoke(inv, &s); out.Status != starling.Succeeded || s.body.String() != payload || s.content != "text/y" || s.stream || s.starts != 1 {
				t.Fatalf("%d bytes: %+v, %d bytes as %q", size, out, s.body.Len(), s.content)
			}
		}
	}
}

func frameOf(typ byte, id starling.RequestID, rest ...byte) []byte {
	b := putHeader(nil, typ, idSize+len(rest))
	b = append(b, id[:]...)
	return append(b, rest...)
}

func headOf(id starling.RequestID, streaming byte, length uint64) []byte {
	rest := append([]byte{streaming}, binary.LittleEndian.AppendUint64(nil, length)...)
	return frameOf(typeHead, id, append(rest, 0)...)
}

func TestHostilePeersAreNoticed(t *testing.T) {
	id := starling.RequestID{1, 2, 3}
	other := starling.RequestID{9}
	for name, c := range map[string]struct {
		raw  []byte
		want string // error type of the first call; "" when only the next is refused
	}{
		"length of 2^32-1":        {[]byte{255, 255, 255, 255, typeAnswer}, starling.ErrProtocol},
		"length of 0":             {[]byte{0, 0, 0, 0, typeAnswer}, starling.ErrProtocol},
		"over the frame limit":    {append(binary.LittleEndian.AppendUint32(nil, FrameMax+1), typeAnswer), starling.ErrProtocol},
		"unknown type":            {frameOf(77, id), starling.ErrProtocol},
		"frame of the host":       {frameOf(typeCall, id), starling.ErrProtocol},
		"too short for an id":     {[]byte{3, 0, 0, 0, typeAnswer, 1, 2}, starling.ErrProtocol},
		"another call's id":       {frameOf(typeAnswer, other, 0, 0, 'x'), starling.ErrProtocol},
		"chunk before head":       {frameOf(typeChunk, id, 'x'), starling.ErrProtocol},
		"end before head":         {frameOf(typeEnd, id, 0, 0), starling.ErrProtocol},
		"two heads":               {append(headOf(id, 1, 0), headOf(id, 1, 0)...), starling.ErrProtocol},
		"answer after head":       {append(headOf(id, 1, 0), frameOf(typeAnswer, id, 0, 0)...), starling.ErrProtocol},
		"strange head":            {headOf(id, 2, 0), starling.ErrProtocol},
		"more than the head said": {append(headOf(id, 0, 2), frameOf(typeChunk, id, 'a', 'b', 'c')...), starling.ErrProtocol},
		"less than the head said": {append(append(headOf(id, 0, 2), frameOf(typeChunk, id, 'a')...), frameOf(typeEnd, id, 0, 0)...), starling.ErrProtocol},
		"buffered and too large":  {headOf(id, 0, starling.PayloadMax+1), starling.ErrResponseSize},
		"words past the frame":    {frameOf(typeAnswer, id, 0, 200, 'x'), starling.ErrProtocol},
		"long error document":     {append(binary.LittleEndian.AppendUint32(nil, FrameMax), append([]byte{typeEnd}, append(id[:], 1, 0)...)...), starling.ErrProtocol},
		"answered twice":          {append(frameOf(typeAnswer, id, 0, 0, 'x'), frameOf(typeAnswer, id, 0, 0, 'y')...), ""},
		"half an answer":          {frameOf(typeAnswer, id, 0, 0, 'x')[:20], starling.ErrExit},
	} {
		t.Run(name, func(t *testing.T) {
			raw, want := c.raw, c.want
			c := connect(t, func(k *Call) { k.Raw(raw); k.Hangup() })
			out := c.Invoke(invocation("x"), &sink{})
			if c.Err() == nil {
				t.Errorf("the instance is still in use after %+v", out)
			}
			if out.ErrorType != want || (want == "") != (out.Status == starling.Succeeded) {
				t.Errorf("ended %v %q", out.Status, out.ErrorType)
			}
		})
	}
}

func TestStreamsPassAsTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, func(k *Call) {
			k.Head("text/plain", true, 0)
			for range 3 {
				time.Sleep(100 * time.Millisecond)
				k.Chunk([]byte("tick "))
			}
			k.End()
		})
		s := &timed{}
		if out := c.Invoke(invocation(""), s); out.Status != starling.Succeeded || len(s.at) != 3 || s.at[2].Sub(s.begun) != 300*time.Millisecond {
			t.Fatalf("%+v %v", out, s.at)
		}
		c.Close()
		synctest.Wait()
	})
}

// TestDeadlinesOfThePastDoNotEndCalls: an instance lives on when the deadline of its initialisation, or of a call whose payload
// did not fit the pipe, has passed.
func TestDeadlinesOfThePastDoNotEndCalls(t *testing.T) {
	ours, theirs, err := Pipes()
	if err != nil {
		t.Fatal(err)
	}
	inside := &pipes{r: os.NewFile(uintptr(theirs[0]), "calls"), w: os.NewFile(uintptr(theirs[1]), "answers")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		g := Guest{Init: func(Setup) *Failure { return nil }, Handle: func(k *Call) { k.Answer("text/y", k.Payload) }}
		g.Serve(inside)
		inside.Close()
	}()
	c := New(ours, Setup{Handler: "h"})
	defer func() { c.Close(); <-done }()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Init(ctx); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, 1 << 20, 10} {
		time.Sleep(220 * time.Millisecond)
		inv := invocation(strings.Repeat("p", size))
		inv.Deadline = time.Now().Add(200 * time.Millisecond)
		if out := c.Invoke(inv, &sink{}); out.Status != starling.Succeeded {
			t.Fatalf("%d bytes: ended %v %q", size, out.Status, out.ErrorType)
		}
	}
}

type timed struct {
	begun time.Time
	at    []time.Time
}

func (s *timed) Start(string, bool)          { s.begun = time.Now() }
func (s *timed) Write(p []byte) (int, error) { s.at = append(s.at, time.Now()); return len(p), nil }

func TestADeadlineEndsTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, handle := range map[string]func(*Call){
			"silent": func(*Call) {},
			"slow": func(k *Call) {
				for _, b := range frameOf(typeAnswer, k.ID, 0, 0, 'x') {
					time.Sleep(100 * time.Millisecond)
					if k.Raw([]byte{b}) != nil {
						return
					}
				}
			},
		} {
			c := connect(t, handle)
			begun := time.Now()
			out := c.Invoke(invocation(""), &sink{})
			if took := time.Since(begun); out.ErrorType != starling.ErrTimedOut || took != time.Second+Grace || c.Err() == nil {
				t.Errorf("%s: %+v after %v", name, out, took)
			}
			c.Close()
		}
	})
}

func TestCallersThatLeaveDoNotStopTheCall(t *testing.T) {
	c := connect(t, func(k *Call) { k.Answer("text/plain", bytes.Repeat([]byte("x"), 200<<10)) })
	for range 2 {
		if out := c.Invoke(invocation(""), leaver{}); out.Status != starling.Succeeded || c.Err() != nil {
			t.Fatalf("%+v %v", out, c.Err())
		}
	}
}

type leaver struct{}

func (leaver) Start(string, bool)        {}
func (leaver) Write([]byte) (int, error) { return 0, net.ErrClosed }

// replay is a connection whose peer says fixed bytes and takes everything.
type replay struct {
	net.Conn
	says []byte
	at   int
	loop bool
}

func (r *replay) Read(p []byte) (int, error) {
	if r.at == len(r.says) {
		if !r.loop {
			return 0, net.ErrClosed
		}
		r.at = 0
	}
	n := copy(p, r.says[r.at:])
	r.at += n
	return n, nil
}
func (r *replay) Write(p []byte) (int, error)      { return len(p), nil }
func (r *replay) Close() error                     { return nil }
func (r *replay) SetDeadline(time.Time) error      { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }

// FuzzAnswer: whatever a runtime says, a call ends, no more than the limit reaches the caller of a buffered answer, and an answer is
// begun at most once and before its first byte.
func FuzzAnswer(f *testing.F) {
	id := starling.RequestID{1, 2, 3}
	f.Add(frameOf(typeAnswer, id, 0, 0, 'x'))
	f.Add(append(headOf(id, 1, 0), append(frameOf(typeChunk, id, 'a'), frameOf(typeEnd, id, 0, 0)...)...))
	f.Add(append(headOf(id, 0, 1), append(frameOf(typeChunk, id, 'a'), frameOf(typeEnd, id, 1, 1, 'E', '{', '}')...)...))
	f.Add([]byte{255, 255, 255, 255, 0})
	f.Fuzz(func(t *testing.T, says []byte) {
		c := New(&replay{says: says}, Setup{})
		s := &sink{}
		out := c.Invoke(invocation("p"), s)
		if s.starts > 1 || s.body.Len() > 0 && s.starts == 0 {
			t.Fatalf("started %d times with %d bytes", s.starts, s.body.Len())
		}
		if !s.stream && s.body.Len() > starling.PayloadMax {
			t.Fatalf("%d bytes passed", s.body.Len())
		}
		if out.Status == starling.Unhandled && c.Err() == nil {
			t.Fatal("a broken runtime stays in use")
		}
	})
}

func BenchmarkInvoke(b *testing.B) {
	id := starling.RequestID{1, 2, 3}
	c := New(&replay{says: frameOf(typeAnswer, id, append([]byte{0, 16}, append([]byte("application/json"), make([]byte, 1024)...)...)...), loop: true}, Setup{})
	inv := invocation(strings.Repeat("x", 1024))
	s := &counter{}
	b.ReportAllocs()
	for b.Loop() {
		inv.Deadline = time.Now().Add(time.Second)
		if out := c.Invoke(inv, s); out.Status != starling.Succeeded {
			b.Fatal(out)
		}
	}
}

type counter struct{ n int }

func (c *counter) Start(string, bool)          {}
func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

func TestARuntimeThatEndsItselfGetsNoFurtherCall(t *testing.T) {
	c := connect(t, func(k *Call) { k.last(typeEnd, endsAfter, "Error", []byte(`{"errorMessage":"aside"}`)) })
	out := c.Invoke(invocation("x"), &sink{})
	if out.Status != starling.Handled || out.ErrorType != "Error" || string(out.Error) != `{"errorMessage":"aside"}` {
		t.Fatalf("%+v", out)
	}
	if err := c.Err(); err != ErrEnds {
		t.Fatalf("after its last words: %v", err)
	}
}
