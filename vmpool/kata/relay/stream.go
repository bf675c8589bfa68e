package relay

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A stream joins two local descriptors to one number of the connection.
type stream struct {
	r       *Relay
	id      uint16
	flow    bool // a connection of the function's: it can end by a reset
	in, out *os.File
	rawIn   syscall.RawConn // nil for a direction that is not used
	rawOut  syscall.RawConn

	reading sync.Mutex // held from a read of in until its bytes are on the connection

	account        // whose lock guards what follows
	queue   []byte // received and not yet written to out; at most window
	last    bool   // the peer sends no more
	hung    bool   // and takes no more: the connection ended
	closed  bool
	inDone  bool
	outDone bool
}

func newStream(r *Relay, id uint16, in, out *os.File) (*stream, error) {
	s := &stream{r: r, id: id, in: in, out: out, inDone: in == nil, outDone: out == nil}
	s.begin()
	var err error
	if s.in, s.rawIn, err = polled(in); err != nil {
		return nil, err
	}
	if out == in {
		s.out, s.rawOut = s.in, s.rawIn
	} else if s.out, s.rawOut, err = polled(out); err != nil {
		return nil, err
	}
	return s, nil
}

// polled returns f as a descriptor that does not block, under Go's poller.
func polled(f *os.File) (*os.File, syscall.RawConn, error) {
	if f == nil {
		return nil, nil, nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	f.Close()
	if err != nil {
		return nil, nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	g := os.NewFile(uintptr(fd), "stream")
	raw, err := g.SyscallConn()
	if err != nil {
		g.Close()
		return nil, nil, err
	}
	return g, raw, nil
}

const (
	again  = -1 // nothing to read now
	ended  = 0
	stuck  = -2 // no credit
	broken = -3 // no end, an error
)

// step moves what in holds to the connection, at most one frame. Read and write happen under one lock, so that nothing
// is between them when drain returns.
func (s *stream) step(fd int, buf []byte) int {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.mu.Lock()
	room := min(s.credit, len(buf))
	s.mu.Unlock()
	if room == 0 {
		return stuck
	}
	n, err := unix.Read(fd, buf[:room])
	for err == unix.EINTR {
		n, err = unix.Read(fd, buf[:room])
	}
	switch {
	case err == unix.EAGAIN:
		return again
	case err != nil:
		return broken
	case n == 0:
		return ended
	}
	s.r.ahead(s)
	s.mu.Lock()
	s.credit -= n
	s.mu.Unlock()
	if err := s.r.frame(typeData, s.id, buf[:n]); err != nil {
		return ended
	}
	return n
}

// pump moves in to the connection until it ends.
func (s *stream) pump() {
	buf := make([]byte, bodyMax)
	state := again
	for {
		state = again
		err := s.rawIn.Read(func(fd uintptr) bool {
			state = s.step(int(fd), buf)
			return state != again
		})
		if err != nil || state == ended || state == broken || state == stuck && !s.wait() {
			break
		}
	}
	if state == broken && s.flow {
		s.giveUp()
	}
	if !s.isClosed() {
		s.r.frame(typeClose, s.id)
		s.leave(&s.inDone)
	}
}

// drain moves what in holds now and what credit allows.
func (s *stream) drain() {
	if s.rawIn == nil {
		return
	}
	buf := make([]byte, 4<<10)
	s.rawIn.Control(func(fd uintptr) {
		for s.step(int(fd), buf) > 0 {
			continue
		}
	})
}

// wait returns when there is credit; false when the stream is closed.
func (s *stream) wait() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.credit == 0 && !s.closed && !s.hung {
		s.grown.Wait()
	}
	return !s.closed && !s.hung
}

func (s *stream) number() uint16 { return s.id }

// deliver writes what came to out: at once what fits, the rest by the goroutine of flush.
func (s *stream) deliver(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.came(len(b)) {
		return fmt.Errorf("%w: %d bytes over the window of stream %d", errProtocol, len(b)-s.under, s.id)
	}
	if s.rawOut == nil || s.outDone {
		return nil // nobody reads it: the peer gets no more credit
	}
	if len(s.queue) == 0 {
		s.rawOut.Write(func(fd uintptr) bool {
			if n, err := unix.Write(int(fd), b); err == nil {
				b = b[n:]
				s.settle(n)
			}
			return true
		})
	}
	if len(b) > 0 {
		s.queue = append(s.queue, b...)
		s.grown.Broadcast()
	}
	return nil
}

// settle notes n bytes that were written, and asks for credit to be sent when they are enough; s.mu is held.
func (s *stream) settle(n int) {
	if s.passed(n) {
		s.r.owes(s)
	}
}

// finish notes that the peer sends no more.
func (s *stream) finish() {
	s.mu.Lock()
	s.last = true
	s.grown.Broadcast()
	s.mu.Unlock()
}

// flush writes what is queued, and ends the direction after the last.
func (s *stream) flush() {
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.last && !s.closed {
			s.grown.Wait()
		}
		b := s.queue
		over := s.closed || len(b) == 0
		s.mu.Unlock()
		if over {
			break
		}
		n, err := s.out.Write(b)
		s.mu.Lock()
		s.queue = s.queue[n:]
		if len(s.queue) == 0 {
			s.queue = nil
		}
		s.settle(n)
		s.mu.Unlock()
		if err != nil && s.flow {
			s.giveUp()
		}
		if err != nil {
			break
		}
	}
	if !s.isClosed() {
		s.leave(&s.outDone)
	}
}

// leave ends one direction and, with the second, the stream.
func (s *stream) leave(done *bool) {
	s.mu.Lock()
	*done = true
	both := s.inDone && s.outDone
	half := s.outDone && !s.inDone
	s.mu.Unlock()
	switch {
	case both:
		s.r.drop(s)
		s.shut()
	case half && s.in == s.out:
		s.rawOut.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
	case half:
		s.out.Close()
	}
}

// hangUp ends the stream with the connection: nothing is sent any more, and what came is written.
func (s *stream) hangUp() {
	s.mu.Lock()
	s.last, s.hung = true, true
	s.grown.Broadcast()
	s.mu.Unlock()
	if s.in != nil {
		s.in.SetReadDeadline(time.Unix(1, 0)) // ends the pump
	}
}

func (s *stream) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// shut closes the descriptors, which ends both directions.
func (s *stream) shut() {
	s.mu.Lock()
	s.closed = true
	s.grown.Broadcast()
	s.mu.Unlock()
	if s.in != nil {
		s.in.Close()
	}
	if s.out != nil && s.out != s.in {
		s.out.Close()
	}
}
