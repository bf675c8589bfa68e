package runtimeapi

import (
	"bytes"
	"encoding/base64"
	"io"
	"net"
	"sync"
	"time"
)

const (
	bufferSmall = 4 << 10  // what an idle connection holds
	bufferLarge = 64 << 10 // what it borrows for a large head, body or trailer
	writeTime   = 10 * time.Second
	drainMax    = 256 << 10 // bytes of a refused body that are read to keep the connection
)

var largeBuffers = sync.Pool{New: func() any { return new([bufferLarge]byte) }}

// conn is one connection of the code inside. Its goroutine reads requests, passes answers straight from its buffer to
// the caller's sink, and writes the short replies. While parked it has asked for a call and another
// goroutine may write that call to it.
type conn struct {
	s    *Server
	sock socket

	mu     sync.Mutex // guards parked; a leaf
	freed  *sync.Cond // parked became false
	parked bool

	buf   []byte
	large *[bufferLarge]byte // behind buf, when borrowed
	r, w  int

	req     request
	left    int64 // bytes of the body or of its current chunk that were not taken
	chunked bool  // more chunks may follow
	crlf    bool  // the end of a chunk is due

	accept, park func() error // accepted and parked, once, so that a call allocates no closure

	trailerType string
	trailerBody []byte
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, buf: make([]byte, bufferSmall)}
	c.sock.init(nc)
	c.freed = sync.NewCond(&c.mu)
	c.accept, c.park = c.accepted, c.parkNow
	return c
}

// more reads at least one byte, making room first.
func (c *conn) more() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
		if c.left > bufferSmall {
			c.borrow()
		}
	} else if c.w == len(c.buf) {
		if c.r > 0 {
			c.w = copy(c.buf, c.buf[c.r:c.w])
			c.r = 0
		} else if !c.borrow() {
			return errBad
		}
	}
	n, err := c.sock.read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func (c *conn) borrow() bool {
	if c.large != nil {
		return false
	}
	c.large = largeBuffers.Get().(*[bufferLarge]byte)
	c.w = copy(c.large[:], c.buf[c.r:c.w])
	c.r, c.buf = 0, c.large[:]
	return true
}

// giveBack returns a borrowed buffer once it is empty.
func (c *conn) giveBack() {
	if c.large == nil || c.r != c.w {
		return
	}
	largeBuffers.Put(c.large)
	c.large, c.buf, c.r, c.w = nil, make([]byte, bufferSmall), 0, 0
}

// readHead reads one head into req. Its slices are valid until the body is read.
func (c *conn) readHead() error {
	c.left, c.chunked, c.crlf = 0, false, false
	c.trailerType, c.trailerBody = "", nil
	c.giveBack()
	for {
		if n := findHead(c.buf[c.r:c.w]); n > 0 {
			err := parseHead(c.buf[c.r:c.r+n], &c.req)
			c.r += n
			if err == nil {
				c.left, c.chunked = max(c.req.length, 0), c.req.length < 0
			}
			return err
		}
		if c.w-c.r >= headMax {
			return errBad
		}
		if err := c.more(); err != nil {
			return err
		}
	}
}

// some returns the next bytes of the body, nil at its end; valid until the next call.
func (c *conn) some() ([]byte, error) {
	for {
		if c.left > 0 {
			if c.r == c.w {
				if err := c.more(); err != nil {
					return nil, err
				}
			}
			n := int(min(c.left, int64(c.w-c.r)))
			b := c.buf[c.r : c.r+n]
			c.r += n
			c.left -= int64(n)
			c.crlf = c.chunked && c.left == 0
			return b, nil
		}
		if !c.chunked {
			return nil, nil
		}
		if err := c.nextChunk(); err != nil {
			return nil, err
		}
	}
}

func (c *conn) nextChunk() error {
	if c.crlf {
		if line, err := c.line(2); err != nil || len(line) != 0 {
			return orBad(err)
		}
		c.crlf = false
	}
	line, err := c.line(chunkLine)
	if err != nil {
		return err
	}
	if c.left, err = parseChunkSize(line); err != nil {
		return err
	}
	if c.left == 0 {
		c.chunked = false
		return c.trailers()
	}
	return nil
}

func orBad(err error) error {
	if err == nil {
		return errBad
	}
	return err
}

// line returns the next line without its CRLF; most bounds it with both.
func (c *conn) line(most int) ([]byte, error) {
	for {
		b := c.buf[c.r:c.w]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			if i < 1 || b[i-1] != '\r' || i+1 > most {
				return nil, errBad
			}
			c.r += i + 1
			return b[:i-1], nil
		}
		if len(b) >= most {
			return nil, errBad
		}
		if err := c.more(); err != nil {
			return nil, err
		}
	}
}

// trailers reads the lines after the last chunk and keeps the two that say how a stream failed.
func (c *conn) trailers() error {
	for total := 0; ; {
		line, err := c.line(trailerMax - total)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return nil
		}
		total += len(line) + 2
		name, value, err := field(line)
		if err != nil {
			return err
		}
		switch {
		case same(name, "content-length"), same(name, "transfer-encoding"), same(name, "trailer"):
			return errBad
		case same(name, "lambda-runtime-function-error-type"):
			c.trailerType = errorWord(value)
		case same(name, "lambda-runtime-function-error-body"):
			doc := make([]byte, base64.StdEncoding.DecodedLen(len(value)))
			n, err := base64.StdEncoding.Decode(doc, value)
			if err != nil {
				return errBad
			}
			c.trailerBody = doc[:n]
		}
	}
}

// drain takes the rest of a body that nobody wants; false when it is too long to keep the connection.
func (c *conn) drain() bool {
	for total := 0; total <= drainMax; {
		b, err := c.some()
		if err != nil {
			return false
		}
		if b == nil {
			return true
		}
		total += len(b)
	}
	return false
}

// continues asks for the body of a client that waits before sending it, as curl does.
func (c *conn) continues() error {
	if !c.req.expect || c.left == 0 && !c.chunked {
		return nil
	}
	return c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
}

func (c *conn) write(b []byte) error { return c.sock.write(b, time.Now().Add(writeTime)) }

// then does f before the next bytes are waited for, and at once when some are here already.
func (c *conn) then(f func() error) error {
	if c.r != c.w || c.req.close {
		return f()
	}
	c.sock.before = f
	return nil
}

// document reads a whole small body.
func (c *conn) document() (doc []byte, tooLarge bool, err error) {
	for {
		b, err := c.some()
		if err != nil {
			return nil, false, err
		}
		if b == nil {
			return doc, false, nil
		}
		if len(doc)+len(b) > documentMax {
			return nil, true, nil
		}
		doc = append(doc, b...)
	}
}
