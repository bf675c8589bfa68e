package frontend

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/metrics/profile"
	"starling/transport"
)

func certificate(t *testing.T) (*tls.Config, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}, roots
}

func (w *world) open(t *testing.T, cfg *tls.Config) *Server {
	d := w.server.deps
	d.TLS = cfg
	s := New(d)
	if err := s.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Close(ctx)
	})
	return s
}

func TestEveryHTTPVersionInvokes(t *testing.T) {
	w := newWorld(t)
	cfg, roots := certificate(t)
	plain, secure := w.open(t, nil), w.open(t, cfg)
	var h1, h2c, h2 http.Protocols
	h1.SetHTTP1(true)
	h2c.SetUnencryptedHTTP2(true)
	h2.SetHTTP2(true)
	trust := &tls.Config{RootCAs: roots}
	h3 := &http3.Transport{TLSClientConfig: trust.Clone()}
	w.on(func(ctx context.Context, v *starling.Version, inv *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
		if string(inv.Payload) != "stream" {
			return echo(ctx, v, inv, s)
		}
		s.Start("x/y", true)
		s.Write([]byte("one"))
		s.Write([]byte("two"))
		return starling.Outcome{Run: time.Millisecond}, starling.Phases{}, nil
	})
	defer h3.Close()
	for name, c := range map[string]struct {
		url   string
		via   http.RoundTripper
		proto string
	}{
		"h1":  {"http://" + plain.Addr(), &http.Transport{Protocols: &h1}, "HTTP/1.1"},
		"h2c": {"http://" + plain.Addr(), &http.Transport{Protocols: &h2c}, "HTTP/2.0"},
		"tls": {"https://" + secure.Addr(), &http.Transport{Protocols: &h1, TLSClientConfig: trust.Clone()}, "HTTP/1.1"},
		"h2":  {"https://" + secure.Addr(), &http.Transport{Protocols: &h2, TLSClientConfig: trust.Clone()}, "HTTP/2.0"},
		"h3":  {"https://" + secure.Addr(), h3, "HTTP/3.0"},
	} {
		var proto, alt string
		via := roundTripper(func(r *http.Request) (*http.Response, error) {
			res, err := c.via.RoundTrip(r)
			if err == nil {
				proto, alt = res.Proto, res.Header.Get("Alt-Svc")
			}
			return res, err
		})
		cl := client.NewHTTP(c.url, w.user, client.WithHTTPClient(&http.Client{Transport: via, Timeout: 10 * time.Second}))
		for _, size := range []int{0, 10, 1 << 20} {
			payload := bytes.Repeat([]byte("y"), size)
			r, err := cl.Invoke(bg, client.Call{Function: "echo", Payload: payload})
			if err != nil || !bytes.Equal(r.Payload, payload) || proto != c.proto {
				t.Fatalf("%s, %d bytes: %v over %s", name, size, err, proto)
			}
		}
		if want := strings.HasPrefix(c.url, "https") && name != "h3"; (alt != "") != want {
			t.Errorf("%s: Alt-Svc %q", name, alt)
		}
		var got bytes.Buffer
		r, err := cl.Stream(bg, client.Call{Function: "echo", Payload: []byte("stream")}, &got)
		if err != nil || got.String() != "onetwo" || r.Timing["run"] != time.Millisecond {
			t.Fatalf("%s stream: %v %q %+v", name, err, got.String(), r)
		}
		if tr, ok := c.via.(*http.Transport); ok {
			tr.CloseIdleConnections()
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCloseFinishesCallsInFlight(t *testing.T) {
	w := newWorld(t)
	s := w.open(t, nil)
	began, release := make(chan struct{}, 2), make(chan struct{})
	w.on(func(ctx context.Context, v *starling.Version, inv *starling.Invocation, k starling.Sink) (starling.Outcome, starling.Phases, error) {
		began <- struct{}{}
		<-release
		return echo(ctx, v, inv, k)
	})
	w.server = s
	q := w.quic(t, w.user)
	errs := make(chan error, 2)
	for _, c := range []invoker{client.NewHTTP("http://"+s.Addr(), w.user), q} {
		go func() { _, err := c.Invoke(bg, client.Call{Function: "echo", Payload: []byte("1")}); errs <- err }()
	}
	<-began
	<-began
	closed := make(chan error)
	go func() {
		ctx, cancel := context.WithTimeout(bg, 10*time.Second)
		defer cancel()
		closed <- s.Close(ctx)
	}()
	eventually(t, func() bool { return s.draining.Load() })
	eventually(t, func() bool {
		_, err := client.NewHTTP("http://"+s.Addr(), w.user).Whoami(bg)
		return starling.KindOf(err) == starling.Unavailable
	})
	close(release)
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatalf("a call in flight at close: %v", err)
		}
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen within 5 s")
		}
	}
}

func TestOneStreamCarriesManyCalls(t *testing.T) {
	w := newWorld(t)
	q := w.quic(t, w.user)
	var wg sync.WaitGroup
	var failed atomic.Int64
	for i := range 64 {
		wg.Go(func() {
			payload := bytes.Repeat([]byte{byte(i)}, i*1500)
			for range 20 {
				r, err := q.Invoke(bg, client.Call{Function: "echo", Payload: payload})
				if err != nil || !bytes.Equal(r.Payload, payload) {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if failed.Load() != 0 || w.resets.Load() != 1 {
		t.Fatalf("%d failed over %d streams", failed.Load(), w.resets.Load())
	}
	eventually(t, func() bool { return w.server.memory.Load() == 0 && w.server.inFlight.Load() == 0 })
}

// A reader that takes nothing holds up its own call only.
func TestSlowReaderHoldsUpNobodyElse(t *testing.T) {
	w := newWorld(t)
	q := w.quic(t, w.user)
	piece := make([]byte, 100_000)
	w.on(func(ctx context.Context, v *starling.Version, inv *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
		if string(inv.Payload) != "big" {
			return echo(ctx, v, inv, s)
		}
		s.Start("x/y", true)
		for range 50 {
			if _, err := s.Write(piece); err != nil {
				return starling.Outcome{}, starling.Phases{}, err
			}
		}
		return starling.Outcome{}, starling.Phases{}, nil
	})
	stuck, out := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := q.Stream(bg, client.Call{Function: "echo", Payload: []byte("big")}, out)
		out.CloseWithError(io.EOF)
		done <- err
	}()
	io.ReadFull(stuck, make([]byte, 10))
	for range 100 {
		if _, err := q.Invoke(bg, client.Call{Function: "echo", Payload: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	n, _ := io.Copy(io.Discard, stuck)
	if err := <-done; err != nil || n != 50*100_000-10 {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

func TestClientComesBackAfterALostConnection(t *testing.T) {
	w := newWorld(t)
	q := w.quic(t, w.user)
	if _, err := q.Invoke(bg, client.Call{Function: "echo"}); err != nil {
		t.Fatal(err)
	}
	w.on(func(ctx context.Context, v *starling.Version, inv *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
		w.server.clients.mu.Lock()
		for st := range w.server.clients.open {
			st.Cancel()
		}
		w.server.clients.mu.Unlock()
		<-ctx.Done() // it ends with the stream
		return starling.Outcome{}, starling.Phases{}, ctx.Err()
	})
	if _, err := q.Invoke(bg, client.Call{Function: "echo"}); starling.KindOf(err) != starling.Unavailable {
		t.Fatalf("a call whose connection was lost: %v", err)
	}
	w.on(echo)
	if _, err := q.Invoke(bg, client.Call{Function: "echo"}); err != nil {
		t.Fatalf("the next call: %v", err)
	}
}

// late is a context whose time is over when somebody says so.
type late struct {
	context.Context
	over chan struct{}
}

func (l late) Done() <-chan struct{} { return l.over }

func (l late) Err() error {
	select {
	case <-l.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestCancelledCallStopsWaiting(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		ctx, stopped := late{bg, make(chan struct{})}, make(chan struct{})
		w.on(func(served context.Context, _ *starling.Version, inv *starling.Invocation, _ starling.Sink) (starling.Outcome, starling.Phases, error) {
			close(ctx.over)
			<-served.Done()
			close(stopped)
			return starling.Outcome{}, starling.Phases{}, served.Err()
		})
		if _, err := c.Invoke(ctx, client.Call{Function: "echo"}); starling.KindOf(err) != starling.Timeout {
			t.Fatalf("got %v", err)
		}
		<-stopped
	})
}

// What no client of ours sends ends the stream with a reason, and nothing else.
func TestBrokenClientsAreToldAndCut(t *testing.T) {
	w := newWorld(t)
	hello := (&protocol.Hello{Version: 1, Key: w.user}).Append(nil)
	call := (&protocol.CallHead{Function: "echo", Total: 10}).Append(nil)
	for name, frames := range map[string][]transport.Frame{
		"call first":     {{Kind: protocol.KindCall, ID: 1, Body: call}},
		"bad hello":      {{Kind: protocol.KindHello, Body: []byte{1, 2}}},
		"old version":    {{Kind: protocol.KindHello, Body: (&protocol.Hello{Key: w.user}).Append(nil)}},
		"bad key":        {{Kind: protocol.KindHello, Body: (&protocol.Hello{Version: 1, Key: "x"}).Append(nil)}},
		"torn call":      {{Kind: protocol.KindHello, Body: hello}, {Kind: protocol.KindCall, ID: 1, Body: call[:20]}},
		"call number 0":  {{Kind: protocol.KindHello, Body: hello}, {Kind: protocol.KindCall, ID: 0, Body: call}},
		"number twice":   {{Kind: protocol.KindHello, Body: hello}, {Kind: protocol.KindCall, ID: 1, Body: call}, {Kind: protocol.KindCall, ID: 1, Body: call}},
		"too much":       {{Kind: protocol.KindHello, Body: hello}, {Kind: protocol.KindCall, ID: 1, Body: call}, {Kind: protocol.KindPayload, ID: 1, Body: make([]byte, 11)}},
		"torn credit":    {{Kind: protocol.KindHello, Body: hello}, {Kind: protocol.KindCredit, ID: 1, Body: []byte{1}}},
		"foreign acting": {{Kind: protocol.KindHello, Body: (&protocol.Hello{Version: 1, Key: w.user, Account: "other"}).Append(nil)}},
	} {
		here, there := net.Pipe()
		done := make(chan struct{})
		go func() { w.server.ServeClient(&pair{Conn: there}); close(done) }()
		go func() {
			for _, f := range frames {
				here.Write(transport.AppendFrame(nil, f.Kind, f.ID, f.Body))
			}
		}()
		var buf []byte
		told := false
		for !told {
			b := make([]byte, 4096)
			here.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := here.Read(b)
			if err != nil {
				t.Fatalf("%s: %v before a refusal", name, err)
			}
			buf = append(buf, b[:n]...)
			for {
				f, size, err := transport.NextFrame(buf)
				if err != nil || size == 0 {
					break
				}
				told = told || f.Kind == protocol.KindRefusal && f.ID == 0
				buf = buf[size:]
			}
		}
		here.Close()
		<-done
	}
	if w.server.memory.Load() != 0 {
		t.Fatalf("%d bytes are still counted", w.server.memory.Load())
	}
}

type pair struct{ net.Conn }

func (p *pair) CloseWrite() error    { return p.Close() }
func (p *pair) Cancel()              { p.Close() }
func (p *pair) Peer() transport.Peer { return transport.Peer{} }

func TestAdminServer(t *testing.T) {
	ready := errors.New("no partition map yet")
	a := NewAdmin(AdminDeps{Addr: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler), Ready: func() error { return ready },
		Profiles: func(name starling.FunctionName) []profile.Profile {
			return []profile.Profile{{Function: starling.FunctionRef{Name: name}, Calls: 7}}
		},
		Metrics: func(w io.Writer) error { _, err := io.WriteString(w, "x_total 1\n"); return err }})
	if err := a.Open(bg); err != nil {
		t.Fatal(err)
	}
	defer a.Close(bg)
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + a.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	if code, body := get("/metrics"); code != 200 || body != "x_total 1\n" {
		t.Errorf("%d %q", code, body)
	}
	var list []profile.Profile
	if code, body := get("/profiles?function=resize"); code != 200 || json.Unmarshal([]byte(body), &list) != nil || len(list) != 1 || list[0].Function.Name != "resize" || list[0].Calls != 7 {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := get("/livez"); code != 200 {
		t.Error("not alive")
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "map") {
		t.Errorf("%d %q", code, body)
	}
	ready = nil
	if code, _ := get("/readyz"); code != 200 {
		t.Error("not ready")
	}
	if code, _ := get("/debug/pprof/"); code != 404 {
		t.Error("profiles are served without being asked for")
	}
}

func TestMetricsTellOfCalls(t *testing.T) {
	w := newWorld(t)
	w.client(w.user).Invoke(bg, client.Call{Function: "echo"})
	w.client(w.user).Invoke(bg, client.Call{Function: "absent"})
	for _, want := range []string{`starling_frontend_invocations_total{class="2xx"} 1`, `starling_frontend_invocations_total{class="4xx"} 1`, "starling_frontend_invoke_seconds_count 2"} {
		eventually(t, func() bool { // a call is counted after its answer is out
			var b bytes.Buffer
			w.server.Metrics().WritePrometheus(&b)
			return strings.Contains(b.String(), want)
		})
	}
}
