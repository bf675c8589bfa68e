package runtimeapi

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

// A socket is a connection whose reader may have something to do before it waits (to reply, to ask for a call). That is done
// inside the poller's wait, after it began to watch. One goroutine reads; any may write, one at a time.
type socket struct {
	nc        net.Conn
	raw       syscall.RawConn       // nil for a connection that is no descriptor, or one that waits
	step, put func(fd uintptr) bool // readFD and writeFD, once, so that a call allocates no closure

	before func() error // done once inside the next wait; nil for nothing
	in     []byte
	n      int
	err    error

	out  []byte
	werr error
}

func (s *socket) init(nc net.Conn) {
	s.nc = nc
	if c, ok := nc.(syscall.Conn); ok {
		able := false
		raw, err := c.SyscallConn()
		if err == nil {
			raw.Control(func(fd uintptr) { able = nowait.Able(int(fd)) })
		}
		if able {
			s.raw, s.step, s.put = raw, s.readFD, s.writeFD
		}
	}
}

// read does before, waits for bytes and reads them into p.
func (s *socket) read(p []byte) (int, error) {
	if s.raw == nil {
		if do := s.before; do != nil {
			s.before = nil
			if err := do(); err != nil {
				return 0, err
			}
		}
		return s.nc.Read(p)
	}
	s.in, s.n, s.err = p, 0, nil
	if err := s.raw.Read(s.step); err != nil {
		return 0, err
	}
	return s.n, s.err
}

func (s *socket) readFD(fd uintptr) bool {
	if do := s.before; do != nil {
		s.before = nil
		if s.err = do(); s.err != nil {
			return true
		}
	}
	// Mostly in vain right after do (0.4 us), yet it must be: what came earlier, a pipelined request or the end, was
	// reported before this wait began, and the poller reports nothing twice.
	n, err := nowait.Read(int(fd), s.in)
	switch {
	case err == unix.EAGAIN:
		return false
	case err != nil:
		s.err = os.NewSyscallError("read", err)
	case n == 0:
		s.err = io.EOF
	}
	s.n = max(n, 0)
	return true
}

// write writes p. Only a peer that does not read is waited for, until deadline.
func (s *socket) write(p []byte, deadline time.Time) error {
	if s.raw != nil {
		s.out, s.werr = p, nil
		if err := s.raw.Write(s.put); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // that of an earlier write
			return err
		}
		if p = s.out; s.werr != nil || len(p) == 0 {
			return s.werr
		}
	}
	s.nc.SetWriteDeadline(deadline)
	_, err := s.nc.Write(p)
	return err
}

// writeFD writes once, what the socket takes.
func (s *socket) writeFD(fd uintptr) bool {
	n, err := nowait.Write(int(fd), s.out)
	if err != nil && err != unix.EAGAIN {
		s.werr = os.NewSyscallError("write", err)
	}
	s.out = s.out[max(n, 0):]
	return true
}
