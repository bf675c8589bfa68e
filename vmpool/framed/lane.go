package framed

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/nowait"
)

// A lane is the connection of one runtime with a deadline that costs no timer a call, and an exchange that costs no read
// in vain. It is used by one goroutine at a time.
type lane struct {
	nc       net.Conn
	r, w     syscall.RawConn // nil for a connection that is no pair of pipes
	deadline time.Time       // of the call in flight
	armed    time.Time       // what the read deadline is; the zero time when unknown

	step, put func(fd uintptr) bool // exchangeFD and putFD, once, so that a call allocates no closure
	out, in   []byte
	got       int
	err       error
	blocked   bool // the pipe is full: out is what was not written
}

func newLane(nc net.Conn) *lane {
	l := &lane{nc: nc}
	if p, ok := nc.(*pipes); ok {
		if r, w, err := p.raw(); err == nil {
			l.r, l.w, l.step, l.put = r, w, l.exchangeFD, l.putFD
		}
	}
	return l
}

// until bounds what follows. A timer that is set already and fires earlier is left alone: Read sets it anew when it fires
// too early, which is once in a function's timeout instead of once a call.
func (l *lane) until(deadline time.Time) {
	l.deadline = deadline
	if l.armed.IsZero() || l.armed.After(deadline) {
		l.arm()
	}
}

func (l *lane) arm() {
	l.armed = l.deadline
	l.nc.SetReadDeadline(l.deadline)
}

// early reports whether err is the timer of an earlier call, which is set anew then.
func (l *lane) early(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || l.armed.Equal(l.deadline) || !time.Now().Before(l.deadline) {
		return false
	}
	l.arm()
	return true
}

// Read reads until the deadline.
func (l *lane) Read(p []byte) (int, error) {
	for {
		n, err := l.nc.Read(p)
		if n > 0 || !l.early(err) {
			return n, err
		}
	}
}

// Write writes until the deadline; whole payloads that do not fit the pipe go this way.
func (l *lane) Write(p []byte) (int, error) {
	l.nc.SetWriteDeadline(l.deadline)
	return l.nc.Write(p)
}

// exchange writes out and reads the beginning of the answer into in, which may be the same memory. The write
// happens inside the poller's wait, after it began to watch: so the wait needs no first read. What the runtime said or did before its call, out of
// turn, is met with the answer, with the failing write, or at the deadline.
func (l *lane) exchange(out, in []byte) (int, error) {
	if l.r == nil {
		if _, err := l.Write(out); err != nil {
			return 0, err
		}
		return l.Read(in)
	}
	l.out, l.in, l.got, l.err, l.blocked = out, in, 0, nil, false
	err := l.r.Read(l.step)
	for err != nil && l.early(err) {
		err = l.r.Read(l.step)
	}
	if err != nil {
		return 0, err
	}
	if l.blocked {
		if _, err := l.Write(l.out); err != nil {
			return 0, err
		}
		return l.Read(in)
	}
	return l.got, l.err
}

// exchangeFD writes when something is to be written and reads otherwise; true ends the wait.
func (l *lane) exchangeFD(fd uintptr) bool {
	if len(l.out) > 0 {
		err := l.w.Write(l.put)
		if errors.Is(err, os.ErrDeadlineExceeded) { // of the initialisation or of a large payload; a write that does not wait has none
			l.nc.SetWriteDeadline(time.Time{})
			err = l.w.Write(l.put)
		}
		if err != nil && l.err == nil {
			l.err = err
		}
		return l.blocked || l.err != nil
	}
	n, err := nowait.Read(int(fd), l.in)
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		l.err = os.NewSyscallError("read", err)
	case n == 0:
		l.err = io.EOF
	default:
		l.got = n
	}
	return true
}

// putFD writes once.
func (l *lane) putFD(fd uintptr) bool {
	n, err := nowait.Write(int(fd), l.out)
	switch {
	case err == nil && n == len(l.out):
		l.out = nil
	case err == nil || err == unix.EAGAIN:
		l.out, l.blocked = l.out[max(n, 0):], true
	default:
		l.err = os.NewSyscallError("write", err)
	}
	return true
}
