package runtimeapi

import (
	"bytes"
	"errors"
)

// Limits of what one connection may send. The head limit leaves room for the error cause that aws-lambda-go
// puts into a header when a handler panics.
const (
	headMax    = 64 << 10
	trailerMax = 64 << 10
	headersMax = 64 // lines in one head
	chunkLine  = 18 // longest chunk size line: 16 digits and CRLF
)

// errBad is every request that is not the HTTP/1.1 we speak. The connection is closed after the answer:
// where a request ends is not known any more.
var errBad = errors.New("malformed request")

// request is one request's head. Its slices point into the connection's buffer.
type request struct {
	method, path  []byte
	length        int64 // of the body; -1 when chunked
	contentType   []byte
	errorType     []byte // Lambda-Runtime-Function-Error-Type
	extensionName []byte
	streaming     bool // Lambda-Runtime-Function-Response-Mode: streaming
	expect        bool // the client waits for 100 Continue
	close         bool // the client closes after this
}

// findHead returns the length of the head with its empty line, 0 when more bytes are needed.
func findHead(b []byte) int {
	if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return 0
}

// parseHead reads one whole head. What it accepts, net/http accepts with the same meaning; it refuses more:
// folded lines, bare CR or LF, any control byte, every doubt about where the body ends.
func parseHead(head []byte, r *request) error {
	*r = request{}
	line, rest, ok := cutLine(head)
	if !ok {
		return errBad
	}
	if err := parseLine(line, r); err != nil {
		return err
	}
	seen := framing{length: -1}
	for n := 0; ; n++ {
		line, rest, ok = cutLine(rest)
		if !ok || n > headersMax {
			return errBad
		}
		if len(line) == 0 {
			break
		}
		name, value, err := field(line)
		if err != nil {
			return err
		}
		if err := r.take(name, value, &seen); err != nil {
			return err
		}
	}
	switch {
	case seen.chunked && seen.length >= 0:
		return errBad
	case seen.chunked:
		r.length = -1
	case seen.length >= 0:
		r.length = seen.length
	}
	return nil
}

// framing is what the head said about the body's length.
type framing struct {
	length  int64
	chunked bool
}

// cutLine splits b after its first CRLF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

func parseLine(line []byte, r *request) error {
	a := bytes.IndexByte(line, ' ')
	z := bytes.LastIndexByte(line, ' ')
	if a <= 0 || z <= a+1 || string(line[z+1:]) != "HTTP/1.1" {
		return errBad
	}
	r.method, r.path = line[:a], line[a+1:z]
	for _, c := range r.method {
		if c < 'A' || c > 'Z' {
			return errBad
		}
	}
	if r.path[0] != '/' {
		return errBad
	}
	for _, c := range r.path {
		if c <= ' ' || c >= 0x7f || c == '%' || c == '?' || c == '#' {
			return errBad // no address of ours has these
		}
	}
	return nil
}

// field splits a header line and trims its value.
func field(line []byte) (name, value []byte, err error) {
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return nil, nil, errBad
	}
	for _, c := range line[:i] {
		if !token(c) {
			return nil, nil, errBad
		}
	}
	value = line[i+1:]
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return nil, nil, errBad
		}
	}
	return line[:i], value, nil
}

func token(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}

// take remembers the few headers that mean something here. The length is compared first: most names are
// told apart by it.
func (r *request) take(name, value []byte, seen *framing) error {
	switch len(name) {
	case 6:
		if same(name, "expect") {
			if !same(value, "100-continue") {
				return errBad
			}
			r.expect = true
		}
	case 10:
		if same(name, "connection") && contains(value, "close") {
			r.close = true
		}
	case 12:
		if same(name, "content-type") {
			r.contentType = value
		}
	case 14:
		if same(name, "content-length") {
			n, ok := decimal(value)
			if !ok || seen.length >= 0 {
				return errBad // twice is refused even when equal
			}
			seen.length = n
		}
	case 17:
		if same(name, "transfer-encoding") {
			if seen.chunked || !same(value, "chunked") {
				return errBad
			}
			seen.chunked = true
		}
	case 21:
		if same(name, "lambda-extension-name") {
			r.extensionName = value
		}
	case 34:
		if same(name, "lambda-runtime-function-error-type") {
			r.errorType = value
		}
	case 37:
		if same(name, "lambda-runtime-function-response-mode") {
			r.streaming = same(value, "streaming")
		}
	}
	return nil
}

// same compares b with s, which is in lower case, ignoring the case of b.
func same(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// contains reports whether the comma-separated list b holds the word s.
func contains(b []byte, s string) bool {
	for len(b) > 0 {
		word := b
		if i := bytes.IndexByte(b, ','); i >= 0 {
			word, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if same(bytes.TrimSpace(word), s) {
			return true
		}
	}
	return false
}

func decimal(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 15 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// parseChunkSize reads a chunk's size line without its CRLF. Extensions are refused: nobody sends them.
func parseChunkSize(b []byte) (int64, error) {
	if len(b) == 0 || len(b) > 15 {
		return 0, errBad
	}
	var n int64
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | int64(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n = n<<4 | int64(c|0x20-'a'+10)
		default:
			return 0, errBad
		}
	}
	return n, nil
}

// safe reports whether s may stand in a header value that we write.
func safe[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}
