package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// HTTP calls one URL over HTTP/1.1 with a connection for each caller. The client is lean, because on a small
// machine the load generator takes its CPU from the server: one request ready as bytes, one read buffer, one
// write and usually one read a call, no allocation.
type HTTP struct {
	URL    string
	Method string // POST when empty
	Header map[string]string
	Body   []byte
	TLS    *tls.Config // for https; nil means the machine's roots
}

// Dial opens a connection.
func (h *HTTP) Dial(ctx context.Context) (Caller, error) {
	u, err := url.Parse(h.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%q: use http://host:port/path", h.URL)
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	c := &leanConn{addr: addr, request: h.request(u), buf: make([]byte, 64<<10)}
	if u.Scheme == "https" {
		c.tls = &tls.Config{ServerName: u.Hostname()}
		if h.TLS != nil {
			c.tls = h.TLS.Clone()
			c.tls.ServerName = u.Hostname()
		}
		c.tls.NextProtos = []string{"http/1.1"}
	}
	if err := c.connect(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	return c, nil
}

// request is the whole request as bytes.
func (h *HTTP) request(u *url.URL) []byte {
	method := h.Method
	if method == "" {
		method = "POST"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, u.RequestURI(), u.Host)
	names := make([]string, 0, len(h.Header))
	for n := range h.Header {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "%s: %s\r\n", n, h.Header[n])
	}
	if len(h.Body) > 0 || method == "POST" || method == "PUT" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(h.Body))
	}
	b.WriteString("\r\n")
	b.Write(h.Body)
	return b.Bytes()
}

// leanConn is one keep-alive connection.
type leanConn struct {
	addr    string
	tls     *tls.Config
	request []byte
	conn    net.Conn // nil after a failure, dialled again at the next call
	buf     []byte
	r, w    int // unread part of buf
	until   time.Time
}

var (
	errBroken = &Failure{Kind: "broken", Err: errors.New("the connection broke before the whole answer")}
	errSyntax = &Failure{Kind: "broken", Err: errors.New("the answer is no HTTP/1.1")}
)

func (c *leanConn) connect(deadline time.Time) error {
	d := net.Dialer{Deadline: deadline}
	conn, err := d.Dial("tcp", c.addr)
	if err != nil {
		return &Failure{Kind: "connect", Err: err}
	}
	if c.tls != nil {
		t := tls.Client(conn, c.tls)
		t.SetDeadline(deadline)
		if err := t.Handshake(); err != nil {
			conn.Close()
			return &Failure{Kind: "connect", Err: err}
		}
		conn = t
	}
	c.conn, c.r, c.w, c.until = conn, 0, 0, time.Time{}
	return nil
}

// Close closes the connection.
func (c *leanConn) Close() error {
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// Call sends the request and reads the answer to its end.
func (c *leanConn) Call(now time.Time, timeout time.Duration) error {
	deadline := now.Add(timeout)
	if c.conn == nil {
		if err := c.connect(deadline); err != nil {
			return err
		}
	}
	if deadline.Sub(c.until) > timeout/8 { // a deadline costs a timer: renew it only now and then
		c.until = deadline
		if err := c.conn.SetDeadline(deadline); err != nil {
			return c.fail(err)
		}
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return c.fail(err)
	}
	status, keep, err := c.answer()
	if err != nil {
		return c.fail(err)
	}
	if !keep {
		c.conn.Close()
		c.conn = nil
	}
	if status < 200 || status > 299 {
		return statusFailure(status)
	}
	return nil
}

func (c *leanConn) fail(err error) error {
	c.conn.Close()
	c.conn = nil
	var f *Failure
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Failure{Kind: "timeout", Err: err}
	}
	return &Failure{Kind: "broken", Err: err}
}

func statusFailure(status int) error {
	return &Failure{Kind: "http-" + strconv.Itoa(status), Err: fmt.Errorf("status %d", status)}
}

// fill reads more bytes behind the unread ones.
func (c *leanConn) fill() error {
	if c.r > 0 {
		copy(c.buf, c.buf[c.r:c.w])
		c.w -= c.r
		c.r = 0
	}
	if c.w == len(c.buf) {
		return errSyntax
	}
	n, err := c.conn.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == io.EOF {
		return errBroken
	}
	return err
}

// line returns the next line without its end; it is valid until the next read.
func (c *leanConn) line() ([]byte, error) {
	from := 0
	for {
		if i := bytes.IndexByte(c.buf[c.r+from:c.w], '\n'); i >= 0 {
			l := c.buf[c.r : c.r+from+i]
			c.r += from + i + 1
			return bytes.TrimSuffix(l, []byte{'\r'}), nil
		}
		from = c.w - c.r
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// answer reads one response. keep says whether the connection may be used again.
func (c *leanConn) answer() (status int, keep bool, err error) {
	for status < 200 { // 1xx are followed by the real answer
		if status, keep, err = c.head(); err != nil {
			return 0, false, err
		}
	}
	return status, keep, nil
}

func (c *leanConn) head() (status int, keep bool, err error) {
	l, err := c.line()
	if err != nil {
		return 0, false, err
	}
	if len(l) < 12 || string(l[:5]) != "HTTP/" {
		return 0, false, errSyntax
	}
	if status = number(l[9:12]); status < 100 {
		return 0, false, errSyntax
	}
	keep = string(l[5:8]) == "1.1"
	length, chunked := -1, false
	for {
		if l, err = c.line(); err != nil {
			return 0, false, err
		}
		if len(l) == 0 {
			break
		}
		switch {
		case field(l, "content-length"):
			if length = number(bytes.TrimSpace(l[len("content-length:"):])); length < 0 {
				return 0, false, errSyntax
			}
		case field(l, "transfer-encoding"):
			chunked = true
		case field(l, "connection"):
			keep = keep && !bytes.EqualFold(bytes.TrimSpace(l[len("connection:"):]), []byte("close"))
		}
	}
	switch {
	case status < 200 || status == 204 || status == 304:
		return status, keep, nil
	case chunked:
		return status, keep, c.chunks()
	case length >= 0:
		return status, keep, c.skip(length)
	}
	for err == nil { // the answer ends with the connection
		c.r, c.w = 0, 0
		err = c.fill()
	}
	if err == errBroken {
		err = nil
	}
	return status, false, err
}

// field reports whether line is the header name, which is given in lower case.
func field(line []byte, name string) bool {
	if len(line) <= len(name) || line[len(name)] != ':' {
		return false
	}
	for i := range name {
		if line[i]|0x20 != name[i] && line[i] != name[i] {
			return false
		}
	}
	return true
}

// number reads decimal digits; -1 for anything else or too much.
func number(b []byte) int {
	if len(b) == 0 || len(b) > 12 {
		return -1
	}
	n := 0
	for _, d := range b {
		if d < '0' || d > '9' {
			return -1
		}
		n = n*10 + int(d-'0')
	}
	return n
}

func (c *leanConn) skip(n int) error {
	for n > 0 {
		if c.r == c.w {
			c.r, c.w = 0, 0
			if err := c.fill(); err != nil {
				return err
			}
		}
		m := min(n, c.w-c.r)
		c.r += m
		n -= m
	}
	return nil
}

func (c *leanConn) chunks() error {
	for {
		l, err := c.line()
		if err != nil {
			return err
		}
		if i := bytes.IndexByte(l, ';'); i >= 0 {
			l = l[:i]
		}
		n, err := strconv.ParseUint(strings.TrimSpace(string(l)), 16, 31)
		if err != nil {
			return errSyntax
		}
		if n == 0 {
			break
		}
		if err := c.skip(int(n) + 2); err != nil {
			return err
		}
	}
	for { // trailers, up to an empty line
		if l, err := c.line(); err != nil || len(l) == 0 {
			return err
		}
	}
}
