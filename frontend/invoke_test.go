package frontend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

func hashOf(b []byte) string { h := sha256.Sum256(b); return hex.EncodeToString(h[:]) }

// An invoker is what both clients have in common.
type invoker interface {
	Invoke(ctx context.Context, call client.Call) (*client.Result, error)
	Stream(ctx context.Context, call client.Call, w io.Writer) (*client.Result, error)
}

// both runs a test over HTTP and over the stream protocol: the two must not differ.
func both(t *testing.T, f func(t *testing.T, w *world, c invoker)) {
	t.Run("http", func(t *testing.T) { w := newWorld(t); f(t, w, w.client(w.user)) })
	t.Run("quic", func(t *testing.T) { w := newWorld(t); f(t, w, w.quic(t, w.user)) })
}

func TestInvokeEchoes(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		for _, size := range []int{0, 1, 1000, 60 << 10, 64 << 10, 300 << 10, starling.PayloadMax} {
			payload := bytes.Repeat([]byte("x"), size)
			id := drawID()
			r, err := c.Invoke(context.Background(), client.Call{Function: "echo", Payload: payload, ContentType: "text/plain", Request: id})
			if err != nil || r.Err() != nil || !bytes.Equal(r.Payload, payload) {
				t.Fatalf("%d bytes: %v, %d came back", size, err, len(r.Payload))
			}
			if r.Request != id || r.Version != "latest" || r.ContentType != "text/plain" || r.Timing["run"] != 1500*time.Microsecond {
				t.Fatalf("%d bytes: %+v", size, r)
			}
		}
	})
}

func TestColdStartShowsItsPhases(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
			s.Start("application/json", false)
			s.Write([]byte("{}"))
			return starling.Outcome{Run: time.Millisecond}, starling.Phases{Queue: 2 * time.Millisecond, Place: time.Millisecond, Start: 30 * time.Millisecond, Init: 100 * time.Millisecond}, nil
		})
		r, err := c.Invoke(context.Background(), client.Call{Function: "echo"})
		if err != nil || r.Timing["init"] != 100*time.Millisecond || r.Timing["start"] != 30*time.Millisecond || r.Timing["queue"] != 2*time.Millisecond {
			t.Fatalf("%v, %v", r, err)
		}
	})
}

func TestFunctionErrors(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		doc := []byte(`{"errorMessage":"bad","errorType":"ValueError"}`)
		for _, status := range []starling.Status{starling.Handled, starling.Unhandled} {
			w.on(func(_ context.Context, _ *starling.Version, inv *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
				return starling.Outcome{Status: status, ErrorType: "ValueError", Error: doc, LogTail: []byte("line\n")}, starling.Phases{}, nil
			})
			r, err := c.Invoke(context.Background(), client.Call{Function: "echo", Tail: true})
			if err != nil || r.Status != status || r.ErrorType != "ValueError" || !bytes.Equal(r.Payload, doc) || string(r.LogTail) != "line\n" {
				t.Fatalf("%+v, %v", r, err)
			}
			if e := r.Err(); starling.KindOf(e) != starling.Failed || starling.ReasonOf(e) != "ValueError" || !strings.Contains(e.Error(), "bad") {
				t.Fatalf("got %v", e)
			}
		}
	})
}

func TestFunctionThatCannotStartFailsLikeOneThatRan(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		w.on(func(context.Context, *starling.Version, *starling.Invocation, starling.Sink) (starling.Outcome, starling.Phases, error) {
			return starling.Outcome{}, starling.Phases{}, starling.Errorf(starling.Failed, "start", "no module main").With(starling.ErrImport)
		})
		r, err := c.Invoke(context.Background(), client.Call{Function: "echo"})
		if err != nil || r.Status != starling.Unhandled || r.ErrorType != starling.ErrImport || !strings.Contains(string(r.Payload), "no module main") {
			t.Fatalf("%+v, %v", r, err)
		}
	})
}

func TestRefusalsKeepTheirKind(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		for _, k := range []starling.Kind{starling.Invalid, starling.NotFound, starling.Overloaded, starling.Timeout, starling.Unavailable, starling.Internal} {
			w.on(func(context.Context, *starling.Version, *starling.Invocation, starling.Sink) (starling.Outcome, starling.Phases, error) {
				return starling.Outcome{}, starling.Phases{}, starling.Errorf(k, "invoke", "the disk /dev/secret is full").With("Why").RetryAfter(3 * time.Second)
			})
			_, err := c.Invoke(context.Background(), client.Call{Function: "echo"})
			if starling.KindOf(err) != k {
				t.Fatalf("%v came as %v", k, err)
			}
			if k == starling.Internal && strings.Contains(err.Error(), "secret") {
				t.Fatalf("an internal error told: %v", err)
			}
			var e *starling.Error
			if k == starling.Overloaded && (!errors.As(err, &e) || e.After != 3*time.Second || e.Reason != "Why") {
				t.Fatalf("got %+v", e)
			}
		}
	})
}

// A function of another account is refused with the very same bytes as one that is not there.
func TestOtherAccountsAreAbsent(t *testing.T) {
	w := newWorld(t)
	secret := w.client(w.other)
	if _, err := secret.CreateFunction(context.Background(), protocol.FunctionSpec{Name: "mine", Config: &starling.Config{Runtime: starling.NodeJS20}, Code: starling.CodeHash(hashOf(nil))}); err == nil {
		t.Fatal("the code of size 0 was accepted")
	}
	code, err := secret.PutCode(context.Background(), strings.NewReader("zip"), 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secret.CreateFunction(context.Background(), protocol.FunctionSpec{Name: "mine", Config: &starling.Config{Runtime: starling.NodeJS20}, Code: code.Hash}); err != nil {
		t.Fatal(err)
	}
	ask := func(name string) string {
		req, _ := http.NewRequest(http.MethodPost, w.http.URL+"/v1/functions/"+name+"/invocations", nil)
		req.Header.Set("Authorization", "Bearer "+w.user)
		req.Header.Set("X-Request-Id", "01234567-89ab-4def-8123-456789abcdef")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.Status + strings.ReplaceAll(string(b), name, "NAME")
	}
	if a, b := ask("mine"), ask("nope"); a != b || !strings.HasPrefix(a, "404") {
		t.Fatalf("they differ:\n%s\n%s", a, b)
	}
	// Nor can it take the other's code by its hash.
	_, err = w.client(w.user).CreateFunction(context.Background(), protocol.FunctionSpec{Name: "stolen", Config: &starling.Config{Runtime: starling.NodeJS20}, Code: code.Hash})
	if starling.ReasonOf(err) != "NoCode" {
		t.Fatalf("another account's code: %v", err)
	}
}

func TestBadKeysAreDenied(t *testing.T) {
	w := newWorld(t)
	for _, c := range []invoker{w.client("nonsense"), w.quic(t, "nonsense")} {
		if _, err := c.Invoke(context.Background(), client.Call{Function: "echo"}); starling.KindOf(err) != starling.Denied {
			t.Fatalf("got %v", err)
		}
	}
	res, err := http.Post(w.http.URL+"/v1/functions/echo/invocations", "", nil)
	if err != nil || res.StatusCode != 401 || res.Header.Get("WWW-Authenticate") != "Bearer" {
		t.Fatalf("%v %v", res.Status, err)
	}
	res.Body.Close()
}

func TestStreamedAnswersComeAsTheyAreMade(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		next := make(chan string)
		w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
			s.Start("text/event-stream", true)
			for p := range next {
				s.Write([]byte(p))
			}
			return starling.Outcome{Run: time.Second, LogTail: []byte("tail")}, starling.Phases{}, nil
		})
		r, out := io.Pipe()
		type end struct {
			r   *client.Result
			err error
		}
		done := make(chan end)
		go func() {
			res, err := c.Stream(context.Background(), client.Call{Function: "echo", Tail: true}, out)
			out.Close()
			done <- end{res, err}
		}()
		buf := make([]byte, 16)
		for _, p := range []string{"one", "two", "three"} {
			next <- p
			n, err := io.ReadAtLeast(r, buf, len(p)) // before the next piece is made
			if err != nil || string(buf[:n]) != p {
				t.Fatalf("%q, %v", buf[:n], err)
			}
		}
		close(next)
		e := <-done
		if e.err != nil || e.r.Timing["run"] != time.Second || string(e.r.LogTail) != "tail" || e.r.ContentType != "text/event-stream" {
			t.Fatalf("%+v, %v", e.r, e.err)
		}
	})
}

func TestLongStreamsPassWithCredit(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		piece := bytes.Repeat([]byte("abcdefgh"), 10_000)
		w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
			s.Start("x/y", true)
			for range 200 { // 16 MB
				if _, err := s.Write(piece); err != nil {
					return starling.Outcome{}, starling.Phases{}, err
				}
			}
			return starling.Outcome{}, starling.Phases{}, nil
		})
		var got bytes.Buffer
		if _, err := c.Stream(context.Background(), client.Call{Function: "echo"}, &got); err != nil || !bytes.Equal(got.Bytes(), bytes.Repeat(piece, 200)) {
			t.Fatalf("%d bytes, %v", got.Len(), err)
		}
	})
}

func TestFailureAfterTheFirstByteIsTold(t *testing.T) {
	both(t, func(t *testing.T, w *world, c invoker) {
		w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
			s.Start("x/y", true)
			s.Write([]byte("half"))
			return starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrExit}, starling.Phases{}, nil
		})
		var got bytes.Buffer
		r, err := c.Stream(context.Background(), client.Call{Function: "echo"}, &got)
		if err != nil || r.Status != starling.Unhandled || r.ErrorType != starling.ErrExit || got.String() != "half" {
			t.Fatalf("%+v, %v, %q", r, err, got.String())
		}
		w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
			s.Start("x/y", true)
			s.Write([]byte("half"))
			return starling.Outcome{}, starling.Phases{}, starling.Errorf(starling.Unavailable, "invoke", "host lost").With("HostLost")
		})
		if _, err := c.Stream(context.Background(), client.Call{Function: "echo"}, io.Discard); starling.KindOf(err) != starling.Unavailable {
			t.Fatalf("a host lost in the middle: %v", err)
		}
	})
}

// Rows E8 and E9: what a function says cannot add headers, split the answer or choose the status.
func TestHostileAnswersStayInTheirBody(t *testing.T) {
	w := newWorld(t)
	c := w.client(w.user)
	for _, kind := range []string{"text/html\r\nSet-Cookie: a=b", "x\x00y", strings.Repeat("a", 300), "", "\x7f"} {
		w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
			s.Start(kind, false)
			s.Write([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n"))
			return starling.Outcome{}, starling.Phases{}, nil
		})
		r, err := c.Invoke(context.Background(), client.Call{Function: "echo"})
		if err != nil || r.ContentType != "application/octet-stream" {
			t.Fatalf("%q: %+v %v", kind, r, err)
		}
	}
	w.on(func(context.Context, *starling.Version, *starling.Invocation, starling.Sink) (starling.Outcome, starling.Phases, error) {
		return starling.Outcome{Status: starling.Handled, ErrorType: "X\r\nSet-Cookie: a=b", Error: []byte("{}")}, starling.Phases{}, nil
	})
	if r, err := c.Invoke(context.Background(), client.Call{Function: "echo"}); err != nil || r.ErrorType != "Error" {
		t.Fatalf("%+v %v", r, err)
	}
}

func TestTooMuchIsRefused(t *testing.T) {
	w := newWorld(t)
	big := make([]byte, starling.PayloadMax+1)
	if _, err := w.client(w.user).Invoke(context.Background(), client.Call{Function: "echo", Payload: big}); starling.KindOf(err) != starling.TooLarge {
		t.Fatalf("by length: %v", err)
	}
	req, _ := http.NewRequest(http.MethodPost, w.http.URL+"/v1/functions/echo/invocations", io.MultiReader(bytes.NewReader(big))) // chunked
	req.Header.Set("Authorization", "Bearer "+w.user)
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != 413 {
		t.Fatalf("chunked: %v %v", res, err)
	}
	res.Body.Close()
	w.on(func(_ context.Context, _ *starling.Version, _ *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
		s.Start("x/y", false)
		s.Write(big)
		return starling.Outcome{}, starling.Phases{}, nil
	})
	for _, c := range []invoker{w.client(w.user), w.quic(t, w.user)} {
		r, err := c.Invoke(context.Background(), client.Call{Function: "echo"})
		if err != nil || r.ErrorType != starling.ErrResponseSize {
			t.Fatalf("answer: %+v %v", r, err)
		}
	}
	eventually(t, func() bool { return w.server.inFlight.Load() == 0 })
	w.server.deps.MemoryMax = 10
	w.on(echo)
	for _, c := range []invoker{w.client(w.user), w.quic(t, w.user)} {
		if _, err := c.Invoke(context.Background(), client.Call{Function: "echo", Payload: make([]byte, 100)}); starling.ReasonOf(err) != ReasonNodeOverload {
			t.Fatalf("memory: %v", err)
		}
	}
	eventually(t, func() bool { return w.server.memory.Load() == 0 })
	eventually(t, func() bool { return w.server.inFlight.Load() == 0 })
	w.server.deps.InFlightMax = 0
	if _, err := w.client(w.user).Invoke(context.Background(), client.Call{Function: "echo"}); starling.ReasonOf(err) != ReasonNodeOverload {
		t.Fatalf("in flight: %v", err)
	}
}

func TestHeadersOfAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.on(func(_ context.Context, _ *starling.Version, inv *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
		s.Start("application/json", false)
		json.NewEncoder(writer{s}).Encode(inv.Trace + "|" + inv.ClientContext)
		return starling.Outcome{LogTail: []byte("the log")}, starling.Phases{}, nil
	})
	req, _ := http.NewRequest(http.MethodPost, w.http.URL+"/v1/functions/echo/invocations?version=latest", strings.NewReader("{}"))
	req.Header.Set("Authorization", "Bearer "+w.user)
	req.Header.Set("traceparent", "00-1-2-01")
	req.Header.Set("X-Starling-Client-Context", "e30=")
	req.Header.Set("X-Starling-Log-Tail", "1")
	req.Header.Set("X-Request-Id", "no uuid")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	if string(b) != "\"00-1-2-01|e30=\"\n" {
		t.Errorf("body %q", b)
	}
	tail, _ := base64.StdEncoding.DecodeString(res.Header.Get("X-Starling-Log-Result"))
	if _, ok := starling.ParseRequestID(res.Header.Get("X-Request-Id")); !ok || string(tail) != "the log" || res.Header.Get("Server-Timing") != "run;dur=0.000" || res.ContentLength != int64(len(b)) {
		t.Errorf("headers %v", res.Header)
	}
	for query, want := range map[string]int{"?version=0": 400, "?version=9": 404, "?version=%zz": 400} {
		req, _ := http.NewRequest(http.MethodPost, w.http.URL+"/v1/functions/echo/invocations"+query, nil)
		req.Header.Set("Authorization", "Bearer "+w.user)
		res, err := http.DefaultClient.Do(req)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %v %v", query, res.Status, err)
		}
		res.Body.Close()
	}
}

type writer struct{ s starling.Sink }

func (w writer) Write(p []byte) (int, error) { return w.s.Write(p) }

// An admin acts for an account; a user cannot.
func TestAdminActsForAnAccount(t *testing.T) {
	w := newWorld(t)
	var seen starling.AccountID
	w.on(func(ctx context.Context, v *starling.Version, inv *starling.Invocation, s starling.Sink) (starling.Outcome, starling.Phases, error) {
		seen = v.Function.Account
		return echo(ctx, v, inv, s)
	})
	if _, err := w.client(w.admin, client.WithAccount("other")).Invoke(context.Background(), client.Call{Function: "echo"}); err != nil || seen != "other" {
		t.Fatalf("%v, ran in %q", err, seen)
	}
	if _, err := w.client(w.user, client.WithAccount("other")).Invoke(context.Background(), client.Call{Function: "echo"}); starling.ReasonOf(err) != "NotPermitted" {
		t.Fatalf("got %v", err)
	}
}
