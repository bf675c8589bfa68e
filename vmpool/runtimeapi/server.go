// Package runtimeapi is the host's side of the AWS Lambda Runtime API (2018-06-01) for one sandbox: a lean
// HTTP/1.1 server on a listener inside the sandbox's network. A call is written straight into the connection
// that waits in /next, and the answer goes straight from the connection's buffer to the caller's sink.
// The peer is tenant code: it is held to the strict subset of HTTP in parse.go and to bounded sizes.
package runtimeapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"starling"
)

const (
	documentMax    = 1 << 20 // bytes of an error document
	acceptPause    = 10 * time.Millisecond
	acceptFailures = 100 // in a row
	// NotStarted is the error type of a call that the code never saw: it ended before it asked for the call.
	NotStarted = "Runtime.NotStarted"
	// Grace is how long after a call's deadline its answer is still taken.
	Grace = 100 * time.Millisecond
)

// Config is what the server tells the code.
type Config struct {
	ARN     string // Lambda-Runtime-Invoked-Function-Arn
	Slots   int    // calls at once, 1–starling.SlotsMax
	Name    string // function name, for extensions
	Version string // "$LATEST" or a number, for extensions
	Handler string
}

// A Server is the contract with one bootstrap. Init starts the accept loop and every connection has a
// goroutine; Close ends them all and waits.
type Server struct {
	cfg Config
	ln  net.Listener
	wg  sync.WaitGroup

	mu      sync.Mutex // guards what follows; a leaf
	opened  bool
	closed  bool
	broken  error
	conns   map[*conn]struct{}
	idle    []*conn                      // parked in /next, the most recent last
	waiting []*call                      // calls that came before the code asked, oldest first
	live    map[starling.RequestID]*call // waiting or given to the code
	expired [8]starling.RequestID        // ended by us; an answer to them is Gone
	nextOld int
	free    []*call // ended ones, to be used again

	ready     chan struct{} // closed at the first /next, init error or Close
	readyOnce sync.Once
	initErr   error // set before ready is closed
}

// New returns a server for ln, which belongs to it from now on.
func New(ln net.Listener, cfg Config) *Server {
	return &Server{cfg: cfg, ln: ln, conns: map[*conn]struct{}{}, live: map[starling.RequestID]*call{}, ready: make(chan struct{})}
}

// Init serves and waits until the code asks for its first call.
func (s *Server) Init(ctx context.Context) error {
	s.mu.Lock()
	if !s.opened && !s.closed {
		s.opened = true
		s.wg.Add(1)
		go s.accept()
	}
	s.mu.Unlock()
	select {
	case <-s.ready:
		return s.initErr
	case <-ctx.Done():
		return starling.Errorf(starling.Failed, "init function", "the initialisation did not end in time: do less before the first call").With(starling.ErrInitTimeout)
	}
}

func (s *Server) isReady(err error) {
	s.readyOnce.Do(func() { s.initErr = err; close(s.ready) })
}

// Err says why no further call may be made; nil while the instance is usable.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// Close ends every connection; calls in flight end with ErrExit. It waits for every goroutine.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.wg.Wait()
		return nil
	}
	s.closed = true
	s.broken = net.ErrClosed
	conns := slices.Collect(maps.Keys(s.conns))
	for _, k := range s.waiting {
		s.endLocked(k, NotStarted)
	}
	for id, k := range s.live {
		delete(s.live, id)
		s.endLocked(k, starling.ErrExit)
	}
	for _, k := range s.free {
		k.timer.Stop()
	}
	s.waiting, s.idle = nil, nil
	s.mu.Unlock()
	for _, c := range conns {
		c.sock.nc.Close() // waits for what happens inside the wait of c, which may need s.mu
		c.mu.Lock()
		c.parked = false
		c.mu.Unlock()
		c.freed.Signal()
	}
	err := s.ln.Close()
	s.isReady(starling.Errorf(starling.Failed, "init function", "the bootstrap exited before it asked for a call").With(starling.ErrExit))
	s.wg.Wait()
	return err
}

// connMax bounds connections: each slot needs one to wait and one to answer; the rest is for extensions.
func (s *Server) connMax() int { return 2*s.cfg.Slots + 8 }

func (s *Server) accept() {
	defer s.wg.Done()
	failures := 0
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			if failures++; errors.Is(err, net.ErrClosed) || failures > acceptFailures {
				return // the listener is gone: the code will miss us, and its calls time out
			}
			time.Sleep(acceptPause) // no descriptors: others may be given back
			continue
		}
		failures = 0
		c := newConn(s, nc)
		s.mu.Lock()
		if s.closed || len(s.conns) >= s.connMax() {
			s.mu.Unlock()
			nc.Close()
			continue
		}
		s.conns[c] = struct{}{}
		s.wg.Add(1)
		s.mu.Unlock()
		go c.serve()
	}
}

// leave forgets a connection that ended.
func (s *Server) leave(c *conn) {
	c.sock.nc.Close()
	s.mu.Lock()
	delete(s.conns, c)
	if i := slices.Index(s.idle, c); i >= 0 {
		s.idle = slices.Delete(s.idle, i, i+1)
	}
	s.mu.Unlock()
	s.wg.Done()
}

// park gives c the oldest waiting call, or keeps it for the next one. False: too many are parked already.
func (s *Server) park(c *conn) bool {
	s.isReady(nil)
	s.mu.Lock()
	if len(s.waiting) > 0 {
		k := s.waiting[0]
		s.waiting = slices.Delete(s.waiting, 0, 1)
		k.users++
		s.mu.Unlock()
		err := s.deliver(c, k)
		s.mu.Lock()
		s.releaseLocked(k, err)
		s.mu.Unlock()
		return true
	}
	if len(s.idle) >= s.cfg.Slots || s.closed {
		s.mu.Unlock()
		return false
	}
	c.mu.Lock()
	c.parked = true
	c.mu.Unlock()
	s.idle = append(s.idle, c)
	s.mu.Unlock()
	return true
}

// answering finds the live call that an answer names and binds c to it.
func (s *Server) answering(id starling.RequestID, c *conn) (*call, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.live[id]
	if k != nil && k.reader == nil && !k.over {
		k.reader = c
		k.users++
		return k, nil
	}
	if slices.Contains(s.expired[:], id) {
		return nil, replyGone
	}
	return nil, replyWrongID
}

// errorDocument reads the error type out of a document; given wins.
func errorDocument(given string, doc []byte) string {
	if given != "" {
		return given
	}
	var f struct {
		Type string `json:"errorType"`
	}
	if json.Unmarshal(doc, &f) == nil && f.Type != "" {
		return errorWord([]byte(f.Type))
	}
	return "Error"
}

// errorWord keeps an error type short and printable: it becomes a header and a label of a log line.
func errorWord(b []byte) string {
	if len(b) == 0 || len(b) > 128 || !safe(b) {
		return ""
	}
	return string(b)
}
