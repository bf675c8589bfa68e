package protocol

import (
	"encoding/binary"
	"time"

	"starling"
)

// The QUIC way to invoke: one stream of transport frames in each direction on the channel for clients. The
// client's first frame is Hello, answered by Welcome or Refusal, both with id 0. After that a frame's id is
// the number of a call, drawn by the client and not used again on the stream.
//
//	client → frontend: Call, Payload (while there is more), Cancel, Credit
//	frontend → client: End alone (a small answer is in it) or Head, Chunk…, End; a Refusal in place of any of them
//
// A Refusal with id 0 says that the stream takes no more calls; the client closes it after its last answer.
// A frontend sends at most Window bytes in Chunks of one call beyond the Credit that it was given. Kinds and
// layouts are only ever added to. Integers are little-endian; times are in microseconds.
const (
	KindHello   uint8 = 1
	KindCall    uint8 = 2
	KindPayload uint8 = 3
	KindCancel  uint8 = 4
	KindCredit  uint8 = 5
	KindWelcome uint8 = 10
	KindHead    uint8 = 11
	KindChunk   uint8 = 12
	KindEnd     uint8 = 13
	KindRefusal uint8 = 14
)

const (
	// Version is the version of this protocol.
	Version = 1
	// Window is how many bytes of an answer may be under way without credit.
	Window = 256 << 10
	// PieceMax is the most bytes of a payload or an answer that one frame carries.
	PieceMax = 60 << 10
	// CallsMax is how many calls one stream may have in flight.
	CallsMax = 1000

	traceMax   = 512
	contextMax = 3583
	typeMax    = 256
	textMax    = 4 << 10
)

// A Hello opens a stream.
type Hello struct {
	Version uint8
	Key     string
	Account starling.AccountID // admin only: act for it; empty for the key's own
}

// A CallHead asks for one call. Payload is the beginning of it; Total says how long all of it is.
type CallHead struct {
	Request       starling.RequestID // zero: the frontend draws one
	Number        starling.VersionNumber
	Within        time.Duration // the caller's deadline from now; 0 for none
	Tail          bool
	Total         uint32
	Function      string
	ContentType   string
	Trace         string
	ClientContext string
	Payload       []byte // a part of the frame
}

// An Ending ends a call. Without a Head before it, ContentType and Body are the answer.
type Ending struct {
	Request     starling.RequestID
	Number      starling.VersionNumber
	Status      starling.Status
	Run         time.Duration
	Phases      starling.Phases
	ErrorType   string
	ContentType string
	LogTail     []byte
	Body        []byte // the answer, or the error document of a function that failed; a part of the frame
}

// A reader takes fields off the front of a frame; once one is missing all that follow are empty.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// span reads a time; one beyond a day is wrong.
func (r *reader) span() time.Duration {
	p := r.take(8)
	if p == nil {
		return 0
	}
	us := binary.LittleEndian.Uint64(p)
	if us > uint64(24*time.Hour/time.Microsecond) {
		r.bad = true
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

func (r *reader) bytes(limit int) []byte {
	n := int(r.u16())
	if n > limit {
		r.bad = true
		return nil
	}
	return r.take(n)
}

func (r *reader) text(limit int) string { return string(r.bytes(limit)) }

func (r *reader) request() (id starling.RequestID) {
	copy(id[:], r.take(len(id)))
	return id
}

// end reports whether everything was there and nothing is left.
func (r *reader) end() error {
	if r.bad || len(r.b) != 0 {
		return malformed()
	}
	return nil
}

func malformed() error {
	return starling.Errorf(starling.Invalid, "read client frame", "the frame is malformed: the peer speaks another protocol")
}

func appendSpan(b []byte, d time.Duration) []byte {
	d = min(max(d, 0), 24*time.Hour)
	return binary.LittleEndian.AppendUint64(b, uint64(d/time.Microsecond))
}

// appendText appends s, cut to limit.
func appendText[T string | []byte](b []byte, s T, limit int) []byte {
	s = s[:min(len(s), limit)]
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// Append appends the body of a Hello frame.
func (h *Hello) Append(b []byte) []byte {
	b = append(b, h.Version)
	b = appendText(b, h.Key, typeMax)
	return appendText(b, string(h.Account), typeMax)
}

// DecodeHello reads the body of a Hello frame. Fields that a later version adds are ignored.
func DecodeHello(body []byte) (h Hello, err error) {
	r := reader{b: body}
	h.Version = r.u8()
	h.Key = r.text(typeMax)
	h.Account = starling.AccountID(r.text(typeMax))
	if r.bad {
		return Hello{}, malformed()
	}
	return h, nil
}

const flagTail = 1

// Append appends the body of a Call frame without its payload.
func (c *CallHead) Append(b []byte) []byte {
	b = append(b, c.Request[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Number))
	b = appendSpan(b, c.Within)
	var flags uint8
	if c.Tail {
		flags |= flagTail
	}
	b = append(b, flags)
	b = binary.LittleEndian.AppendUint32(b, c.Total)
	b = appendText(b, c.Function, typeMax)
	b = appendText(b, c.ContentType, typeMax)
	b = appendText(b, c.Trace, traceMax)
	return appendText(b, c.ClientContext, contextMax)
}

// Decode reads the body of a Call frame into c.
func (c *CallHead) Decode(body []byte) error {
	r := reader{b: body}
	c.Request = r.request()
	c.Number = starling.VersionNumber(r.u32())
	c.Within = r.span()
	c.Tail = r.u8()&flagTail != 0
	c.Total = r.u32()
	c.Function = r.text(typeMax)
	c.ContentType = r.text(typeMax)
	c.Trace = r.text(traceMax)
	c.ClientContext = r.text(contextMax)
	if r.bad || uint64(len(r.b)) > uint64(c.Total) {
		return malformed()
	}
	c.Payload = r.b
	return nil
}

// Append appends the body of an End frame without its Body.
func (e *Ending) Append(b []byte) []byte {
	b = append(b, e.Request[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(e.Number))
	b = append(b, uint8(e.Status))
	b = appendSpan(b, e.Run)
	b = appendSpan(b, e.Phases.Queue)
	b = appendSpan(b, e.Phases.Place)
	b = appendSpan(b, e.Phases.Start)
	b = appendSpan(b, e.Phases.Init)
	b = appendText(b, e.ErrorType, typeMax)
	b = appendText(b, e.ContentType, typeMax)
	return appendText(b, e.LogTail, starling.LogTailMax)
}

// Decode reads the body of an End frame into e.
func (e *Ending) Decode(body []byte) error {
	r := reader{b: body}
	e.Request = r.request()
	e.Number = starling.VersionNumber(r.u32())
	e.Status = starling.Status(r.u8())
	e.Run = r.span()
	e.Phases = starling.Phases{Queue: r.span(), Place: r.span(), Start: r.span(), Init: r.span()}
	e.ErrorType = r.text(typeMax)
	e.ContentType = r.text(typeMax)
	e.LogTail = r.bytes(starling.LogTailMax)
	if r.bad || e.Status > starling.Unhandled {
		return malformed()
	}
	e.Body = r.b
	return nil
}

// AppendRefusal appends the body of a Refusal frame: what a client is told of an error.
func AppendRefusal(b []byte, kind starling.Kind, body ErrorBody, after time.Duration) []byte {
	b = append(b, uint8(kind))
	b = appendText(b, body.Reason, typeMax)
	b = appendText(b, body.Message, textMax)
	b = appendText(b, body.RequestID, typeMax)
	return appendSpan(b, after)
}

// DecodeRefusal reads the body of a Refusal frame; the second result is what is wrong with the frame itself.
func DecodeRefusal(body []byte) (*starling.Error, error) {
	r := reader{b: body}
	e := &starling.Error{Kind: starling.Kind(r.u8()), Reason: r.text(typeMax), Message: r.text(textMax)}
	r.text(typeMax)
	e.After = r.span()
	if r.bad || e.Kind > starling.Unavailable {
		return nil, malformed()
	}
	return e, nil
}

// AppendHead appends the body of a Head frame.
func AppendHead(b []byte, contentType string) []byte { return appendText(b, contentType, typeMax) }

// DecodeHead reads the body of a Head frame.
func DecodeHead(body []byte) (contentType string, err error) {
	r := reader{b: body}
	contentType = r.text(typeMax)
	return contentType, r.end()
}

// AppendCredit appends the body of a Credit frame: so many bytes more may be sent.
func AppendCredit(b []byte, n uint32) []byte { return binary.LittleEndian.AppendUint32(b, n) }

// DecodeCredit reads the body of a Credit frame.
func DecodeCredit(body []byte) (uint32, error) {
	r := reader{b: body}
	n := r.u32()
	return n, r.end()
}

// AppendWelcome appends the body of a Welcome frame.
func AppendWelcome(b []byte) []byte { return append(b, Version) }

// DecodeWelcome reads the version the frontend speaks. Fields that a later version adds are ignored.
func DecodeWelcome(body []byte) (uint8, error) {
	r := reader{b: body}
	v := r.u8()
	if r.bad {
		return 0, malformed()
	}
	return v, nil
}
