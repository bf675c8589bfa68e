package lean

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A world is a lean server before a net/http one that says "rest" to everything.
type world struct {
	t    testing.TB
	s    *Server
	addr string
	done chan error // of Serve
	logs *bytes.Buffer
	open bool
}

// serve opens a world; times left at 0 are long. When the test ends it is shut down and must leave no goroutine.
func serve(t testing.TB, cfg Config) *world {
	t.Helper()
	before := runtime.NumGoroutine()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []*time.Duration{&cfg.Idle, &cfg.HeadTime, &cfg.BodyTime, &cfg.Stall} {
		if *d == 0 {
			*d = 10 * time.Second
		}
	}
	if cfg.BodyMax == 0 {
		cfg.BodyMax = 8 << 20
	}
	w := &world{t: t, addr: l.Addr().String(), done: make(chan error, 1), logs: &bytes.Buffer{}, open: true}
	cfg.Log = slog.New(slog.NewTextHandler(w.logs, nil))
	w.s = New(cfg)
	p := &http.Protocols{}
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	rest := &http.Server{Protocols: p, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "rest %s %s %s", r.Method, r.Proto, body)
	})}
	over := w.s.Rest(l)
	go rest.Serve(over)
	go func() { w.done <- w.s.Serve(l) }()
	t.Cleanup(func() {
		if err := w.shutdown(5 * time.Second); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		rest.Close()
		until(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= before })
	})
	return w
}

func (w *world) shutdown(d time.Duration) error {
	if !w.open {
		return nil
	}
	w.open = false
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	err := w.s.Shutdown(ctx)
	if e := <-w.done; e == nil {
		w.t.Error("Serve ended without an error")
	}
	return err
}

// until waits at most 2 s for ok.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	stacks := make([]byte, 1<<16)
	t.Errorf("%s\n%s", what, stacks[:runtime.Stack(stacks, true)])
}

// A caller is one connection of a client that speaks and hears as the test tells it.
type caller struct {
	t  testing.TB
	nc *net.TCPConn
	r  *bufio.Reader
}

func (w *world) dial() *caller {
	w.t.Helper()
	nc, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	return &caller{w.t, nc.(*net.TCPConn), bufio.NewReader(nc)}
}

func (c *caller) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.nc, text); err != nil {
		c.t.Fatal(err)
	}
}

// hear reads one answer.
func (c *caller) hear() (*http.Response, string) {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("half an answer: %v", err)
	}
	return res, string(body)
}

// hears checks one answer.
func (c *caller) hears(want string) *http.Response {
	c.t.Helper()
	res, body := c.hear()
	if body != want {
		c.t.Fatalf("got %d %.80q, want %.80q", res.StatusCode, body, want)
	}
	return res
}

// ends checks that the connection ends, and not by its own deadline.
func (c *caller) ends() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil && strings.Contains(err.Error(), "timeout") {
		c.t.Fatalf("the connection does not end: %q, %v", b, err)
	}
}

// post is an invocation of echo.
func post(body string) string {
	return fmt.Sprintf("POST /v1/functions/echo/invocations HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// echo answers with the body.
func echo(c *Conn, r *Request) {
	body := make([]byte, r.Length)
	if err := c.Body(body); err != nil {
		c.Answer(&Answer{Status: http.StatusBadRequest, ContentType: "text/plain", Body: []byte(err.Error())})
		return
	}
	c.Answer(&Answer{Status: http.StatusOK, ContentType: "text/plain", Fields: []byte("X-Function: " + r.Function + "\r\n"), Body: body})
}
