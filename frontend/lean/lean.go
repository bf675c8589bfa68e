// Package lean serves invocations that come over HTTP/1.1 without TLS: one read and one write a call, no goroutine, timer
// or map beside the connection's own. It is strict: a connection that says anything but plain invocations goes, with all that was
// read of it, to net/http, which serves it from then on.
package lean

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Config says whom to serve and how long to wait.
type Config struct {
	// Handle serves one invocation on the connection's goroutine: it reads the body, or part of it, and answers. r is
	// its own until it returns.
	Handle func(c *Conn, r *Request)
	Log    *slog.Logger

	BodyMax  int           // bytes of a body; longer ones are net/http's to refuse
	Idle     time.Duration // a connection that says nothing for so long is closed, or for half of it: see waitNext
	HeadTime time.Duration // for the rest of a head that has begun
	BodyTime time.Duration // for the body
	Stall    time.Duration // for the caller to take one piece of an answer
}

// A Server owns the connections of one listener. Create it with New, Serve listeners, and Close it. It has a goroutine
// for each connection it serves, and none for those it handed over.
type Server struct {
	cfg  Config
	over handover
	date atomic.Pointer[date]

	mu       sync.Mutex // a leaf
	conns    map[*Conn]struct{}
	listener net.Listener
	closing  bool
	wg       sync.WaitGroup
	draining atomic.Bool
}

// New returns a server that does nothing yet.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, conns: map[*Conn]struct{}{}, over: handover{conns: make(chan net.Conn), closed: make(chan struct{})}}
}

// Rest returns the listener of the connections that are handed over; give it to net/http. Closing it leaves l open.
func (s *Server) Rest(l net.Listener) net.Listener {
	s.over.addr = l.Addr()
	return &s.over
}

// Serve accepts until l is closed, by Shutdown at the latest. It returns the error of Accept.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	s.listener = l
	if s.closing {
		l.Close()
	}
	s.mu.Unlock()
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.open(nc)
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, say: connections in use go on
			pause = min(max(5*time.Millisecond, 2*pause), time.Second)
			s.cfg.Log.Warn("cannot accept a connection, trying again", "error", err, "after", pause)
			time.Sleep(pause)
		}
	}
}

func (s *Server) open(nc net.Conn) {
	c := newConn(s, nc)
	if c == nil { // no TCP: it has no descriptor of the kind needed here
		s.over.give(nc)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// Shutdown closes the listener and idle connections, lets calls in flight finish until ctx ends, and then closes their connections and
// returns ctx's error. It returns nil when every goroutine ended. After an error those in Handle end with it: a call that does not heed its
// Context is ended by whoever carries it out, and that part closes after this one.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.draining.Store(true)
	if s.listener != nil {
		s.listener.Close()
	}
	for c := range s.conns {
		c.endIdle()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	for c := range s.conns {
		c.nc.Close()
	}
	s.mu.Unlock()
	return ctx.Err()
}

// A date is the value of a Date header and the second it is true for.
type date struct {
	second int64
	text   string
}

// appendDate appends the time of now in the form of HTTP; it is made once a second.
func (s *Server) appendDate(b []byte, now time.Time) []byte {
	d := s.date.Load()
	if second := now.Unix(); d == nil || d.second != second {
		d = &date{second, now.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")}
		s.date.Store(d)
	}
	return append(b, d.text...)
}

// handover is a listener whose connections somebody else accepted.
type handover struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (h *handover) give(nc net.Conn) {
	select {
	case h.conns <- nc:
	case <-h.closed:
		nc.Close()
	}
}

// Accept waits for the next connection that is handed over.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; connections that come later are closed.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr is that of the listener that accepts.
func (h *handover) Addr() net.Addr { return h.addr }

// begun is a connection of which some bytes were read already.
type begun struct {
	halfCloser
	first []byte
}

// halfCloser is what net/http needs so that the last answer arrives: it ends its own side first.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// Read returns the bytes that were read already first.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		if b.first = b.first[n:]; len(b.first) == 0 {
			b.first = nil
		}
		return n, nil
	}
	return b.halfCloser.Read(p)
}
