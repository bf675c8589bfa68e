package lean

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// answer is the answer of the request in hand. Whoever has it whole uses Conn.Answer; everybody else uses it as an
// http.ResponseWriter: small answers are held until the end, and what is flushed earlier goes out in chunks.
type answer struct {
	c       *Conn
	header  http.Header // nil until it is asked for
	status  int         // 0 until it is known
	held    []byte
	chunked bool
	done    bool // a whole answer is in Conn.out
	failed  bool // the caller does not take it
	context *callContext
}

var _ http.ResponseWriter = (*Conn)(nil)

func (a *answer) reset() { *a = answer{c: a.c} }

// Answer is a whole answer.
type Answer struct {
	Status      int
	ContentType string
	Fields      []byte // further header lines, each with its CRLF
	Body        []byte
}

// wholeMax bounds what is copied so that head and body are one write.
const wholeMax = 256 << 10

// Answer sends a whole answer, at the latest when Handle returned. Nothing is sent after it.
func (c *Conn) Answer(w *Answer) {
	b := c.begin(w.Status)
	b = append(b, "Content-Type: "...)
	b = append(b, w.ContentType...)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(w.Body)), 10)
	b = append(b, "\r\n"...)
	b = append(b, w.Fields...)
	b = c.end(b)
	c.answer.done = true
	if len(w.Body) <= wholeMax {
		c.out = append(b, w.Body...)
		return
	}
	c.out = b
	c.answer.failed = !c.flush() || !c.write(w.Body)
}

// begin starts a head.
func (c *Conn) begin(status int) []byte {
	if in := c.w - c.r; c.body <= in { // what the handler did not want of it
		c.r, c.body = c.r+c.body, 0
	}
	b := append(c.room(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\nDate: "...)
	b = c.server.appendDate(b, time.Now())
	return append(b, "\r\n"...)
}

// end ends a head, and says so when the connection ends, too.
func (c *Conn) end(b []byte) []byte {
	if c.body > 0 || c.server.draining.Load() {
		b = append(b, "Connection: close\r\n"...)
	}
	return append(b, "\r\n"...)
}

// Header returns the header of an answer that is written in parts.
func (c *Conn) Header() http.Header {
	if c.answer.header == nil {
		c.answer.header = http.Header{}
	}
	return c.answer.header
}

// WriteHeader sets the status.
func (c *Conn) WriteHeader(status int) {
	if c.answer.status == 0 {
		c.answer.status = status
	}
}

// Write takes a part of the answer.
func (c *Conn) Write(p []byte) (int, error) {
	a := &c.answer
	if a.failed { // what is written from now on is dropped, not gathered
		return 0, errGone
	}
	c.WriteHeader(http.StatusOK)
	a.held = append(a.held, p...)
	if a.chunked {
		return len(p), c.FlushError()
	}
	return len(p), nil
}

// SetWriteDeadline is there for http.ResponseController; every write has the server's own bound.
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// FlushError sends what was written so far.
func (c *Conn) FlushError() error {
	a := &c.answer
	if a.failed {
		return errGone
	}
	c.WriteHeader(http.StatusOK)
	if !a.chunked {
		a.chunked = true
		b := c.lines(c.begin(a.status), a.header)
		c.out = c.end(append(b, "Transfer-Encoding: chunked\r\n"...))
	}
	if len(a.held) > 0 {
		if c.out == nil {
			c.out = c.room()
		}
		c.out = strconv.AppendInt(c.out, int64(len(a.held)), 16)
		c.out = append(c.out, "\r\n"...)
		c.out = append(c.out, a.held...)
		c.out = append(c.out, "\r\n"...)
		a.held = a.held[:0]
	}
	if a.failed = !c.flush(); a.failed {
		return errGone
	}
	return nil
}

// finish completes the answer and reports whether the connection can serve another request. What is short is sent
// together with the wait for that.
func (a *answer) finish() bool {
	c := a.c
	a.endContext()
	switch {
	case a.failed:
		return false
	case a.done:
		return true
	case !a.chunked:
		c.WriteHeader(http.StatusOK)
		b := c.lines(c.begin(a.status), a.header)
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(a.held)), 10)
		c.out = append(c.end(append(b, "\r\n"...)), a.held...)
		return true
	}
	c.out = append(c.room(), "0\r\n"...)
	trailers := http.Header{}
	for _, names := range a.header["Trailer"] {
		for _, name := range splitList(names) {
			if v := a.header[http.CanonicalHeaderKey(name)]; v != nil {
				trailers[http.CanonicalHeaderKey(name)] = v
			}
		}
	}
	c.out = append(c.lines(c.out, trailers), "\r\n"...)
	return true
}

// lines appends h in the order of names, without those that would end a line early and those that are set here.
func (c *Conn) lines(b []byte, h http.Header) []byte {
	names := make([]string, 0, len(h))
	for name := range h {
		if name != "Content-Length" && name != "Date" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, v := range h[name] {
			b = append(b, name...)
			b = append(b, ": "...)
			for i := 0; i < len(v); i++ {
				if v[i] >= ' ' || v[i] == '\t' {
					b = append(b, v[i])
				}
			}
			b = append(b, "\r\n"...)
		}
	}
	return b
}
