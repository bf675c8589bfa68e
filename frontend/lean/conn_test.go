package lean

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAConnectionServesOneRequestAfterTheOther(t *testing.T) {
	c := serve(t, Config{Handle: echo}).dial()
	for _, n := range []int{0, 1, 100, bufferSize - 200, bufferSize, 100_000, 3 << 20, 5} {
		body := strings.Repeat("x", n)
		go c.nc.Write([]byte(post(body)))
		res := c.hears(body)
		if res.Header.Get("X-Function") != "echo" || res.Header.Get("Content-Type") != "text/plain" || res.ContentLength != int64(n) || res.Close {
			t.Fatalf("got %+v", res)
		}
		if _, err := http.ParseTime(res.Header.Get("Date")); err != nil {
			t.Fatal(err)
		}
	}
}

// Wherever the bytes are cut on their way, the requests are the same.
func TestRequestsMayBeCutAnywhere(t *testing.T) {
	c := serve(t, Config{Handle: echo}).dial()
	two := post("first") + post("second")
	for cut := 1; cut < len(two); cut++ {
		c.say(two[:cut])
		if cut%8 == 0 {
			time.Sleep(200 * time.Microsecond) // so that a good part of the cuts is seen as two reads
		}
		c.say(two[cut:])
		c.hears("first")
		c.hears("second")
	}
}

func TestManyRequestsInOneWriteAreAnsweredInOrder(t *testing.T) {
	c := serve(t, Config{Handle: echo}).dial()
	var all strings.Builder
	for n := range 500 { // more than a buffer, so that heads and bodies are cut by it
		all.WriteString(post(strings.Repeat("y", n)))
	}
	go io.WriteString(c.nc, all.String())
	for n := range 500 {
		c.hears(strings.Repeat("y", n))
	}
}

// The poller reported these bytes while the call ran; the wait after it must see them all the same.
func TestARequestThatComesDuringACallIsServedAfterIt(t *testing.T) {
	for _, watched := range []bool{false, true} {
		in, out := make(chan struct{}), make(chan struct{})
		c := serve(t, Config{Handle: func(c *Conn, r *Request) {
			if watched {
				c.Context().Done()
			}
			in <- struct{}{}
			<-out
			echo(c, r)
		}}).dial()
		c.say(post("a"))
		<-in
		c.say(post("b"))
		time.Sleep(5 * time.Millisecond)
		out <- struct{}{}
		c.hears("a")
		<-in
		out <- struct{}{}
		c.hears("b")
	}
}

func TestACallerThatEndsItsSideDuringACallGetsTheAnswerAndTheEnd(t *testing.T) {
	in, out := make(chan struct{}), make(chan struct{})
	c := serve(t, Config{Handle: func(c *Conn, r *Request) { in <- struct{}{}; <-out; echo(c, r) }}).dial()
	c.say(post("a"))
	<-in
	c.nc.CloseWrite()
	time.Sleep(5 * time.Millisecond)
	close(out)
	c.hears("a")
	c.ends()
}

// The whole takes longer than Stall, no piece of it does: the caller reads at a rate of its own, by the clock, so that a machine that is
// slow for a moment makes nothing of it take longer.
func TestASlowReaderGetsAHugeAnswer(t *testing.T) {
	huge := strings.Repeat("0123456789abcdef", 6<<20/16)
	const stall = time.Second
	w := serve(t, Config{Stall: stall, Handle: func(c *Conn, r *Request) {
		n, err := strconv.Atoi(r.Query)
		if err != nil {
			t.Error(err)
		}
		c.nc.SetWriteBuffer(64 << 10) // else the kernel takes the half of it at once
		c.Answer(&Answer{Status: 200, ContentType: "a/b", Body: []byte(huge[:n])})
	}})
	for _, n := range []int{wholeMax, wholeMax + 1, len(huge)} {
		c := w.dial()
		c.nc.SetReadBuffer(256 << 10) // of a few of loopback's packets: a window of one is closed at each, and opened by a probe of the kernel, up to seconds late
		for range max(1, 2*wholeMax/n) {
			c.say(strings.Replace(post(""), "invocations", "invocations?"+strconv.Itoa(n), 1))
			time.Sleep(10 * time.Millisecond) // so that the first write fills the socket
			res, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for began := time.Now(); err == nil; {
				time.Sleep(time.Until(began.Add(time.Duration(got.Len()) * 4 * stall / 3 / time.Duration(len(huge)))))
				_, err = io.CopyN(&got, res.Body, 64<<10)
			}
			if err != io.EOF || got.String() != huge[:n] {
				t.Fatalf("got %d bytes of %d, %v", got.Len(), n, err)
			}
		}
	}
}

func TestAReaderThatStopsIsCutOff(t *testing.T) {
	failed := make(chan error, 1)
	w := serve(t, Config{Stall: 30 * time.Millisecond, Handle: func(c *Conn, r *Request) {
		piece := make([]byte, 1<<20)
		for range 100 {
			if _, err := c.Write(piece); err != nil {
				break
			}
			if err := http.NewResponseController(c).Flush(); err != nil {
				break
			}
		}
		for range 10 { // what is said after that is dropped, not held
			c.Write(piece)
		}
		if len(c.answer.held) > 1<<20 || len(c.out) > 1<<20 {
			t.Errorf("%d and %d bytes are held for a caller that takes none", len(c.answer.held), len(c.out))
		}
		failed <- http.NewResponseController(c).Flush()
	}})
	w.dial().say(post(""))
	if err := <-failed; err == nil {
		t.Error("100 MiB went to a caller that reads nothing")
	}
}

// A body that nobody wants: the answer arrives whole, although the caller is still sending, and then the end.
func TestARefusalBeforeTheBodyArrives(t *testing.T) {
	w := serve(t, Config{Handle: func(c *Conn, r *Request) {
		c.Header().Set("Retry-After", "1")
		c.WriteHeader(http.StatusTooManyRequests)
		io.WriteString(c, "full")
	}})
	for range 5 {
		c := w.dial()
		sent := make(chan error, 1)
		go func() { _, err := io.WriteString(c.nc, post(strings.Repeat("x", 6<<20))); sent <- err }()
		if err := <-sent; err != nil {
			t.Fatalf("the body was cut off: %v", err)
		}
		res := c.hears("full")
		if res.StatusCode != 429 || !res.Close || res.Header.Get("Retry-After") != "1" {
			t.Fatalf("got %+v", res)
		}
		c.ends()
	}
	c := w.dial() // a body that is here already costs no connection
	for range 3 {
		c.say(post("small"))
		if c.hears("full").Close {
			t.Fatal("the connection ends for a small body")
		}
	}
}

func TestAnAnswerGoesOutInChunks(t *testing.T) {
	step := make(chan struct{})
	c := serve(t, Config{Handle: func(c *Conn, r *Request) {
		h := c.Header()
		h["Trailer"] = []string{"X-Took, X-Absent"}
		h.Set("Content-Type", "text/event-stream")
		h.Set("X-Split", "a\r\nX-Forged: b")
		rc := http.NewResponseController(c)
		c.WriteHeader(http.StatusAccepted)
		c.WriteHeader(http.StatusTeapot) // too late, as in net/http
		rc.Flush()
		<-step
		rc.SetWriteDeadline(time.Now())
		io.WriteString(c, "one ")
		rc.Flush()
		<-step
		io.WriteString(c, "")
		io.WriteString(c, strings.Repeat("z", 300_000))
		h.Set("X-Took", "9")
	}}).dial()
	for range 2 {
		c.say(post(""))
		res, err := http.ReadResponse(c.r, nil)
		if err != nil || res.StatusCode != 202 || len(res.TransferEncoding) != 1 || res.Header.Get("Content-Type") != "text/event-stream" || res.Header.Get("X-Forged") != "" {
			t.Fatalf("got %+v, %v", res, err)
		}
		step <- struct{}{} // so the head came before any of the body
		one := make([]byte, 4)
		if _, err := io.ReadFull(res.Body, one); err != nil || string(one) != "one " {
			t.Fatalf("got %q, %v", one, err)
		}
		step <- struct{}{}
		rest, err := io.ReadAll(res.Body)
		if err != nil || len(rest) != 300_000 || res.Trailer.Get("X-Took") != "9" {
			t.Fatalf("got %d bytes, trailers %v, %v", len(rest), res.Trailer, err)
		}
	}
}

func TestHandleMayAnswerNothing(t *testing.T) {
	c := serve(t, Config{Handle: func(*Conn, *Request) {}}).dial()
	for range 2 {
		c.say(post("x"))
		if res := c.hears(""); res.StatusCode != 200 || res.ContentLength != 0 {
			t.Fatalf("got %+v", res)
		}
	}
}

func TestEverythingElseIsForNetHTTP(t *testing.T) {
	w := serve(t, Config{Handle: echo})
	chunked := strings.Replace(plainHead, "Content-Length: 3", "Transfer-Encoding: chunked", 1) + "2\r\nab\r\n0\r\n\r\n"
	for name, c := range map[string]struct{ say, want string }{
		"get":              {"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "rest GET HTTP/1.1 "},
		"odd header":       {with("A: \xc3\xa4") + "abc", "rest POST HTTP/1.1 abc"},
		"HTTP/1.0":         {strings.Replace(plainHead, "1.1", "1.0", 1) + "abc", "rest POST HTTP/1.0 abc"},
		"chunked":          {chunked, "rest POST HTTP/1.1 ab"},
		"long head":        {with("Cookie: "+strings.Repeat("c", 20<<10)) + "abc", "rest POST HTTP/1.1 abc"},
		"a body over ours": {post(strings.Repeat("x", 8<<20+1)), "rest POST HTTP/1.1 " + strings.Repeat("x", 8<<20+1)},
		"garbage":          {"\x16\x03\x01\x02\x00 and what else a TLS client says\r\n\r\n", "400 Bad Request"},
		"other path":       {"POST /v1/functions?x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", "rest POST HTTP/1.1 "},
	} {
		for _, ours := range []bool{false, true} { // ours before it, in the same write
			k, text := w.dial(), c.say
			if ours {
				text = post("mine") + text
			}
			go io.WriteString(k.nc, text)
			if ours {
				k.hears("mine")
			}
			if res, body := k.hear(); body != c.want {
				t.Errorf("%s: got %d %.80q", name, res.StatusCode, body)
			}
		}
	}
}

func TestExpectAndHTTP2AreForNetHTTP(t *testing.T) {
	w := serve(t, Config{Handle: echo})
	c := w.dial()
	c.say(with("Expect: 100-continue"))
	if res, err := http.ReadResponse(c.r, nil); err != nil || res.StatusCode != 100 {
		t.Fatalf("got %+v, %v", res, err)
	}
	c.say("abc")
	c.hears("rest POST HTTP/1.1 abc")

	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: p}}
	defer client.CloseIdleConnections()
	res, err := client.Post("http://"+w.addr+"/v1/functions/echo/invocations", "text/plain", strings.NewReader("two"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); string(body) != "rest POST HTTP/2.0 two" {
		t.Errorf("got %q", body)
	}
}
