package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "serve-floor" {
		if err := ServeFloor(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// slow answers after delay, except that its call number at begins a pause whose end every call waits for.
type slow struct {
	delay, pause time.Duration
	at           int64 // 0 for never
	calls        atomic.Int64
	paused       atomic.Int64 // Unix nanoseconds of the pause's end
}

func (s *slow) Dial(context.Context) (Caller, error) { return s, nil }
func (s *slow) Close() error                         { return nil }
func (s *slow) Call(now time.Time, timeout time.Duration) error {
	if s.calls.Add(1) == s.at {
		s.paused.Store(time.Now().Add(s.pause).UnixNano())
	}
	time.Sleep(s.delay)
	if end := time.Unix(0, s.paused.Load()); time.Until(end) > 0 {
		time.Sleep(time.Until(end))
	}
	return nil
}

// A server that stands still for 300 ms of 1 s must show in the percentiles of an open loop, although each
// caller made only one slow call.
func TestOpenLoopDoesNotOmitWhatWaited(t *testing.T) {
	s := &slow{delay: 100 * time.Microsecond, at: 300, pause: 300 * time.Millisecond}
	r, err := Run(context.Background(), s, Load{Concurrency: 4, Rate: 1000, Duration: time.Second, Timeout: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Arrivals != 1000 || r.Calls != 1000 {
		t.Fatalf("%d arrivals, %d calls, want 1000 of both", r.Arrivals, r.Calls)
	}
	if r.Latency.P90 < 100_000 {
		t.Fatalf("p90 is %d µs: the waiting was left out", r.Latency.P90)
	}
}

// The parts of a load show when it was slow, and together they are all of it.
func TestPartsShowWhenItWasSlow(t *testing.T) {
	s := &slow{delay: 100 * time.Microsecond, at: 331, pause: 100 * time.Millisecond} // due after 550 ms
	r, err := Run(context.Background(), s, Load{Concurrency: 4, Rate: 600, Duration: 600 * time.Millisecond, Timeout: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	total, most := int64(0), int64(0)
	for _, w := range r.Windows {
		total, most = total+w.Count, max(most, w.Max)
	}
	if len(r.Windows) != windowCount || total != r.Calls {
		t.Fatalf("%d parts with %d of %d calls", len(r.Windows), total, r.Calls)
	}
	if last := r.Windows[windowCount-1]; last.Max < 50_000 || last.Count < 30 {
		t.Errorf("slowest of the %d calls of the last part %d µs", last.Count, last.Max)
	}
	if whole := r.Latency.Max; most < whole-whole/50 || most > whole+whole/50 {
		t.Errorf("slowest of the parts %d µs, of all %d µs", most, whole)
	}
}

func TestClosedLoopMakesSoManyCalls(t *testing.T) {
	r, err := Run(context.Background(), &slow{}, Load{Concurrency: 8, Calls: 500, Timeout: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Calls != 500 || r.Arrivals != 500 || r.Loop != "closed" || r.Windows != nil {
		t.Fatalf("%+v", r)
	}
}

// One by one they would arrive over ten seconds.
func TestBurstArrivesAtOnce(t *testing.T) {
	r, err := Run(context.Background(), &slow{delay: time.Millisecond}, Load{Concurrency: 50, Rate: 5, Burst: 50, Calls: 50, Timeout: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Calls != 50 || r.Seconds > 9 {
		t.Fatalf("%d calls in %v s", r.Calls, r.Seconds)
	}
}

func TestErrorsAreCountedByKind(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%2 == 0 {
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	defer srv.Close()
	r, err := Run(context.Background(), &HTTP{URL: srv.URL}, Load{Concurrency: 1, Calls: 10, Timeout: time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Errors["http-429"] != 5 || r.Calls != 5 {
		t.Fatalf("%v, %d calls", r.Errors, r.Calls)
	}
	calls := &Calls{Invoke: func(context.Context) (*client.Result, error) {
		return nil, starling.Errorf(starling.Overloaded, "invoke", "full")
	}}
	if r, err = Run(context.Background(), calls, Load{Concurrency: 1, Calls: 3, Timeout: time.Second}, nil); err != nil || r.Errors["overloaded"] != 3 {
		t.Fatalf("%v, %v", r, err)
	}
}

// The lean client must understand every way a server frames its answer.
func TestLeanClientReadsAllFramings(t *testing.T) {
	big := strings.Repeat("x", 200<<10)
	answers := map[string]func(w http.ResponseWriter){
		"length":  func(w http.ResponseWriter) { w.Header().Set("Content-Length", "5"); io.WriteString(w, "hello") },
		"big":     func(w http.ResponseWriter) { io.WriteString(w, big) },
		"chunked": func(w http.ResponseWriter) { io.WriteString(w, "a"); w.(http.Flusher).Flush(); io.WriteString(w, big) },
		"trailer": func(w http.ResponseWriter) {
			w.Header().Set("Trailer", "X-End")
			io.WriteString(w, "a")
			w.Header().Set("X-End", "1")
		},
		"none":     func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) },
		"close":    func(w http.ResponseWriter) { w.Header().Set("Connection", "close"); io.WriteString(w, "bye") },
		"continue": func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints); io.WriteString(w, "after") },
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if b, _ := io.ReadAll(r.Body); string(b) != "body" || r.Header.Get("X-A") != "b" {
					t.Errorf("server got %q, %v", b, r.Header)
				}
				answer(w)
			}))
			defer srv.Close()
			c, err := (&HTTP{URL: srv.URL, Body: []byte("body"), Header: map[string]string{"X-A": "b"}}).Dial(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for range 3 {
				if err := c.Call(time.Now(), 5*time.Second); err != nil {
					t.Fatal(err)
				}
				if l := c.(*leanConn); l.conn != nil && l.r != l.w {
					t.Fatalf("%d bytes of the answer left unread", l.w-l.r)
				}
			}
		})
	}
}

func TestLeanClientTellsWhatWentWrong(t *testing.T) {
	for name, c := range map[string]struct{ answer, kind string }{
		"nothing": {"", "broken"},
		"noise":   {"hello\r\n\r\n", "broken"},
		"short":   {"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "broken"},
		"length":  {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "broken"},
		"chunk":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broken"},
		"refused": {"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", "http-503"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.Read(make([]byte, 4096))
					io.WriteString(conn, c.answer)
					conn.Close()
				}
			}()
			caller, err := (&HTTP{URL: "http://" + l.Addr().String()}).Dial(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			defer caller.Close()
			err = caller.Call(time.Now(), 5*time.Second)
			var f *Failure
			if !errors.As(err, &f) || f.Kind != c.kind {
				t.Fatalf("%v, want %s", err, c.kind)
			}
		})
	}
}

func TestLeanClientTimesOut(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	c, err := (&HTTP{URL: srv.URL}).Dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var f *Failure
	if err := c.Call(time.Now(), 50*time.Millisecond); !errors.As(err, &f) || f.Kind != "timeout" {
		t.Fatalf("%v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nT: 1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &leanConn{conn: bytesConn{r: bytes.NewReader(data)}, buf: make([]byte, 1024)}
		status, _, err := c.answer()
		if err == nil && (status < 200 || status > 999) {
			t.Fatalf("status %d", status)
		}
	})
}

// bytesConn is a connection that gives bytes and takes none.
type bytesConn struct {
	net.Conn
	r *bytes.Reader
}

func (b bytesConn) Read(p []byte) (int, error) { return b.r.Read(p) }
func (b bytesConn) Close() error               { return nil }

func TestReportHasTheFloorBesideIt(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	floor, err := StartFloor(context.Background(), exe, "serve-floor")
	if err != nil {
		t.Fatal(err)
	}
	report := &Report{Scenario: "<b>warm", When: time.Now(), Machine: ThisMachine(), Target: "t"}
	for _, name := range []string{"floor", "warm"} {
		r, err := Run(context.Background(), &HTTP{URL: floor.URL, Body: []byte(`"x"`)}, Load{Name: name, Concurrency: 2, Duration: 200 * time.Millisecond, Warmup: 50 * time.Millisecond, Timeout: time.Second}, Pids{floor.Pid})
		if err != nil {
			t.Fatal(err)
		}
		if r.Calls == 0 || r.Failed() != 0 {
			t.Fatalf("%+v", r)
		}
		report.Results = append(report.Results, r)
	}
	report.Compare()
	if want := report.Results[1].Served / report.Results[0].Served; len(report.Ratios) != 1 || report.Ratios[0].Name != "warm" || report.Ratios[0].Rate != want {
		t.Fatalf("ratios %+v, want one with the rate %v", report.Ratios, want)
	}
	var html, table bytes.Buffer
	if err := report.WriteHTML(&html); err != nil {
		t.Fatal(err)
	}
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if h := html.String(); strings.Contains(h, "<b>warm") || strings.Contains(h, "NaN") || strings.Contains(h, "src=") || strings.Count(h, "<polyline") != 4 {
		t.Fatalf("report:\n%s", h)
	}
	if !strings.Contains(table.String(), "against the floor") {
		t.Fatalf("table:\n%s", table.String())
	}
	if err := floor.Close(); err != nil {
		t.Fatalf("the floor ended with %v", err)
	}
}

func TestMetricsAreRead(t *testing.T) {
	m, err := parseMetrics(strings.NewReader("# HELP a b\na 1\nb{x=\"y z\"} 2.5 1700000000\nbroken\nc{x=\"}\"} 3\n"))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]float64{"a": 1, `b{x="y z"}`: 2.5, `c{x="}"}`: 3} {
		if m[k] != v {
			t.Errorf("%s is %v, want %v", k, m[k], v)
		}
	}
}

func BenchmarkLeanCall(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		answer := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		for {
			if l, err := r.ReadSlice('\n'); err != nil {
				return
			} else if len(l) == 2 {
				if _, err := conn.Write(answer); err != nil {
					return
				}
			}
		}
	}()
	c, err := (&HTTP{URL: "http://" + l.Addr().String()}).Dial(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Call(time.Now(), time.Second); err != nil {
			b.Fatal(err)
		}
	}
}
