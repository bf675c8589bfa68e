package inmem

import (
	"io"
	"os"
	"sync"
	"time"

	"starling"
	"starling/transport"
)

const window = 1 << 20 // bytes under way in one direction before Write waits

var errGivenUp = starling.Errorf(starling.Unavailable, "use stream", "the stream was given up")

// A pipe is one direction of a stream.
type pipe struct {
	net *Network
	way way

	mu       sync.Mutex // guards the rest; a leaf
	changed  chan struct{}
	chunks   []chunk
	size     int  // bytes in chunks
	eof      bool // the writer is done
	err      error
	blocked  bool
	readBy   time.Time
	writeBy  time.Time
	lastTime time.Time // when the newest chunk arrives
}

// A chunk is what one write sent, readable from the time it arrives.
type chunk struct {
	at   time.Time
	data []byte
}

func newPipe(n *Network, w way) *pipe { return &pipe{net: n, way: w, changed: make(chan struct{})} }

// wake tells every waiter to look again; the caller holds mu.
func (p *pipe) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait releases mu until something changes or the earlier of two instants, zero for none, and takes it again.
func (p *pipe) wait(a, b time.Time) {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		a = b
	}
	changed := p.changed
	p.mu.Unlock()
	defer p.mu.Lock()
	if a.IsZero() {
		<-changed
		return
	}
	t := time.NewTimer(time.Until(a))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	}
}

func passed(by time.Time) bool { return !by.IsZero() && !time.Now().Before(by) }

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.err != nil {
			return 0, p.err
		}
		var arrives time.Time
		if len(p.chunks) > 0 && !p.blocked {
			arrives = p.chunks[0].at
			if n := p.take(b); n > 0 || len(b) == 0 {
				p.wake()
				return n, nil
			}
		}
		if len(p.chunks) == 0 && p.eof && !p.blocked {
			return 0, io.EOF
		}
		if passed(p.readBy) {
			return 0, os.ErrDeadlineExceeded
		}
		p.wait(arrives, p.readBy)
	}
}

// take copies what has arrived into b.
func (p *pipe) take(b []byte) int {
	n, now := 0, time.Now()
	for n < len(b) && len(p.chunks) > 0 && !p.chunks[0].at.After(now) {
		c := &p.chunks[0]
		k := copy(b[n:], c.data)
		n += k
		p.size -= k
		if c.data = c.data[k:]; len(c.data) == 0 {
			p.chunks = p.chunks[1:]
		}
	}
	return n
}

func (p *pipe) write(b []byte) (int, error) {
	at := time.Now().Add(p.net.delay())
	done := 0
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.err != nil:
			return done, p.err
		case p.eof:
			return done, starling.Errorf(starling.Internal, "use stream", "written after CloseWrite")
		case done == len(b):
			return done, nil
		}
		if room := window - p.size; room > 0 {
			data := append([]byte(nil), b[done:min(len(b), done+room)]...)
			if at.Before(p.lastTime) {
				at = p.lastTime
			}
			p.lastTime = at
			p.chunks = append(p.chunks, chunk{at, data})
			p.size += len(data)
			done += len(data)
			p.wake()
			continue
		}
		if passed(p.writeBy) {
			return done, os.ErrDeadlineExceeded
		}
		p.wait(p.writeBy, time.Time{})
	}
}

func (p *pipe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && !(p.eof && len(p.chunks) == 0) {
		p.err = err
		p.chunks, p.size = nil, 0
		p.wake()
	}
}

func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eof = true
	p.wake()
}

func (p *pipe) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.eof
}

func (p *pipe) block(stop bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blocked = stop
	p.wake()
}

// A stream is one end: it reads one pipe and writes the other.
type stream struct {
	read, write *pipe
	peer        transport.Peer
}

var _ transport.Stream = (*stream)(nil)

// Read is as io.Reader's.
func (s *stream) Read(b []byte) (int, error) { return s.read.read(b) }

// Write is as io.Writer's; it waits while a window of bytes is under way.
func (s *stream) Write(b []byte) (int, error) { return s.write.write(b) }

// CloseWrite ends our direction.
func (s *stream) CloseWrite() error {
	s.write.end()
	return nil
}

// Cancel abandons both directions.
func (s *stream) Cancel() {
	s.read.fail(errGivenUp)
	s.write.fail(errGivenUp)
}

// SetReadDeadline bounds every Read from now on.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.read.mu.Lock()
	defer s.read.mu.Unlock()
	s.read.readBy = t
	s.read.wake()
	return nil
}

// SetWriteDeadline bounds every Write from now on.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.write.mu.Lock()
	defer s.write.mu.Unlock()
	s.write.writeBy = t
	s.write.wake()
	return nil
}

// Peer is who is at the other end.
func (s *stream) Peer() transport.Peer { return s.peer }
