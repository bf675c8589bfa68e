package lean

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestTimesBoundWhatACallerMayTake(t *testing.T) {
	const short = 40 * time.Millisecond
	for name, c := range map[string]struct {
		cfg  Config
		say  string
		want string
	}{
		"idle from the start": {Config{Idle: short}, "", ""},
		"idle after a call":   {Config{Idle: short}, post("a"), "a"},
		"slow head":           {Config{HeadTime: short}, post("")[:30], ""},
		"body that stops":     {Config{BodyTime: short}, post("abc")[:len(post("abc"))-1], "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.Handle = echo
			k := serve(t, c.cfg).dial()
			began := time.Now()
			k.say(c.say)
			if c.want != "" {
				if _, body := k.hear(); !strings.Contains(body, c.want) {
					t.Fatalf("got %q", body)
				}
			}
			k.ends()
			if d := time.Since(began); d < short/2 || d > 20*short+lingerTime {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// A context costs a goroutine only when somebody asks for its Done, and ends with the call at the latest.
func TestContextEndsWhenTheCallerGoesAway(t *testing.T) {
	asked, contexts := make(chan bool), make(chan context.Context, 1)
	leave := make(chan struct{})
	w := serve(t, Config{Handle: func(c *Conn, r *Request) {
		ctx := c.Context()
		if <-asked {
			<-ctx.Done()
		} else {
			<-leave
		}
		if (ctx.Err() == nil) != (r.Length == 0) {
			t.Errorf("body of %d: the context says %v", r.Length, ctx.Err())
		}
		contexts <- ctx
	}})
	gone := w.dial()
	gone.say(post("x"))
	asked <- true
	gone.nc.Close()
	if ctx := <-contexts; ctx.Err() != context.Canceled {
		t.Errorf("got %v", ctx.Err())
	}
	unwatched := w.dial()
	unwatched.say(post(""))
	asked <- false
	before := runtime.NumGoroutine()
	unwatched.nc.Close()
	time.Sleep(5 * time.Millisecond)
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before: something watches that nobody asked for", n, before)
	}
	close(leave)
	ctx := <-contexts
	select {
	case <-ctx.Done(): // asked for after the call
	case <-time.After(20 * time.Second):
		t.Error("the context of a call that is over does not end")
	}
}

// The watch of a call begins when its body is here, outlives the deadlines of former reads, and ends with the call.
func TestTheWatchCoversTheCallAndNoMore(t *testing.T) {
	step := make(chan struct{})
	w := serve(t, Config{Idle: 60 * time.Millisecond, HeadTime: 60 * time.Millisecond, Handle: func(c *Conn, r *Request) {
		done := c.Context().Done() // before the body is read, as who looks up a key does
		step <- struct{}{}
		echo(c, r)
		if r.Length > 1 {
			<-done
			step <- struct{}{}
			return
		}
		time.Sleep(90 * time.Millisecond)
		select {
		case <-done:
			t.Error("the context ended with a caller that is there")
		default:
		}
	}})
	c := w.dial()
	text := post("1")
	for range 2 {
		c.say(text[:len(text)-1])
		<-step
		time.Sleep(5 * time.Millisecond)
		c.say(text[len(text)-1:])
		c.hears("1")
	}
	for _, here := range []int{len(post("22")) - 1, len(post("22"))} { // the body comes later, and with the head
		c, text := w.dial(), post("22")
		c.say(text[:here])
		<-step
		time.Sleep(5 * time.Millisecond)
		c.say(text[here:])
		time.Sleep(90 * time.Millisecond) // all deadlines of before have passed
		c.nc.Close()
		select {
		case <-step:
		case <-time.After(20 * time.Second):
			t.Fatalf("the caller left unseen, %d bytes came at first", here)
		}
	}
}

func TestAPanicEndsItsConnectionOnly(t *testing.T) {
	w := serve(t, Config{Handle: func(c *Conn, r *Request) {
		body := make([]byte, r.Length)
		c.Body(body)
		switch string(body) {
		case "abort":
			c.Context().Done()
			c.Write([]byte("half"))
			http.NewResponseController(c).Flush()
			panic(http.ErrAbortHandler)
		case "bug":
			panic("a bug")
		}
		c.Answer(&Answer{Status: 200, ContentType: "a/b", Body: body})
	}})
	good := w.dial()
	bug := w.dial()
	bug.say(post("bug"))
	bug.ends()
	abort := w.dial()
	abort.say(post("abort"))
	res, err := http.ReadResponse(abort.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.Body.Read(make([]byte, 10)); n != 4 || err != nil {
		t.Fatalf("got %d, %v", n, err)
	}
	if _, err := res.Body.Read(make([]byte, 10)); err == nil || err.Error() == "EOF" {
		t.Errorf("half an answer looks whole: %v", err)
	}
	good.say(post("fine"))
	good.hears("fine")
	if err := w.shutdown(time.Second); err != nil {
		t.Error(err)
	}
	if log := w.logs.String(); strings.Count(log, "a bug") != 1 || strings.Contains(log, "abort") {
		t.Errorf("the log says %q", log)
	}
}

func TestShutdownEndsIdleConnectionsAndWaitsForCalls(t *testing.T) {
	in, out := make(chan struct{}), make(chan struct{})
	w := serve(t, Config{Handle: func(c *Conn, r *Request) {
		if r.Length == 4 {
			in <- struct{}{}
			<-out
		}
		echo(c, r)
	}})
	fresh, used, busy := w.dial(), w.dial(), w.dial()
	used.say(post("a"))
	used.hears("a")
	busy.say(post("busy"))
	<-in
	until(t, "a connection was not accepted", func() bool {
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		return len(w.s.conns) == 3
	})
	ended := make(chan error, 1)
	go func() { ended <- w.shutdown(5 * time.Second) }()
	fresh.ends()
	used.ends()
	if nc, err := net.Dial("tcp", w.addr); err == nil {
		nc.Close()
		t.Error("a server that shuts down accepts")
	}
	select {
	case err := <-ended:
		t.Errorf("shutdown did not wait: %v", err)
	case <-time.After(5 * time.Millisecond):
	}
	close(out)
	if res := busy.hears("busy"); !res.Close {
		t.Error("the answer does not say that the connection ends")
	}
	busy.ends()
	busy.nc.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A call that heeds nothing is left to whoever carries it out; its caller is cut off.
func TestShutdownIsBounded(t *testing.T) {
	in, out := make(chan struct{}), make(chan struct{})
	w := serve(t, Config{Handle: func(c *Conn, r *Request) { in <- struct{}{}; <-out; echo(c, r) }})
	c := w.dial()
	c.say(post("x"))
	<-in
	if err := w.shutdown(20 * time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	c.ends()
	close(out)
}

// failing is a listener that runs out of descriptors a few times.
type failing struct {
	net.Listener
	left int
	at   []time.Time
}

func (f *failing) Accept() (net.Conn, error) {
	if f.at = append(f.at, time.Now()); f.left > 0 {
		f.left--
		return nil, errors.New("too many open files")
	}
	return f.Listener.Accept()
}

func TestAcceptBacksOff(t *testing.T) {
	w := serve(t, Config{Handle: echo}) // for its Config only
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &failing{Listener: l, left: 3}
	s, done := New(w.s.cfg), make(chan error, 1)
	go func() { done <- s.Serve(f) }()
	w.addr = l.Addr().String()
	c := w.dial()
	c.say(post("after all"))
	c.hears("after all")
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	<-done
	for n, least := range []time.Duration{5, 10, 20} {
		if d := f.at[n+1].Sub(f.at[n]); d < least*time.Millisecond {
			t.Errorf("pause %d is %v", n, d)
		}
	}
}

// Shutdown may overtake Serve.
func TestServeAfterShutdownEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{})
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
