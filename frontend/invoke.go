package frontend

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"starling"
	"starling/frontend/api"
	"starling/frontend/auth"
	"starling/frontend/lean"
	"starling/frontend/protocol"
)

// Longest values of headers that are passed through to the function.
const (
	traceMax         = 512
	clientContextMax = 3583
	contentTypeMax   = 256
)

// requestID takes the caller's name for a request if it is a UUID and draws one otherwise.
func requestID(name string) starling.RequestID {
	if name != "" {
		if id, ok := starling.ParseRequestID(name); ok {
			return id
		}
	}
	return drawID()
}

// drawID draws a random UUID of version 4. Ids name calls and open nothing, so a fast source is enough.
func drawID() (id starling.RequestID) {
	binary.LittleEndian.PutUint64(id[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(id[8:], rand.Uint64())
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

func header(h http.Header, canonical string) string {
	if v := h[canonical]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// invoke serves an invocation that came to net/http.
func (s *Server) invoke(w http.ResponseWriter, r *http.Request, name starling.FunctionName) {
	a := s.buffers.answer(s, w)
	defer s.buffers.putAnswer(a)
	a.from = httpBody{w, r}
	a.ask = lean.Request{
		Function: string(name), Query: r.URL.RawQuery, Length: int(max(r.ContentLength, -1)),
		Authorization: header(r.Header, "Authorization"), Account: header(r.Header, protocol.HeaderAccount), RequestID: header(r.Header, protocol.HeaderRequestID),
		ContentType: header(r.Header, "Content-Type"), Trace: header(r.Header, "Traceparent"),
		ClientContext: header(r.Header, protocol.HeaderClientContext), Tail: header(r.Header, protocol.HeaderLogTail),
	}
	s.serveCall(r.Context(), a)
}

// invokeLean serves an invocation on a lean connection: it must not allocate what it can do without.
func (s *Server) invokeLean(c *lean.Conn, r *lean.Request) {
	a := s.buffers.answer(s, c)
	defer s.buffers.putAnswer(a)
	a.from, a.lean, a.ask = c, c, *r
	s.serveCall(c.Context(), a)
}

// serveCall is the data path over HTTP.
func (s *Server) serveCall(ctx context.Context, a *answer) {
	a.began = time.Now()
	a.inv.ID = requestID(a.ask.RequestID)
	status, err := s.carryOut(ctx, a)
	if err != nil {
		status = counted(err)
		s.refuse(a, err)
	}
	s.numbers.answered(status, time.Since(a.began))
}

// counted is the status under which an error is counted: a caller that left is no failure of ours.
func counted(err error) int {
	if starling.ReasonOf(err) == "CallerGone" {
		return 499
	}
	return api.Status(err)
}

// carryOut runs one call and writes its answer; an error is one that is not written yet.
func (s *Server) carryOut(ctx context.Context, a *answer) (int, error) {
	p, err := s.auth.Authenticate(ctx, a.ask.Authorization)
	if err != nil {
		return 0, err
	}
	if a.ask.Account != "" {
		if p, err = p.For(a.ask.Account); err != nil {
			return 0, err
		}
	}
	number := starling.Latest
	if a.ask.Query != "" {
		if number, err = versionOf(a.ask.Query); err != nil {
			return 0, err
		}
	}
	v, err := s.resolve(ctx, p, starling.FunctionName(a.ask.Function), number)
	if err != nil {
		return 0, err
	}
	if err := s.admit(v.Function); err != nil {
		return 0, err
	}
	defer s.inFlight.Add(-1)
	if err := s.readBody(a); err != nil {
		return 0, err
	}
	inv := &a.inv
	inv.Payload = a.payload
	inv.ContentType = a.ask.ContentType
	inv.Trace = a.ask.Trace
	inv.ClientContext = a.ask.ClientContext
	inv.Tail = a.ask.Tail == "1"
	if len(inv.ContentType) > contentTypeMax || len(inv.Trace) > traceMax || len(inv.ClientContext) > clientContextMax {
		return 0, starling.Errorf(starling.Invalid, "invoke function", "a header is too long: Content-Type has at most %d bytes, traceparent %d, X-Starling-Client-Context %d",
			contentTypeMax, traceMax, clientContextMax)
	}
	a.version = v.Number
	out, phases, err := s.deps.Dispatch.Invoke(ctx, v, inv, a)
	if err != nil && !a.streaming {
		return 0, err
	}
	return a.finish(out, phases, err), nil
}

func versionOf(query string) (starling.VersionNumber, error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return 0, starling.Errorf(starling.Invalid, "invoke function", "the query of the address cannot be read: %w", err)
	}
	return starling.ParseVersionNumber(q.Get("version"))
}

// resolve finds the version to run. A function of another account is as absent as one that never was.
func (s *Server) resolve(ctx context.Context, p auth.Principal, name starling.FunctionName, n starling.VersionNumber) (*starling.Version, error) {
	if len(name) == 0 || len(name) > 64 {
		return nil, name.Validate()
	}
	return s.deps.Catalog.Resolve(ctx, starling.FunctionRef{Account: p.Account, Name: name}, n)
}

// admit counts one more call in flight or refuses it.
func (s *Server) admit(f starling.FunctionRef) error {
	if err := s.gate.Pass(f); err != nil {
		return err
	}
	if s.inFlight.Add(1) > s.deps.InFlightMax {
		s.inFlight.Add(-1)
		return starling.Errorf(starling.Overloaded, "invoke function", "this frontend has %d calls in flight, its limit: retry after a pause", s.deps.InFlightMax).With(ReasonNodeOverload).RetryAfter(time.Second)
	}
	return nil
}

// reserve takes n bytes of the memory for payloads and answers.
func (s *Server) reserve(n int64) error {
	if s.memory.Add(n) > s.deps.MemoryMax {
		s.memory.Add(-n)
		return starling.Errorf(starling.Overloaded, "invoke function", "this frontend holds as many bytes of payloads as it may: retry after a pause").With(ReasonNodeOverload).RetryAfter(time.Second)
	}
	return nil
}

func tooLarge() error {
	return starling.Errorf(starling.TooLarge, "invoke function", "the payload is larger than %d bytes: pass a reference to it instead", starling.PayloadMax)
}

// A body is where a payload comes from.
type body interface {
	Body(p []byte) error // reads all of it into p, which is as long
}

// httpBody is the body of a request to net/http. The deadline keeps a caller that sends nothing from staying.
type httpBody struct {
	w http.ResponseWriter
	r *http.Request
}

func (b httpBody) Body(p []byte) error {
	defer b.until()()
	if _, err := io.ReadFull(b.r.Body, p); err != nil {
		return err
	}
	var more [1]byte // reads the end of the body, so that net/http watches for a caller that leaves
	b.r.Body.Read(more[:])
	return nil
}

// all reads a body of unknown length, at most one byte more than a payload may have.
func (b httpBody) all(p []byte) ([]byte, error) {
	defer b.until()()
	return readAll(p, b.r.Body)
}

func (b httpBody) until() (end func()) {
	rc := http.NewResponseController(b.w)
	rc.SetReadDeadline(time.Now().Add(bodyTime))
	return func() { rc.SetReadDeadline(time.Time{}) }
}

// readBody reads the payload into a's buffer.
func (s *Server) readBody(a *answer) error {
	n := int64(a.ask.Length)
	if n == 0 {
		return nil
	}
	if n > starling.PayloadMax {
		return tooLarge()
	}
	room := n
	if n < 0 {
		room = starling.PayloadMax + 1
	}
	if err := s.reserve(room); err != nil {
		return err
	}
	a.reserved += room
	var err error
	if h, ok := a.from.(httpBody); ok && n < 0 {
		a.payload, err = h.all(a.payload[:0])
	} else {
		a.payload = a.room(int(n))
		err = a.from.Body(a.payload)
	}
	switch {
	case err != nil:
		return starling.Errorf(starling.Invalid, "invoke function", "the payload broke off: %w", err)
	case len(a.payload) > starling.PayloadMax:
		return tooLarge()
	}
	return nil
}

// readAll appends at most PayloadMax+1 bytes of r to b.
func readAll(b []byte, r io.Reader) ([]byte, error) {
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		end := min(cap(b), starling.PayloadMax+1)
		if len(b) == end {
			return b, nil
		}
		n, err := r.Read(b[len(b):end])
		b = b[:len(b)+n]
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
	}
}
