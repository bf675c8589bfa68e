package lean

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

const plainHead = "POST /v1/functions/hello/invocations HTTP/1.1\r\nHost: localhost:8080\r\nContent-Length: 3\r\n\r\n"

// with returns plainHead with more header lines.
func with(lines string) string {
	return strings.Replace(plainHead, "\r\n\r\n", "\r\n"+lines+"\r\n\r\n", 1)
}

func TestParseTakesPlainInvocationsOnly(t *testing.T) {
	as := func(old, new string) string { return strings.Replace(plainHead, old, new, 1) }
	for name, c := range map[string]struct {
		head string
		ours bool
	}{
		"plain":                {plainHead, true},
		"query":                {as("invocations ", "invocations?version=$LATEST&a=b "), true},
		"empty query":          {as("invocations ", "invocations? "), true},
		"keep-alive":           {with("Connection: Keep-Alive"), true},
		"odd case of a name":   {with("cOnTeNt-TyPe: a/b"), true},
		"unknown header":       {with("Cookie: a=b"), true},
		"empty value":          {with("X-Other:"), true},
		"IPv6 host":            {as("localhost:8080", "[::1]:8080"), true},
		"length with zeros":    {as(": 3", ": 0003"), true},
		"longest body":         {as(": 3", ": 1000"), true},
		"64 headers":           {with(strings.TrimSuffix(strings.Repeat("A: b\r\n", 62), "\r\n")), true},
		"67 headers":           {with(strings.TrimSuffix(strings.Repeat("A: b\r\n", 65), "\r\n")), false},
		"GET":                  {as("POST", "GET"), false},
		"lower case method":    {as("POST", "post"), false},
		"HTTP/1.0":             {as("HTTP/1.1", "HTTP/1.0"), false},
		"no version":           {as(" HTTP/1.1", ""), false},
		"other address":        {as("/invocations", "/logs"), false},
		"no name":              {as("/hello", "/"), false},
		"name is missing":      {as("/hello", ""), false},
		"name of 65":           {as("hello", strings.Repeat("a", 65)), false},
		"percent in the name":  {as("hello", "hell%6f"), false},
		"slash in the name":    {as("hello", "a/b"), false},
		"percent in the query": {as("invocations ", "invocations?a=%20 "), false},
		"whole address":        {as("/v1", "http://h/v1"), false},
		"two spaces":           {as(" HTTP", "  HTTP"), false},
		"bare line feed":       {as("\r\nHost", "\nHost"), false},
		"no host":              {as("Host", "Hos"), false},
		"empty host":           {as("localhost:8080", ""), false},
		"two hosts":            {with("Host: b"), false},
		"odd host":             {as("localhost", "a@b"), false},
		"no length":            {as("Content-Length", "Content-Size"), false},
		"two lengths":          {with("Content-Length: 3"), false},
		"negative length":      {as(": 3", ": -3"), false},
		"length with a plus":   {as(": 3", ": +3"), false},
		"list of lengths":      {as(": 3", ": 3, 3"), false},
		"length over a number": {as(": 3", ": 99999999999999999999"), false},
		"too long a body":      {as(": 3", ": 1001"), false},
		"chunked":              {with("Transfer-Encoding: chunked"), false},
		"chunked, odd case":    {with("tRANSFER-eNCODING: identity"), false},
		"trailer":              {with("Trailer: A"), false},
		"te":                   {with("TE: trailers"), false},
		"expect":               {with("Expect: 100-continue"), false},
		"upgrade":              {with("Upgrade: h2c"), false},
		"close":                {with("Connection: close"), false},
		"field twice":          {with("Traceparent: a\r\nTraceparent: b"), false},
		"folded line":          {with("A: b\r\n c"), false},
		"space before a colon": {with("A : b"), false},
		"no colon":             {with("A"), false},
		"no name of a header":  {with(": b"), false},
		"control character":    {with("A: \x01"), false},
		"carriage return":      {with("A: b\r"), false},
		"not ASCII":            {with("A: \xc3\xa4"), false},
		"tab in a value":       {with("A: b\tc"), false},
	} {
		var r Request
		if ours := parse([]byte(c.head), &r, 1000); ours != c.ours {
			t.Errorf("%s: ours is %v, want %v", name, ours, c.ours)
		}
		if err := agrees([]byte(c.head)); err != "" {
			t.Errorf("%s: %s", name, err)
		}
	}
}

// A value of the former request must not live on in the next one, which lacks it.
func TestParseForgetsTheFormerRequest(t *testing.T) {
	var r Request
	full := "Authorization: Bearer k\r\nX-Starling-Account: a\r\nX-Request-Id: i\r\nContent-Type: c\r\nTraceparent: t\r\nX-Starling-Client-Context: x\r\nX-Starling-Log-Tail: 1"
	head := strings.Replace(with(full), "invocations ", "invocations?version=1 ", 1)
	if !parse([]byte(head), &r, 1000) || r != (Request{"hello", "version=1", "Bearer k", "a", "i", "c", "t", "x", "1", 3}) {
		t.Fatalf("got %+v", r)
	}
	if !parse([]byte(plainHead), &r, 1000) || r != (Request{Function: "hello", Length: 3}) {
		t.Fatalf("got %+v", r)
	}
	if n := testing.AllocsPerRun(100, func() { parse([]byte(plainHead), &r, 1000) }); n != 0 {
		t.Errorf("the same head again costs %v allocations", n)
	}
}

// agrees compares what parse makes of head with what net/http does, and says where they differ.
func agrees(head []byte) string {
	var r Request
	if !parse(head, &r, 1<<20) {
		return ""
	}
	in := bufio.NewReader(io.MultiReader(bytes.NewReader(head), strings.NewReader("behind")))
	h, err := http.ReadRequest(in)
	if err != nil {
		return "net/http refuses it: " + err.Error()
	}
	first := func(name string) string { return h.Header.Get(name) }
	same := Request{
		Function: strings.TrimSuffix(strings.TrimPrefix(h.URL.Path, linePrefix[len("POST "):]), nameEnd), Query: h.URL.RawQuery,
		Authorization: first("Authorization"), Account: first("X-Starling-Account"), RequestID: first("X-Request-Id"), ContentType: first("Content-Type"),
		Trace: first("Traceparent"), ClientContext: first("X-Starling-Client-Context"), Tail: first("X-Starling-Log-Tail"), Length: int(h.ContentLength),
	}
	for _, f := range fields {
		if len(h.Header.Values(f.name)) > 1 {
			return "two values of " + f.name
		}
	}
	switch {
	case r != same:
		return "another meaning"
	case h.Method != http.MethodPost || h.ProtoMajor != 1 || h.ProtoMinor != 1 || h.Host == "":
		return "another method, version or no host"
	case h.Close || len(h.TransferEncoding) > 0 || len(h.Trailer) > 0:
		return "another end of the message"
	}
	for _, name := range []string{"Expect", "Upgrade", "Te", "Transfer-Encoding"} {
		if _, there := h.Header[name]; there {
			return "a header that only net/http understands: " + name
		}
	}
	h.Body = http.NoBody // so that what follows the head is still in the reader
	if rest, _ := io.ReadAll(in); string(rest) != "behind" {
		return "another end of the head"
	}
	return ""
}

// Whatever this package takes, net/http takes with the same meaning: else a proxy before us could be made to see other
// requests than we do.
func FuzzHead(f *testing.F) {
	f.Add([]byte(plainHead))
	f.Add([]byte(with("Authorization: Bearer k\r\nX-Starling-Account: a\r\nConnection: keep-alive\r\nA: b")))
	f.Add([]byte(with("Transfer-Encoding: chunked\r\nTraceparent: \t a \t")))
	f.Fuzz(func(t *testing.T, head []byte) {
		if err := agrees(head); err != "" {
			t.Errorf("%s: %q", err, head)
		}
	})
}
