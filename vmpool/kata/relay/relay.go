// Package relay carries several byte streams over the one connection between the node and a microVM. At both ends a stream
// is a descriptor of the kernel, a pipe or a socket, so that whoever uses it keeps its deadlines and knows nothing of the
// relay. The peer is never trusted: what it says is checked, and a peer that breaks a rule loses the connection.
//
// A frame is a little-endian u32 with the length of its body, a u16 stream, a type byte, a zero byte and the body.
package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Streams that both ends know. Numbers are fixed for ever: templates outlive a node.
const (
	Calls  = 1 // calls to a shipped runtime, and its answers
	Stdout = 2
	Stderr = 3
	Opened = 16 // the first stream that the guest may open; each is one connection to the Runtime API
)

const (
	typeData   = 1
	typeCredit = 2 // u32: bytes that the sender may send more
	typeOpen   = 3 // guest only
	typeClose  = 4 // no further data of this stream comes from the sender

	headerSize = 8
	bodyMax    = 32 << 10
	window     = 64 << 10 // bytes of one stream under way at once, in one direction
	streamMax  = 256      // of one connection
)

var errProtocol = errors.New("the other end broke the relay's protocol")

// A Config says what a relay does beside carrying.
type Config struct {
	// Open answers a stream that the peer opened with the descriptor to join to it; nil refuses all.
	Open func() (*os.File, error)
	// First are streams whose bytes go ahead of every other stream's: output that was printed before an answer arrives
	// before it.
	First []uint16
}

// A Relay has two goroutines and two for each stream. Create it with New, Join the streams that both ends know, then Run:
// what comes of a stream that was not joined is dropped.
type Relay struct {
	conn io.ReadWriteCloser
	cfg  Config

	send sync.Mutex // held around one write to conn
	out  [headerSize + bodyMax]byte

	mu      sync.Mutex // guards what follows; a leaf
	streams map[uint16]*stream
	next    uint16 // of Open
	owing   []*stream
	ended   bool // no stream is joined any more

	owe chan struct{} // capacity 1: some stream owes credit
	wg  sync.WaitGroup
}

// New returns a relay over conn, which it owns from Run on.
func New(conn io.ReadWriteCloser, cfg Config) *Relay {
	return &Relay{conn: conn, cfg: cfg, streams: map[uint16]*stream{}, next: Opened, owe: make(chan struct{}, 1)}
}

// Join gives a stream its descriptors: what is read from in goes to the peer, what the peer sends is written to out. They
// may be the same, or nil for a direction that is not used; both belong to the relay and become non-blocking.
func (r *Relay) Join(id uint16, in, out *os.File) error {
	s, err := newStream(r, id, in, out)
	if err != nil {
		return fmt.Errorf("join stream %d: %w", id, err)
	}
	r.mu.Lock()
	over := r.ended
	if !over {
		r.streams[id] = s
		r.start(s)
	}
	r.mu.Unlock()
	if over {
		s.shut()
		return os.ErrClosed
	}
	return nil
}

func (r *Relay) start(s *stream) {
	if s.in != nil {
		r.wg.Go(s.pump)
	}
	if s.out != nil {
		r.wg.Go(s.flush)
	}
}

// Open opens a stream to the peer over f, which belongs to the relay.
func (r *Relay) Open(f *os.File) error {
	r.mu.Lock()
	id := r.next
	for r.streams[id] != nil {
		id = max(id+1, Opened)
	}
	r.next = max(id+1, Opened)
	full := len(r.streams) >= streamMax
	r.mu.Unlock()
	if full {
		f.Close()
		return fmt.Errorf("open stream: %d are open", streamMax)
	}
	if err := r.frame(typeOpen, id, nil); err != nil {
		f.Close()
		return err
	}
	return r.Join(id, f, f)
}

// Run carries until the connection ends, and then until what came is written; it returns when every goroutine ended and every
// descriptor is closed. Who does not read what came holds it up: Abort. What came of a peer that broke the protocol and is not
// written yet is dropped.
func (r *Relay) Run() error {
	r.wg.Go(r.pay)
	err := r.read()
	r.conn.Close()
	r.mu.Lock()
	r.ended = true
	all := slices.Collect(maps.Values(r.streams))
	close(r.owe)
	r.mu.Unlock()
	for _, s := range all {
		if errors.Is(err, errProtocol) {
			s.shut()
		} else {
			s.hangUp()
		}
	}
	r.wg.Wait()
	for _, s := range all {
		s.shut()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// Abort ends the connection and drops what came and is not written yet.
func (r *Relay) Abort() {
	r.conn.Close()
	r.mu.Lock()
	r.ended = true
	all := slices.Collect(maps.Values(r.streams))
	r.mu.Unlock()
	for _, s := range all {
		s.shut()
	}
}

// Drain waits until the streams that go first have ended and everything of them is sent, or the time is over.
func (r *Relay) Drain(limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Millisecond) {
		open := 0
		for _, id := range r.cfg.First {
			r.mu.Lock()
			if r.streams[id] != nil {
				open++
			}
			r.mu.Unlock()
		}
		if open == 0 {
			return
		}
	}
}

// opened joins a stream of the peer's.
func (r *Relay) opened(id uint16) error {
	r.mu.Lock()
	bad := r.cfg.Open == nil || id < Opened || r.streams[id] != nil || len(r.streams) >= streamMax
	r.mu.Unlock()
	if bad {
		return fmt.Errorf("%w: opened stream %d", errProtocol, id)
	}
	f, err := r.cfg.Open()
	if err != nil {
		return r.frame(typeClose, id, nil)
	}
	return r.Join(id, f, f)
}

// owes notes that a stream's peer is to be allowed more.
func (r *Relay) owes(s *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.owing = append(r.owing, s)
	select {
	case r.owe <- struct{}{}:
	default:
	}
}

// pay sends credit. It has a goroutine of its own, because the reader must never wait for a write.
func (r *Relay) pay() {
	for range r.owe {
		r.mu.Lock()
		owing := r.owing
		r.owing = nil
		r.mu.Unlock()
		for _, s := range owing {
			if n := s.taken(); n > 0 {
				r.frame(typeCredit, s.id, binary.LittleEndian.AppendUint32(nil, n))
			}
		}
	}
}

// ahead sends what the first streams hold, before bytes of another.
func (r *Relay) ahead(of *stream) {
	for _, id := range r.cfg.First {
		if id == of.id {
			return
		}
	}
	for _, id := range r.cfg.First {
		r.mu.Lock()
		s := r.streams[id]
		r.mu.Unlock()
		if s != nil {
			s.drain()
		}
	}
}

// drop forgets a stream whose both directions ended.
func (r *Relay) drop(s *stream) {
	r.mu.Lock()
	if r.streams[s.id] == s {
		delete(r.streams, s.id)
	}
	r.mu.Unlock()
}
