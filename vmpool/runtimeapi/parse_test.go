package runtimeapi

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// scripted is a connection that says fixed bytes and remembers what it is told.
type scripted struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *scripted) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *scripted) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scripted) Close() error                     { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// read takes one request apart as a connection does.
func read(raw []byte) (r request, body []byte, c *conn, err error) {
	c = newConn(New(nil, Config{Slots: 1}), &scripted{in: bytes.NewReader(raw)})
	if err = c.readHead(); err != nil {
		return r, nil, c, err
	}
	r = c.req
	r.method, r.path, r.contentType, r.errorType = slices.Clone(r.method), slices.Clone(r.path), slices.Clone(r.contentType), slices.Clone(r.errorType)
	for {
		b, err := c.some()
		if err != nil {
			return r, body, c, err
		}
		if b == nil {
			return r, body, c, nil
		}
		body = append(body, b...)
	}
}

const post = "POST /2018-06-01/runtime/invocation/00000000-0000-0000-0000-000000000000/response HTTP/1.1\r\n"

func TestDoubtfulRequestsAreRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"length and chunks":       post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"two lengths":             post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"two encodings":           post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"other encoding":          post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"signed length":           post + "Content-Length: +3\r\n\r\nabc",
		"hexadecimal length":      post + "Content-Length: 0x3\r\n\r\nabc",
		"empty length":            post + "Content-Length:\r\n\r\n",
		"list of lengths":         post + "Content-Length: 3, 3\r\n\r\nabc",
		"huge length":             post + "Content-Length: 99999999999999999999\r\n\r\n",
		"space before the colon":  post + "Content-Length : 3\r\n\r\nabc",
		"folded line":             post + "X-A: b\r\n c\r\n\r\n",
		"bare LF":                 post + "X-A: b\n\r\n\r\n",
		"bare CR":                 post + "X-A: b\rc\r\n\r\n",
		"NUL in a value":          post + "X-A: b\x00c\r\n\r\n",
		"NUL in a name":           post + "X\x00A: b\r\n\r\n",
		"no colon":                post + "X-A b\r\n\r\n",
		"no name":                 post + ": b\r\n\r\n",
		"HTTP/1.0":                "GET /2018-06-01/runtime/invocation/next HTTP/1.0\r\n\r\n",
		"HTTP/2 preface":          "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"three spaces":            "GET  /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n",
		"absolute form":           "GET http://x/2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n",
		"lower case method":       "get /2018-06-01/runtime/invocation/next HTTP/1.1\r\n\r\n",
		"escaped path":            "GET /2018-06-01/runtime/%2e%2e HTTP/1.1\r\n\r\n",
		"chunk size with a sign":  post + "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
		"chunk extension":         post + "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n",
		"chunk without its end":   post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
		"huge chunk":              post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"length in a trailer":     post + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n",
		"LF in a chunk size line": post + "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
		"strange expectation":     post + "Expect: miracles\r\nContent-Length: 0\r\n\r\n",
		"many lines":              post + strings.Repeat("X-A: b\r\n", headersMax+1) + "\r\n",
		"endless head":            post + "X-A: " + strings.Repeat("b", headMax+1),
	} {
		if _, _, _, err := read([]byte(raw)); err != errBad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBodiesAreReadInAnyPieces(t *testing.T) {
	long := strings.Repeat("0123456789", 20_000)
	for _, c := range []struct{ raw, body, trailer string }{
		{post + "Content-Length: 3\r\n\r\nabc", "abc", ""},
		{post + "Content-Length: 200000\r\n\r\n" + long, long, ""},
		{post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde", ""},
		{post + "Transfer-Encoding: Chunked\r\n\r\n30d40\r\n" + long + "\r\n0\r\nLambda-Runtime-Function-Error-Type: Boom\r\nOther: x\r\n\r\n", long, "Boom"},
		{post + "\r\n", "", ""},
	} {
		_, body, conn, err := read([]byte(c.raw))
		if err != nil || string(body) != c.body || conn.trailerType != c.trailer {
			t.Errorf("read %d bytes and %q: %v", len(body), conn.trailerType, err)
		}
	}
}

// FuzzRequest: what we accept, net/http accepts with the same method, path, length, body and trailers.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: h\r\n\r\n"))
	f.Add([]byte(post + "Host: h\r\nContent-Length: 3\r\nContent-Type: a/b\r\n\r\nabc"))
	f.Add([]byte(post + "Host: h\r\nTransfer-Encoding: chunked\r\nTrailer: Lambda-Runtime-Function-Error-Type\r\n\r\n3\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Type: E\r\n\r\n"))
	f.Add([]byte(post + "Expect: 100-continue\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, body, c, err := read(raw)
		if err != nil {
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			t.Fatalf("we accept what net/http refuses with %v", err)
		}
		want, err := io.ReadAll(theirs.Body)
		if err != nil {
			t.Fatalf("we read a body that net/http refuses with %v", err)
		}
		if theirs.Method != string(r.method) || theirs.URL.Path != string(r.path) || !bytes.Equal(want, body) {
			t.Fatalf("%s %s %q is to net/http %s %s %q", r.method, r.path, body, theirs.Method, theirs.URL.Path, want)
		}
		if r.length > 0 && theirs.ContentLength != r.length {
			t.Fatalf("length %d is to net/http %d", r.length, theirs.ContentLength)
		}
		if c.trailerType != "" && theirs.Trailer.Get("Lambda-Runtime-Function-Error-Type") == "" && theirs.Header.Get("Trailer") != "" {
			t.Fatalf("net/http sees no trailer")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	head := []byte(post + "Host: 127.0.0.1:9001\r\nUser-Agent: aws-lambda-go/go1.26.8\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\nTrailer: Lambda-Runtime-Function-Error-Body,Lambda-Runtime-Function-Error-Type\r\nAccept-Encoding: gzip\r\n\r\n")
	var r request
	b.ReportAllocs()
	for b.Loop() {
		if parseHead(head, &r) != nil {
			b.Fatal("refused")
		}
	}
}
