package lean

import (
	"bytes"
	"strings"

	"starling/frontend/protocol"
)

// A Request is the head of one invocation. Its strings are the caller's words, unchecked but for the characters that HTTP allows.
type Request struct {
	Function      string
	Query         string // without the question mark
	Authorization string
	Account       string
	RequestID     string
	ContentType   string
	Trace         string
	ClientContext string
	Tail          string
	Length        int // bytes of the body
}

// fields are the headers that mean something to an invocation, in lower case.
var fields = [...]struct {
	name string
	of   func(*Request) *string
}{
	{"authorization", func(r *Request) *string { return &r.Authorization }},
	{"content-type", func(r *Request) *string { return &r.ContentType }},
	{"traceparent", func(r *Request) *string { return &r.Trace }},
	{strings.ToLower(protocol.HeaderRequestID), func(r *Request) *string { return &r.RequestID }},
	{strings.ToLower(protocol.HeaderAccount), func(r *Request) *string { return &r.Account }},
	{strings.ToLower(protocol.HeaderClientContext), func(r *Request) *string { return &r.ClientContext }},
	{strings.ToLower(protocol.HeaderLogTail), func(r *Request) *string { return &r.Tail }},
}

const (
	linePrefix = "POST /v1/functions/"
	nameEnd    = "/invocations"
	lineEnd    = " HTTP/1.1"
	headersMax = 64
)

// parse reads a whole head, with its empty line, into r and reports whether it is one that this package serves. What
// it takes, net/http takes with the same meaning; all else is left to net/http: other methods, addresses and versions,
// bodies without a plain length, every header that changes how a message is read, a header given twice, an odd character.
// Strings of the former request are used again where they are the same, so that a kept connection costs none.
func parse(head []byte, r *Request, lengthMax int) bool {
	line, rest, ok := cutLine(head)
	if !ok || !parseLine(line, r) {
		return false
	}
	var seen [len(fields)]bool
	length, host := -1, false
	for n := 0; ; n++ {
		if line, rest, ok = cutLine(rest); !ok || n > headersMax {
			return false
		}
		if len(line) == 0 {
			break
		}
		name, value, ok := field(line)
		if !ok {
			return false
		}
		k, served := known(name)
		switch {
		case !served:
			return false
		case k == isHost:
			if host || !hostValue(value) {
				return false
			}
			host = true
		case k == isLength:
			if length >= 0 {
				return false
			}
			if length = decimal(value, lengthMax); length < 0 {
				return false
			}
		case k == isConnection:
			if !same(value, "keep-alive") {
				return false
			}
		case k >= 0:
			if seen[k] {
				return false
			}
			seen[k] = true
			keep(fields[k].of(r), value)
		}
	}
	for k := range fields {
		if !seen[k] {
			*fields[k].of(r) = ""
		}
	}
	r.Length = length
	return host && length >= 0 && len(rest) == 0
}

// Places of headers that are no field; isOther means nothing here.
const (
	isOther = -1 - iota
	isHost
	isLength
	isConnection
)

// known finds a header by its name; served is false for one that only net/http understands. The first letter and the length
// tell most apart.
func known(name []byte) (k int, served bool) {
	switch name[0] | 0x20 {
	case 'a', 'x':
	case 'c':
		if same(name, "content-length") {
			return isLength, true
		}
		if same(name, "connection") {
			return isConnection, true
		}
	case 'h':
		if same(name, "host") {
			return isHost, true
		}
	case 't':
		if same(name, "transfer-encoding") || same(name, "trailer") || same(name, "te") {
			return 0, false
		}
	case 'e', 'u':
		if same(name, "expect") || same(name, "upgrade") {
			return 0, false
		}
		return isOther, true
	default:
		return isOther, true
	}
	for k := range fields {
		if same(name, fields[k].name) {
			return k, true
		}
	}
	return isOther, true
}

func parseLine(line []byte, r *Request) bool {
	if len(line) < len(linePrefix)+len(lineEnd) || string(line[:len(linePrefix)]) != linePrefix || string(line[len(line)-len(lineEnd):]) != lineEnd {
		return false
	}
	name := line[len(linePrefix) : len(line)-len(lineEnd)]
	var query []byte
	if i := bytes.IndexByte(name, '?'); i >= 0 {
		name, query = name[:i], name[i+1:]
		for _, c := range query {
			if !plain(c) && c != '=' && c != '&' && c != '$' {
				return false
			}
		}
	}
	if !bytes.HasSuffix(name, []byte(nameEnd)) {
		return false
	}
	name = name[:len(name)-len(nameEnd)]
	if len(name) == 0 || len(name) > 64 {
		return false
	}
	for _, c := range name {
		if !plain(c) {
			return false
		}
	}
	keep(&r.Function, name)
	keep(&r.Query, query)
	return true
}

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

func hostValue(b []byte) bool {
	for _, c := range b {
		if !plain(c) && c != '.' && c != ':' && c != '[' && c != ']' {
			return false
		}
	}
	return len(b) > 0
}

// keep sets s to b, without allocating when it is that already.
func keep(s *string, b []byte) {
	if *s != string(b) {
		*s = string(b)
	}
}

// cutLine splits b after its first CRLF.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// field splits a header line and trims its value.
func field(line []byte) (name, value []byte, ok bool) {
	i := bytes.IndexByte(line, ':')
	if i <= 0 {
		return nil, nil, false
	}
	for _, c := range line[:i] {
		if !plain(c) { // a token may hold more; who sends that is served by net/http
			return nil, nil, false
		}
	}
	value = bytes.Trim(line[i+1:], " \t")
	for _, c := range value {
		if c < ' ' || c >= 0x7f {
			return nil, nil, false
		}
	}
	return line[:i], value, true
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

// decimal returns the number b, or -1 when it is none from 0 to most.
func decimal(b []byte, most int) int {
	if len(b) == 0 || len(b) > 12 {
		return -1
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	if n > most {
		return -1
	}
	return n
}
