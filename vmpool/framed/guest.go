package framed

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"

	"starling"
)

// A Guest is the runtime's side of the protocol in Go, for vmpool/fake and tests of the host's side.
type Guest struct {
	// Init runs once with what the host said; a Failure ends the guest.
	Init func(Setup) *Failure
	// Handle answers one call. It may send nothing and return, which a host sees as a call that hangs.
	Handle func(call *Call)
}

// A Call is one call as the runtime sees it. Its methods return the error of the socket.
type Call struct {
	ID            starling.RequestID
	Remaining     time.Duration
	Trace         string
	ClientContext string
	ContentType   string
	Payload       []byte

	nc net.Conn
}

// Serve speaks on nc until it ends or the init failed.
func (g *Guest) Serve(nc net.Conn) error {
	if _, err := nc.Write(putHeader(nil, typeReady, 0)); err != nil {
		return err
	}
	for {
		var head [headerSize]byte
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return err
		}
		h, err := parseHeader(head[:])
		if err != nil {
			return err
		}
		body := make([]byte, h.length)
		if _, err := io.ReadFull(nc, body); err != nil {
			return err
		}
		switch h.typ {
		case typeInit:
			if err := g.init(nc, body); err != nil {
				return err
			}
		case typeCall:
			c, err := readCall(nc, body)
			if err != nil {
				return err
			}
			g.Handle(c)
		default:
			return fmt.Errorf("%w: frame %d from the host", errProtocol, h.typ)
		}
	}
}

func (g *Guest) init(nc net.Conn, body []byte) error {
	var s Setup
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("decode setup: %w", err)
	}
	if f := g.Init(s); f != nil {
		doc, err := json.Marshal(f)
		if err != nil {
			return err
		}
		nc.Write(append(putHeader(nil, typeInitError, len(doc)), doc...))
		return fmt.Errorf("init: %s", f.Message)
	}
	_, err := nc.Write(putHeader(nil, typeInitOK, 0))
	return err
}

func readCall(nc net.Conn, b []byte) (*Call, error) {
	if len(b) < callFixed {
		return nil, fmt.Errorf("%w: short call", errProtocol)
	}
	c := &Call{ID: starling.RequestID(b), nc: nc}
	c.Remaining = time.Duration(binary.LittleEndian.Uint32(b[16:])) * time.Millisecond
	total := int(binary.LittleEndian.Uint32(b[20:]))
	n := [3]int{int(binary.LittleEndian.Uint16(b[24:])), int(binary.LittleEndian.Uint16(b[26:])), int(binary.LittleEndian.Uint16(b[28:]))}
	b = b[callFixed:]
	if n[0]+n[1]+n[2] > len(b) {
		return nil, fmt.Errorf("%w: short call", errProtocol)
	}
	c.Trace, b = string(b[:n[0]]), b[n[0]:]
	c.ClientContext, b = string(b[:n[1]]), b[n[1]:]
	c.ContentType, b = string(b[:n[2]]), b[n[2]:]
	c.Payload = b
	for len(c.Payload) < total {
		var head [headerSize]byte
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return nil, err
		}
		h, err := parseHeader(head[:])
		if err != nil || h.typ != typeMore || h.length > total-len(c.Payload) {
			return nil, fmt.Errorf("%w: strange continuation", errProtocol)
		}
		part := make([]byte, h.length)
		if _, err := io.ReadFull(nc, part); err != nil {
			return nil, err
		}
		c.Payload = append(c.Payload, part...)
	}
	return c, nil
}

// Answer ends the call with an answer, in one frame when it fits.
func (c *Call) Answer(contentType string, body []byte) error {
	const part = FrameMax / 2
	if len(body) <= part {
		return c.last(typeAnswer, 0, contentType, body)
	}
	if err := c.Head(contentType, false, uint64(len(body))); err != nil {
		return err
	}
	for ; len(body) > part; body = body[part:] {
		if err := c.Chunk(body[:part]); err != nil {
			return err
		}
	}
	if err := c.Chunk(body); err != nil {
		return err
	}
	return c.End()
}

// Fail ends the call with an error document.
func (c *Call) Fail(errorType string, document []byte) error {
	return c.last(typeEnd, 1, errorType, document)
}

// End ends a call that was answered by Head and Chunk.
func (c *Call) End() error { return c.last(typeEnd, 0, "", nil) }

func (c *Call) last(typ, failed byte, word string, body []byte) error {
	b := putHeader(nil, typ, endFixed+len(word)+len(body))
	b = append(b, c.ID[:]...)
	b = append(b, failed, byte(len(word)))
	b = append(b, word...)
	_, err := c.nc.Write(append(b, body...))
	return err
}

// Head begins an answer of length bytes, or a streaming one of any length.
func (c *Call) Head(contentType string, streaming bool, length uint64) error {
	b := putHeader(nil, typeHead, headFixed+len(contentType))
	b = append(b, c.ID[:]...)
	if streaming {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.LittleEndian.AppendUint64(b, length)
	b = append(b, byte(len(contentType)))
	_, err := c.nc.Write(append(b, contentType...))
	return err
}

// Chunk sends the next bytes of the answer, at most FrameMax less a kibibyte.
func (c *Call) Chunk(p []byte) error {
	b := putHeader(nil, typeChunk, idSize+len(p))
	b = append(b, c.ID[:]...)
	_, err := c.nc.Write(append(b, p...))
	return err
}

// Raw writes any bytes to the host, to try what a hostile runtime could.
func (c *Call) Raw(p []byte) error {
	_, err := c.nc.Write(p)
	return err
}

// Hangup closes the connection, as an exit of the runtime does.
func (c *Call) Hangup() error { return c.nc.Close() }

// NewCall returns a call whose answer is written to nc, for a double that got the call in another way.
func NewCall(nc net.Conn, id starling.RequestID, remaining time.Duration, payload []byte) *Call {
	return &Call{ID: id, Remaining: remaining, Payload: payload, nc: nc}
}

// A Whole is one answer with nothing streamed.
type Whole struct {
	Failed bool
	Word   string // content type, or error type of a failure
	Body   []byte
}

// ReadAnswer gathers one answer from its frames; false when the writer hung up first.
func ReadAnswer(nc net.Conn) (w Whole, ok bool) {
	for {
		var head [headerSize]byte
		if _, err := io.ReadFull(nc, head[:]); err != nil {
			return w, false
		}
		h, err := parseHeader(head[:])
		if err != nil || h.length < idSize {
			return w, false
		}
		body := make([]byte, h.length)
		if _, err := io.ReadFull(nc, body); err != nil {
			return w, false
		}
		body = body[idSize:]
		switch h.typ {
		case typeHead:
			w.Word = string(body[headFixed-idSize:])
		case typeChunk:
			w.Body = append(w.Body, body...)
		case typeEnd, typeAnswer:
			n := 2 + int(body[1])
			if w.Failed = body[0] != 0; w.Failed || h.typ == typeAnswer {
				w.Word, w.Body = string(body[2:n]), body[n:]
			}
			return w, true
		default:
			return w, false
		}
	}
}
