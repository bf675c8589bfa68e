package frontend

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"starling"
	"starling/frontend/api"
	"starling/frontend/lean"
	"starling/frontend/protocol"
)

// keepMax bounds the buffers that are kept for the next call.
const keepMax = 256 << 10

// buffers keeps answers with their buffers for the next call.
type buffers struct{ pool sync.Pool }

func (b *buffers) answer(s *Server, w http.ResponseWriter) *answer {
	a, _ := b.pool.Get().(*answer)
	if a == nil {
		a = new(answer)
	}
	a.s, a.w = s, w
	return a
}

func (b *buffers) putAnswer(a *answer) {
	a.s.memory.Add(-a.reserved)
	payload, body, head := a.payload[:0], a.body[:0], a.head[:0]
	if cap(payload) > keepMax {
		payload = nil
	}
	if cap(body) > keepMax {
		body = nil
	}
	*a = answer{payload: payload, body: body, head: head}
	b.pool.Put(a)
}

// An answer is one HTTP call: its payload and the sink of what the function says. A plain answer is held
// until the call ended, because only then the status and the timing are known; a streaming one goes out as
// it comes, with the rest in trailers.
type answer struct {
	s           *Server
	w           http.ResponseWriter
	lean        *lean.Conn // the same as w where the connection is a lean one
	from        body
	ask         lean.Request
	began       time.Time
	inv         starling.Invocation
	version     starling.VersionNumber
	payload     []byte
	body        []byte
	head        []byte // scratch for header values
	reserved    int64
	contentType string
	streaming   bool // the header is out
	tooLong     bool
}

var _ starling.Sink = (*answer)(nil)

// room returns n bytes of the payload buffer.
func (a *answer) room(n int) []byte {
	if cap(a.payload) < n {
		return make([]byte, n)
	}
	return a.payload[:n]
}

var (
	plainType = []string{"application/octet-stream"}
	jsonType  = []string{"application/json"}
	noSniff   = []string{"nosniff"}
	trailers  = []string{protocol.HeaderServerTiming + ", " + protocol.HeaderFunctionError + ", " + protocol.HeaderErrorType + ", " + protocol.HeaderLogResult}
)

// Start begins the answer.
func (a *answer) Start(contentType string, streaming bool) {
	a.contentType = contentType
	if !streaming || a.streaming {
		return
	}
	a.streaming = true
	h := a.w.Header()
	h["Trailer"] = trailers
	h["X-Content-Type-Options"] = noSniff
	a.setContentType(h)
	h[protocol.HeaderRequestID] = []string{a.inv.ID.String()}
	h[protocol.HeaderVersion] = []string{a.version.String()}
	a.w.WriteHeader(http.StatusOK)
	http.NewResponseController(a.w).Flush()
}

// Write takes a part of the answer.
func (a *answer) Write(p []byte) (int, error) {
	if a.streaming {
		rc := http.NewResponseController(a.w)
		rc.SetWriteDeadline(time.Now().Add(streamTime))
		n, err := a.w.Write(p)
		if err == nil {
			err = rc.Flush()
		}
		return n, err
	}
	if len(a.body)+len(p) > starling.PayloadMax {
		a.tooLong = true // a host cuts this off before; here it only bounds memory
		return 0, tooLarge()
	}
	if err := a.s.reserve(int64(len(p))); err != nil {
		a.tooLong = true
		return 0, err
	}
	a.reserved += int64(len(p))
	a.body = append(a.body, p...)
	return len(p), nil
}

// finish writes what is left of the answer and returns its status.
func (a *answer) finish(out starling.Outcome, phases starling.Phases, err error) int {
	if a.streaming {
		h := a.w.Header()
		if err != nil {
			a.s.log.Info("streamed answer broke off", "request", a.inv.ID.String(), "error", err)
			panic(http.ErrAbortHandler) // the reader must not take what it has for the whole answer
		}
		a.head = appendTiming(a.head[:0], phases, out.Run)
		h[protocol.HeaderServerTiming] = []string{string(a.head)}
		a.tail(h, &out)
		a.functionError(h, &out)
		return http.StatusOK
	}
	if a.tooLong {
		out = starling.Outcome{Status: starling.Unhandled, ErrorType: starling.ErrResponseSize, Run: out.Run, LogTail: out.LogTail,
			Error: document(starling.ErrResponseSize, "the answer is larger than this frontend could hold")}
	}
	status, body := http.StatusOK, a.body
	if out.Status != starling.Succeeded {
		status = http.StatusBadGateway
		if len(out.Error) > 0 {
			body = out.Error
			a.contentType = "application/json"
		}
	}
	if a.lean != nil {
		a.finishLean(status, body, &out, phases)
		return status
	}
	h := a.w.Header()
	a.functionError(h, &out)
	a.tail(h, &out)
	a.setContentType(h)
	a.setFixed(h, phases, out.Run, len(body))
	a.w.WriteHeader(status)
	a.w.Write(body)
	return status
}

// finishLean is finish of a plain answer on a lean connection: its lines are written as they go out.
func (a *answer) finishLean(status int, body []byte, out *starling.Outcome, phases starling.Phases) {
	b := append(a.head[:0], protocol.HeaderServerTiming+": "...)
	b = appendTiming(b, phases, out.Run)
	b = append(b, "\r\nX-Content-Type-Options: nosniff\r\n"+protocol.HeaderRequestID+": "...)
	b = a.inv.ID.Append(b)
	b = append(b, "\r\n"+protocol.HeaderVersion+": "...)
	b = append(b, a.version.String()...)
	b = append(b, "\r\n"...)
	if word := statusWord(out.Status); word != "" {
		b = append(b, protocol.HeaderFunctionError+": "+word+"\r\n"+protocol.HeaderErrorType+": "...)
		b = append(b, cleanWord(out.ErrorType)...)
		b = append(b, "\r\n"...)
	}
	if a.inv.Tail {
		b = append(b, protocol.HeaderLogResult+": "...)
		b = base64.StdEncoding.AppendEncode(b, lastOf(out.LogTail))
		b = append(b, "\r\n"...)
	}
	a.head = b
	content := a.contentType
	if !cleanValue(content) {
		content = plainType[0]
	}
	a.lean.Answer(&lean.Answer{Status: status, ContentType: content, Fields: b, Body: body})
}

// setFixed sets the headers of every plain answer with two allocations: one text and one array hold them all.
func (a *answer) setFixed(h http.Header, phases starling.Phases, run time.Duration, size int) {
	b := a.inv.ID.Append(a.head[:0])
	id := len(b)
	b = appendTiming(b, phases, run)
	timing := len(b)
	b = strconv.AppendInt(b, int64(size), 10)
	a.head = b
	text := string(b)
	v := new([4]string)
	v[0], v[1], v[2], v[3] = text[:id], text[id:timing], text[timing:], a.version.String()
	h[protocol.HeaderRequestID] = v[0:1:1]
	h[protocol.HeaderServerTiming] = v[1:2:2]
	h["Content-Length"] = v[2:3:3]
	h[protocol.HeaderVersion] = v[3:4:4]
	h["X-Content-Type-Options"] = noSniff
}

func (a *answer) setContentType(h http.Header) {
	switch {
	case a.contentType == "application/json":
		h["Content-Type"] = jsonType
	case cleanValue(a.contentType):
		h["Content-Type"] = []string{a.contentType}
	default:
		h["Content-Type"] = plainType
	}
}

// functionError sets the headers of a function that failed.
func (a *answer) functionError(h http.Header, out *starling.Outcome) {
	word := statusWord(out.Status)
	if word == "" {
		return
	}
	h[protocol.HeaderFunctionError] = []string{word}
	h[protocol.HeaderErrorType] = []string{cleanWord(out.ErrorType)}
}

func statusWord(s starling.Status) string {
	switch s {
	case starling.Handled:
		return "Handled"
	case starling.Unhandled:
		return "Unhandled"
	}
	return ""
}

func (a *answer) tail(h http.Header, out *starling.Outcome) {
	if a.inv.Tail {
		h[protocol.HeaderLogResult] = []string{base64.StdEncoding.EncodeToString(lastOf(out.LogTail))}
	}
}

// lastOf returns as much of the end of a log as an answer carries.
func lastOf(log []byte) []byte { return log[max(0, len(log)-starling.LogTailMax):] }

// cleanValue reports whether s can be a Content-Type: the function chose it, so it is checked like a stranger's.
func cleanValue(s string) bool {
	if s == "" || len(s) > contentTypeMax {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// cleanWord makes an error type that a function chose fit for a header.
func cleanWord(s string) string {
	if s == "" || len(s) > 128 {
		return "Error"
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '.' || c == '_' || c == '-' || c == ':' || c == '$') {
			return "Error"
		}
	}
	return s
}

// document is the error document of a function that could not say one itself.
func document(errorType, message string) []byte {
	b, err := json.Marshal(protocol.FunctionError{Message: message, Type: errorType})
	if err != nil {
		return []byte(`{"errorMessage":"","errorType":"Error"}`)
	}
	return b
}

// appendTiming appends a Server-Timing value: phases that took no time are left out, run is always there.
func appendTiming(b []byte, p starling.Phases, run time.Duration) []byte {
	b = appendPhase(b, "queue", p.Queue)
	b = appendPhase(b, "place", p.Place)
	b = appendPhase(b, "start", p.Start)
	b = appendPhase(b, "init", p.Init)
	b = append(b, "run;dur="...)
	return appendMillis(b, run)
}

func appendPhase(b []byte, name string, d time.Duration) []byte {
	if d < time.Microsecond {
		return b
	}
	b = append(b, name...)
	b = append(b, ";dur="...)
	b = appendMillis(b, d)
	return append(b, ", "...)
}

// appendMillis appends d in milliseconds with three decimals.
func appendMillis(b []byte, d time.Duration) []byte {
	us := max(0, d.Microseconds())
	b = strconv.AppendInt(b, us/1000, 10)
	us %= 1000
	return append(b, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
}

// refuse writes an error as the answer. A function that cannot be started failed like one that ran: its
// callers see the same form for both.
func (s *Server) refuse(a *answer, err error) {
	if starling.KindOf(err) == starling.Failed {
		out := failure(err)
		a.body = a.body[:0]
		a.finish(out, starling.Phases{}, nil)
		return
	}
	if a.lean != nil && starling.KindOf(err) == starling.Overloaded {
		a.refuseLean(err)
		return
	}
	api.WriteError(a.w, s.log, a.inv.ID.String(), err)
}

// refuseLean is api.WriteError of a limit on a lean connection, without maps. Who is over a limit may be so thousands of
// times a second, and everybody else pays for it.
func (a *answer) refuseLean(err error) {
	a.head = append(a.inv.ID.Append(append(a.head[:0], "Cache-Control: no-store\r\n"+protocol.HeaderRequestID+": "...)), "\r\nRetry-After: "...)
	a.head = append(append(a.head, api.RetryAfter(err)...), "\r\n"...)
	body, _ := json.Marshal(api.Body(err, a.inv.ID.String())) // four texts: it cannot fail
	a.lean.Answer(&lean.Answer{Status: api.Status(err), ContentType: "application/json", Fields: a.head, Body: append(body, '\n')})
}

// failure is the outcome of a call whose function could not be started.
func failure(err error) starling.Outcome {
	reason := starling.ReasonOf(err)
	if reason == "" {
		reason = starling.ErrInit
	}
	return starling.Outcome{Status: starling.Unhandled, ErrorType: reason, Error: document(reason, messageOf(err))}
}
