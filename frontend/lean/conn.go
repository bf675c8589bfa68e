package lean

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/nowait"
)

// bufferSize takes a head and a small body in one read. A head that does not fit goes to net/http.
const bufferSize = 16 << 10

// buffers and outs are shared by all connections: one that waits holds none.
var (
	buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}
	outs    = sync.Pool{New: func() any { return new([]byte) }}
)

const (
	outKeep  = 64 << 10  // bytes of an answer's buffer that is kept for the next one
	pieceMax = 256 << 10 // bytes that a caller takes within Stall
)

// A Conn is one connection. It is used by its own goroutine and by Handle, which runs on it.
type Conn struct {
	server *Server
	nc     *net.TCPConn
	raw    syscall.RawConn
	step   func(fd uintptr) bool // exchangeFD, once, so that a call allocates no closure
	armed  time.Time             // the read deadline; the zero time when there is none

	buf  *[bufferSize]byte // nil while nothing is there to read
	r, w int               // what is read of it, what is filled
	err  error             // of the last exchange

	request Request
	body    int     // bytes of the body that were not taken
	out     []byte  // what is to be sent
	store   *[]byte // that out lies in; nil when out is empty
	answer  answer
	idle    atomic.Bool
}

func newConn(s *Server, nc net.Conn) *Conn {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	c := &Conn{server: s, nc: t, raw: raw}
	c.step = c.exchangeFD
	c.answer.c = c
	return c
}

// serve carries out one request after the other until the connection ends or is handed over.
func (c *Conn) serve() {
	defer func() {
		c.giveBack()
		if p := recover(); p != nil {
			c.nc.Close()
			c.answer.endContext()
			if p != http.ErrAbortHandler {
				c.server.cfg.Log.Error("a request failed by our fault", "panic", p, "stack", string(debug.Stack()))
			}
		}
	}()
	for {
		switch c.next() {
		case ended:
			c.nc.Close()
			return
		case others:
			c.handOver()
			return
		}
		c.answer.reset()
		c.server.cfg.Handle(c, &c.request)
		if !c.answer.finish() || c.body > 0 || c.server.draining.Load() {
			c.endAfter()
			return
		}
	}
}

type turn int

const (
	ours   turn = iota // a request was read
	others             // what was read is for net/http
	ended
)

// next sends what is to be sent and reads the next head.
func (c *Conn) next() turn {
	if c.r == c.w {
		if !c.waitNext() {
			return ended
		}
	} else if !c.flush() {
		return ended
	}
	partial := false
	for {
		if n := bytes.Index(c.buf[c.r:c.w], []byte("\r\n\r\n")); n >= 0 {
			head := c.buf[c.r : c.r+n+4]
			if !parse(head, &c.request, c.server.cfg.BodyMax) {
				return others
			}
			c.r += len(head)
			c.body = c.request.Length
			return ours
		}
		if mayBeOurs := bytes.HasPrefix(c.buf[c.r:c.w], []byte(linePrefix[:min(len(linePrefix), c.w-c.r)])); !mayBeOurs || c.w-c.r >= bufferSize/2 {
			return others
		}
		if !partial {
			partial = true
			copy(c.buf[:], c.buf[c.r:c.w])
			c.r, c.w = 0, c.w-c.r
			c.deadline(time.Now().Add(c.server.cfg.HeadTime))
		}
		n, err := c.nc.Read(c.buf[c.w:])
		c.w += n
		if err != nil {
			return ended
		}
	}
}

// deadline bounds the reads that follow.
func (c *Conn) deadline(t time.Time) {
	c.armed = t
	c.nc.SetReadDeadline(t)
}

// waitNext sends what is to be sent and waits for the first bytes of the next request, at most for Idle. The timer is
// set anew only when half of it is gone, so that a busy connection costs none.
func (c *Conn) waitNext() bool {
	if left := time.Until(c.armed); left < c.server.cfg.Idle/2 || left > c.server.cfg.Idle {
		c.deadline(time.Now().Add(c.server.cfg.Idle))
	}
	c.giveBack()
	c.r, c.w, c.err = 0, 0, nil
	err := c.raw.Read(c.step)
	if err == nil && c.err == errFull {
		if !c.flush() {
			return false
		}
		c.err = nil
		err = c.raw.Read(c.step)
	}
	c.idle.Store(false)
	return err == nil && c.err == nil
}

// giveBack returns the buffer of what was read.
func (c *Conn) giveBack() {
	if c.buf != nil {
		buffers.Put(c.buf)
		c.buf = nil
	}
}

// errFull ends an exchange whose answer did not fit the socket's buffer.
var errFull = errors.New("socket buffer full")

// exchangeFD writes what is to be written and reads; true ends the wait. The read right after a write is mostly in vain and
// costs 0.4 us, yet it must be: what came while the call ran (a pipelined request, the end) was reported before this wait began, and
// the poller reports nothing twice.
func (c *Conn) exchangeFD(fd uintptr) bool {
	if len(c.out) > 0 {
		n, err := nowait.Write(int(fd), c.out)
		switch {
		case err == nil && n == len(c.out):
			c.sent()
		case err == nil || err == unix.EAGAIN:
			c.out = c.out[max(n, 0):]
			c.err = errFull
			return true
		default:
			c.err = os.NewSyscallError("write", err)
			return true
		}
	}
	if c.nowIdle() {
		return true
	}
	c.buf = buffers.Get().(*[bufferSize]byte)
	n, err := nowait.Read(int(fd), c.buf[:])
	switch {
	case err == unix.EAGAIN:
		c.giveBack()
		return false
	case err != nil:
		c.err = os.NewSyscallError("read", err)
	case n == 0:
		c.err = io.EOF
	}
	c.w = max(n, 0)
	return true
}

// flush sends what is to be sent now.
func (c *Conn) flush() bool {
	if len(c.out) == 0 {
		return true
	}
	ok := c.write(c.out)
	c.sent()
	return ok
}

// write writes p piece by piece, so that a caller that reads slowly has Stall for each.
func (c *Conn) write(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), pieceMax)
		c.nc.SetWriteDeadline(time.Now().Add(c.server.cfg.Stall))
		if _, err := c.nc.Write(p[:n]); err != nil {
			return false
		}
		p = p[n:]
	}
	return true
}

// room returns an empty buffer for what is to be sent; it becomes out.
func (c *Conn) room() []byte {
	if c.store == nil {
		c.store = outs.Get().(*[]byte)
	}
	return (*c.store)[:0]
}

// sent forgets what was to be sent.
func (c *Conn) sent() {
	if c.store != nil && cap(c.out) <= outKeep {
		*c.store = c.out[:0]
		outs.Put(c.store)
	}
	c.out, c.store = nil, nil
}

// endAfter sends what is left and closes the connection. A caller that still sends (a body that was refused, a pipelined request)
// gets time to read the answer: closing at once would destroy it on its way.
func (c *Conn) endAfter() {
	if c.flush() && c.nc.CloseWrite() == nil {
		c.deadline(time.Now().Add(lingerTime))
		io.CopyN(io.Discard, c.nc, int64(c.server.cfg.BodyMax))
	}
	c.nc.Close()
}

// lingerTime is how long a caller may read the answer after which the connection ends.
const lingerTime = 500 * time.Millisecond

// nowIdle notes that nothing is under way, and reports whether the connection is to end for that.
func (c *Conn) nowIdle() bool {
	c.idle.Store(true)
	if c.server.draining.Load() {
		c.err = errGone
		return true
	}
	return false
}

// handOver gives the connection to net/http with what was read of it.
func (c *Conn) handOver() {
	if !c.flush() {
		c.nc.Close()
		return
	}
	first := bytes.Clone(c.buf[c.r:c.w])
	c.nc.SetDeadline(time.Time{})
	c.server.over.give(&begun{c.nc, first})
}

// endIdle closes the connection when no request is under way.
func (c *Conn) endIdle() {
	if c.idle.Load() {
		c.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// Body reads the whole body into p, which has the request's Length.
func (c *Conn) Body(p []byte) error {
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	c.body -= n
	if c.body == 0 {
		return nil
	}
	c.deadline(time.Now().Add(c.server.cfg.BodyTime))
	m, err := io.ReadFull(c.nc, p[n:])
	c.body -= m
	c.deadline(time.Time{})
	if err == nil && c.answer.context != nil {
		c.answer.context.bodyRead()
	}
	return err
}
