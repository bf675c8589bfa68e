package runtimeapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
)

type sink struct {
	mu      sync.Mutex
	content string
	stream  bool
	body    bytes.Buffer
}

func (s *sink) Start(c string, streaming bool) { s.content, s.stream = c, streaming }
func (s *sink) Write(p []byte) (int, error)    { return s.body.Write(p) }

// code is what runs inside, as a raw HTTP client.
type code struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func serve(t testing.TB, slots int) (*Server, func() *code) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(ln, Config{ARN: "arn:x", Slots: slots, Name: "fn", Version: "$LATEST", Handler: "h"})
	t.Cleanup(func() { s.Close() })
	dial := func() *code {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		return &code{t, nc, bufio.NewReader(nc)}
	}
	return s, dial
}

func (c *code) say(format string, args ...any) {
	if _, err := fmt.Fprintf(c.nc, format, args...); err != nil {
		c.t.Error(err)
	}
}

func (c *code) hear() (int, http.Header, string) {
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, nil, err.Error()
	}
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(body)
}

func (c *code) next() { c.say("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n") }

func (c *code) respond(id, headers, body string) (int, string) {
	c.say("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s", id, len(body), headers, body)
	status, _, text := c.hear()
	return status, text
}

// ready returns a server whose code asked for its first call on the connection.
func ready(t testing.TB, slots int) (*Server, *code, func() *code) {
	s, dial := serve(t, slots)
	c := dial()
	c.next()
	if err := s.Init(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s, c, dial
}

type result struct {
	out starling.Outcome
	s   *sink
}

func invoke(s *Server, n byte, payload string, change ...func(*starling.Invocation)) chan result {
	done := make(chan result, 1)
	inv := &starling.Invocation{ID: starling.RequestID{n}, Deadline: time.Now().Add(5 * time.Second), Payload: []byte(payload)}
	for _, f := range change {
		f(inv)
	}
	go func() {
		a := &sink{}
		done <- result{s.Invoke(inv, a), a}
	}()
	return done
}

func idOf(n byte) string { return starling.RequestID{n}.String() }

func TestACallGoesThroughNextAndResponse(t *testing.T) {
	s, c, _ := ready(t, 1)
	for n := byte(1); n < 20; n++ {
		r := invoke(s, n, "payload", func(inv *starling.Invocation) {
			inv.ContentType, inv.Trace, inv.ClientContext = "text/x", "Root=1", "eyJjdXN0b20iOnt9fQ=="
		})
		status, h, body := c.hear()
		if status != 200 || body != "payload" || h.Get("Lambda-Runtime-Aws-Request-Id") != idOf(n) || h.Get("Content-Type") != "text/x" || h.Get("Lambda-Runtime-Deadline-Ms") == "" ||
			h.Get("Lambda-Runtime-Invoked-Function-Arn") != "arn:x" || h.Get("Lambda-Runtime-Trace-Id") != "Root=1" || h.Get("Lambda-Runtime-Client-Context") != `{"custom":{}}` {
			t.Fatalf("next: %d %v %q", status, h, body)
		}
		if status, _ := c.respond(idOf(n), "Content-Type: text/y\r\n", "answer"); status != 202 {
			t.Fatalf("response: %d", status)
		}
		if got := <-r; got.out.Status != starling.Succeeded || got.s.body.String() != "answer" || got.s.content != "text/y" {
			t.Fatalf("%+v", got)
		}
		c.next()
	}
}

func TestValuesThatBreakHeadersAreLeftOut(t *testing.T) {
	s, c, _ := ready(t, 1)
	invoke(s, 1, "", func(inv *starling.Invocation) {
		inv.ContentType, inv.Trace, inv.ClientContext = "a\r\nX-Evil: 1", "b\nX-Evil: 1", "e30=\r\nX-Evil: 1"
	})
	_, h, _ := c.hear()
	if h.Get("X-Evil") != "" || h.Get("Content-Type") != "application/json" || h.Get("Lambda-Runtime-Trace-Id") != "" {
		t.Fatalf("got %v", h)
	}
}

func TestAnswersThatDoNotBelongAreRefused(t *testing.T) {
	s, c, dial := ready(t, 1)
	r := invoke(s, 1, "x", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(400 * time.Millisecond) })
	c.hear()
	other := dial()
	for _, step := range []struct {
		id   string
		want int
	}{{idOf(9), 400}, {"not-an-id-not-an-id-not-an-id-not-an", 400}, {idOf(1), 202}, {idOf(1), 400}} {
		if status, text := other.respond(step.id, "", "x"); status != step.want {
			t.Errorf("%s: %d %s", step.id, status, text)
		}
	}
	if got := <-r; got.out.Status != starling.Succeeded {
		t.Fatalf("%+v", got.out)
	}
	r = invoke(s, 2, "x", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(50 * time.Millisecond) })
	c.next()
	c.hear()
	if got := <-r; got.out.ErrorType != starling.ErrTimedOut {
		t.Fatalf("%+v", got.out)
	}
	if status, _ := other.respond(idOf(2), "", "late"); status != 410 {
		t.Errorf("a late answer: %d", status)
	}
}

func TestHostileAnswersEndTheirCallOnly(t *testing.T) {
	for name, c := range map[string]struct {
		raw  string
		want string
		code int
	}{
		"too large by length":  {"Content-Length: 6291457\r\n\r\n", starling.ErrResponseSize, 413},
		"too large by chunks":  {"Transfer-Encoding: chunked\r\n\r\n600001\r\n" + strings.Repeat("x", 6<<20+1) + "\r\n0\r\n\r\n", starling.ErrResponseSize, 413},
		"broken chunk":         {"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", starling.ErrProtocol, 400},
		"slow":                 {"Content-Length: 10\r\n\r\nabc", starling.ErrTimedOut, 410},
		"streaming has no end": {"Lambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", starling.ErrTimedOut, 410},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, inside, _ := ready(t, 1)
			limit := 300 * time.Millisecond
			if c.want != starling.ErrTimedOut {
				limit = 20 * time.Second // what is not about time must not depend on how busy the machine is
			}
			r := invoke(s, 1, "x", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(limit) })
			inside.hear()
			go inside.say("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\n%s", idOf(1), c.raw)
			got := <-r
			if got.out.Status != starling.Unhandled || got.out.ErrorType != c.want || got.s.body.Len() > starling.PayloadMax {
				t.Fatalf("%+v with %d bytes", got.out, got.s.body.Len())
			}
			if c.want == starling.ErrTimedOut {
				if status, _, text := inside.hear(); status != 410 && status != 400 {
					t.Errorf("told %d %s", status, text)
				}
			}
		})
	}
}

func TestErrorsAndInitErrorsAreTyped(t *testing.T) {
	s, c, _ := ready(t, 1)
	r := invoke(s, 1, "x")
	c.hear()
	doc := `{"errorMessage":"no","errorType":"Inner"}`
	c.say("POST /2018-06-01/runtime/invocation/%s/error HTTP/1.1\r\nHost: x\r\nLambda-Runtime-Function-Error-Type: Outer\r\nContent-Length: %d\r\n\r\n%s", idOf(1), len(doc), doc)
	if status, _, _ := c.hear(); status != 202 {
		t.Fatalf("error: %d", status)
	}
	if got := <-r; got.out.Status != starling.Handled || got.out.ErrorType != "Outer" || string(got.out.Error) != doc {
		t.Fatalf("%+v", got.out)
	}

	s2, dial := serve(t, 1)
	c2 := dial()
	c2.say("POST /2018-06-01/runtime/init/error HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(doc), doc)
	if err := s2.Init(context.Background()); starling.KindOf(err) != starling.Failed || starling.ReasonOf(err) != "Inner" {
		t.Fatalf("got %v", err)
	}
	if status, _, _ := c2.hear(); status != 202 {
		t.Fatalf("init error: %d", status)
	}
}

func TestStreamsReachTheCallerAsTheyCome(t *testing.T) {
	s, c, _ := ready(t, 1)
	first := make(chan struct{})
	inv := &starling.Invocation{ID: starling.RequestID{1}, Deadline: time.Now().Add(5 * time.Second)}
	w := &waiter{first: first}
	done := make(chan starling.Outcome, 1)
	go func() { done <- s.Invoke(inv, w) }()
	c.hear()
	c.say("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nLambda-Runtime-Function-Response-Mode: streaming\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", idOf(1))
	<-first
	c.say("3\r\ndef\r\n0\r\nLambda-Runtime-Function-Error-Type: Broke\r\nLambda-Runtime-Function-Error-Body: e30=\r\n\r\n")
	out := <-done
	if out.Status != starling.Handled || out.ErrorType != "Broke" || string(out.Error) != "{}" || w.body.String() != "abcdef" || !w.stream {
		t.Fatalf("%+v %q", out, w.body.String())
	}
}

type waiter struct {
	sink
	first chan struct{}
	once  sync.Once
}

func (w *waiter) Write(p []byte) (int, error) {
	defer w.once.Do(func() { close(w.first) })
	return w.sink.Write(p)
}

func TestPipelinedAndStrangeRequestsGetAnswersInOrder(t *testing.T) {
	s, dial := serve(t, 1)
	c := dial()
	// The call that /next waits for is written before the answer to what was sent behind it.
	c.say("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\nPUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab")
	if err := s.Init(context.Background()); err != nil {
		t.Fatal(err)
	}
	invoke(s, 1, "first")
	for _, want := range []int{200, 404, 405} {
		if status, _, _ := c.hear(); status != want {
			t.Fatalf("got %d, want %d", status, want)
		}
	}
	c.say("GET / HTTP/1.1\r\nBad Header\r\n\r\n")
	if status, _, _ := c.hear(); status != 400 {
		t.Fatalf("got %d", status)
	}
	if _, err := c.r.ReadByte(); err != io.EOF {
		t.Fatalf("the connection lives on: %v", err)
	}
}

func TestExtensionsRegister(t *testing.T) {
	s, c, dial := ready(t, 1)
	r := invoke(s, 1, "x")
	c.hear()
	e := dial()
	e.say("POST /2020-01-01/extension/register HTTP/1.1\r\nHost: x\r\nLambda-Extension-Name: e\r\nContent-Length: 13\r\n\r\n{\"events\":[]}")
	if status, h, body := e.hear(); status != 200 || h.Get("Lambda-Extension-Identifier") == "" || !strings.Contains(body, `"functionName":"fn"`) {
		t.Fatalf("got %d %v %s", status, h, body)
	}
	c.respond(idOf(1), "", "x")
	<-r
}

func TestCurlBootstrapsThatExpectAreServed(t *testing.T) {
	s, c, _ := ready(t, 1)
	r := invoke(s, 1, "x")
	c.hear()
	c.say("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", idOf(1))
	if status, _, _ := c.hear(); status != 100 {
		t.Fatalf("got %d", status)
	}
	c.say("abc")
	if status, _, _ := c.hear(); status != 202 {
		t.Fatalf("got %d", status)
	}
	if got := <-r; got.s.body.String() != "abc" {
		t.Fatalf("%+v", got.out)
	}
}

func TestConnectionsAndParkedCallsAreBounded(t *testing.T) {
	s, _, dial := ready(t, 2)
	second, third := dial(), dial()
	second.next()
	// Wait until the second is parked: a third is then one too many.
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := len(s.idle)
		s.mu.Unlock()
		if n == 2 {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the second was not parked")
		}
	}
	third.next()
	if status, _, _ := third.hear(); status != 403 {
		t.Fatalf("got %d", status)
	}
	var open []*code
	for range 2*s.connMax() + 4 {
		open = append(open, dial())
	}
	refused := 0
	for _, o := range open {
		o.say("GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		if status, _, _ := o.hear(); status == 0 {
			refused++
		}
	}
	if refused < len(open)-s.connMax() {
		t.Fatalf("only %d of %d connections were refused", refused, len(open))
	}
}

func TestCloseEndsCallsInFlight(t *testing.T) {
	s, c, _ := ready(t, 1)
	r := invoke(s, 1, "x")
	c.hear()
	waits := invoke(s, 2, "y")
	s.Close()
	if got := <-r; got.out.ErrorType != starling.ErrExit {
		t.Fatalf("%+v", got.out)
	}
	if got := <-waits; got.out.ErrorType != NotStarted { // the code never asked for it: it may run elsewhere
		t.Fatalf("%+v", got.out)
	}
	if s.Err() == nil {
		t.Fatal("a closed server is in use")
	}
}

func BenchmarkCall(b *testing.B) {
	s, c, _ := ready(b, 1)
	body := strings.Repeat("x", 1024)
	answer := fmt.Appendf(nil, "POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n%s", idOf(1), body)
	c.nc.SetDeadline(time.Time{})
	go func() {
		buf := make([]byte, 64<<10)
		for {
			if n, err := c.nc.Read(buf); err != nil || n == 0 {
				return
			}
			c.nc.Write(answer)
			if n, err := c.nc.Read(buf); err != nil || n == 0 {
				return
			}
			c.nc.Write([]byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n"))
		}
	}()
	inv := &starling.Invocation{ID: starling.RequestID{1}, Payload: []byte(body)}
	a := &discard{}
	b.ReportAllocs()
	for b.Loop() {
		inv.Deadline = time.Now().Add(time.Second)
		if out := s.Invoke(inv, a); out.Status != starling.Succeeded {
			b.Fatal(out)
		}
	}
}

type discard struct{}

func (discard) Start(string, bool)          {}
func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestAReaderStreamsWithoutSayingSo(t *testing.T) {
	for content, want := range map[string]bool{"application/octet-stream": true, "text/html": true, "application/json": false, "": false} {
		s, inside, _ := ready(t, 1)
		r := invoke(s, 1, "x")
		inside.hear()
		head := ""
		if content != "" {
			head = "Content-Type: " + content + "\r\n"
		}
		inside.say("POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", idOf(1), head)
		if got := <-r; got.out.Status != starling.Succeeded || got.s.stream != want || got.s.body.String() != "abc" {
			t.Fatalf("%q: %+v, streaming %v", content, got.out, got.s.stream)
		}
	}
}
