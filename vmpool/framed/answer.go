package framed

import (
	"encoding/binary"
	"errors"
	"fmt"

	"starling"
)

// errResponseSize ends a call whose buffered answer is over the limit.
var errResponseSize = starling.Errorf(starling.TooLarge, "take answer",
	"the answer is over %d bytes: stream it or return less", starling.PayloadMax).With(starling.ErrResponseSize)

// endsAfter is the failure byte of a runtime that ends itself after this answer.
const endsAfter = 2

// ErrEnds is what Err tells of a runtime that said it ends after the failure it just reported: the instance must get
// no further call, which would be lost with it.
var ErrEnds = errors.New("the runtime ends after this call")

// answer is what is known of the answer of the call in flight.
type answer struct {
	inv     *starling.Invocation
	sink    starling.Sink
	started bool
	gone    bool   // the caller went away; bytes are dropped
	stream  bool   // unbounded in size, bounded in time
	left    uint64 // bytes that a buffered answer still owes
}

// receive passes frames to the sink until the call ended.
func (c *Conn) receive(inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error) {
	a := answer{inv: inv, sink: sink}
	for {
		h, err := c.in.next()
		if err != nil {
			return starling.Outcome{}, err
		}
		id, err := c.in.take(idSize)
		if err != nil {
			return starling.Outcome{}, err
		}
		if starling.RequestID(id) != inv.ID {
			return starling.Outcome{}, fmt.Errorf("%w: an answer for another call", errProtocol)
		}
		switch h.typ {
		case typeAnswer, typeEnd:
			return c.finish(&a, h.typ)
		case typeHead:
			err = c.begin(&a)
		case typeChunk:
			err = c.chunk(&a)
		default:
			err = fmt.Errorf("%w: frame %d inside a call", errProtocol, h.typ)
		}
		if err != nil {
			return starling.Outcome{}, err
		}
	}
}

// begin takes a head.
func (c *Conn) begin(a *answer) error {
	b, err := c.in.take(headFixed - idSize)
	if err != nil {
		return err
	}
	if a.started || b[0] > 1 {
		return fmt.Errorf("%w: a second or strange head", errProtocol)
	}
	a.stream, a.left = b[0] == 1, binary.LittleEndian.Uint64(b[1:])
	content, err := c.in.take(int(b[9]))
	if err != nil {
		return err
	}
	if c.in.left != 0 {
		return fmt.Errorf("%w: a head too long", errProtocol)
	}
	if !a.stream && a.left > starling.PayloadMax {
		return errResponseSize
	}
	a.started = true
	a.sink.Start(c.contentType(content), a.stream)
	return nil
}

// chunk passes one chunk on as it comes.
func (c *Conn) chunk(a *answer) error {
	if !a.started {
		return fmt.Errorf("%w: a chunk before the head", errProtocol)
	}
	if !a.stream {
		if uint64(c.in.left) > a.left {
			return fmt.Errorf("%w: more bytes than the head said", errProtocol)
		}
		a.left -= uint64(c.in.left)
	}
	return c.pass(a)
}

// pass writes the rest of the frame to the sink.
func (c *Conn) pass(a *answer) error {
	for {
		b, err := c.in.some()
		if err != nil || b == nil {
			return err
		}
		if a.gone {
			continue
		}
		if _, err := a.sink.Write(b); err != nil {
			a.gone = true
		}
	}
}

// finish takes the frame that ends the call.
func (c *Conn) finish(a *answer, typ byte) (starling.Outcome, error) {
	var out starling.Outcome
	b, err := c.in.take(endFixed - idSize)
	if err != nil {
		return out, err
	}
	wrong := b[0]
	word, err := c.in.take(int(b[1]))
	if err != nil {
		return out, err
	}
	if wrong != 0 {
		if wrong == endsAfter {
			c.broken = ErrEnds
		}
		out.Status, out.ErrorType = starling.Handled, c.word(word)
		out.Error, err = c.in.document()
		return out, err
	}
	if typ == typeAnswer {
		if a.started {
			return out, fmt.Errorf("%w: an answer after a head", errProtocol)
		}
		a.sink.Start(c.contentType(word), false)
		return out, c.pass(a)
	}
	if !a.started || a.left != 0 && !a.stream || c.in.left != 0 {
		return out, fmt.Errorf("%w: the end came early", errProtocol)
	}
	return out, nil
}

// contentType keeps bytes that would break a header from reaching one.
func (c *Conn) contentType(b []byte) string {
	for _, x := range b {
		if x < 0x20 || x >= 0x7f {
			return "application/octet-stream"
		}
	}
	if len(b) == 0 {
		return "application/octet-stream"
	}
	return c.word(b)
}
