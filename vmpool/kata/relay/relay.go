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
	"net/netip"
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
	Opened = 16 // the first stream that the guest may open; each is one connection to the Runtime API, or a flow
)

const (
	typeData   = 1
	typeCredit = 2 // u32: bytes that the sender may send more
	typeOpen   = 3 // guest only
	typeClose  = 4 // no further data of this stream comes from the sender
	typeFlow   = 5 // guest only; an address: a stream that is a connection of the function's to there
	typeReset  = 6 // a flow is over in both directions, other than by its ends
	typeDgram  = 7 // of stream 0; two addresses, from and to, and a datagram

	headerSize = 8
	bodyMax    = 32 << 10
	window     = 64 << 10 // bytes of one stream under way at once, in one direction
	streamMax  = 256      // of one connection, flows apart
	flowMax    = 512      // of one connection
)

var errProtocol = errors.New("the other end broke the relay's protocol")

// A Config says what a relay does beside carrying.
type Config struct {
	// Open answers a stream that the peer opened with the descriptor to join to it; nil refuses all.
	Open func() (*os.File, error)
	// Flow takes a connection that the peer's code made; it must not wait, and owns f. nil refuses all.
	Flow func(to netip.AddrPort, f *Flow)
	// Datagram takes a datagram; it must not wait, and may not keep b. nil refuses all.
	Datagram func(from, to netip.AddrPort, b []byte)
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
	streams map[uint16]end
	flows   int    // of these
	next    uint16 // of Open and OpenFlow
	owing   []end
	resets  []uint16 // flows whose end the peer is to be told
	ended   bool     // no stream is joined any more

	owe chan struct{} // capacity 1: some stream owes credit
	wg  sync.WaitGroup
}

// New returns a relay over conn, which it owns from Run on.
func New(conn io.ReadWriteCloser, cfg Config) *Relay {
	return &Relay{conn: conn, cfg: cfg, streams: map[uint16]end{}, next: Opened, owe: make(chan struct{}, 1)}
}

// An end is what a stream is joined to here. The reader calls it, so nothing in it waits.
type end interface {
	number() uint16
	deliver(b []byte) error // takes what came
	allow(n uint32) error   // takes credit of the peer
	taken() uint32          // returns how much the peer is to be allowed more
	finish()                // the peer sends no more
	reset()                 // the peer has given the flow up
	hangUp()                // the connection ended: nothing is sent any more
	shut()                  // nothing more happens
}

// Join gives a stream its descriptors: what is read from in goes to the peer, what the peer sends is written to out. They
// may be the same, or nil for a direction that is not used; both belong to the relay and become non-blocking.
func (r *Relay) Join(id uint16, in, out *os.File) error {
	s, err := newStream(r, id, in, out)
	if err != nil {
		return fmt.Errorf("join stream %d: %w", id, err)
	}
	if err = r.add(s); err == nil {
		err = r.begin(s)
	}
	return err
}

// add gives a stream its place, and one without a number the next.
func (r *Relay) add(s *stream) error {
	return r.unlessEnded(s, func() {
		if s.id == 0 {
			s.id = r.nextID()
		}
		r.streams[s.id] = s
		if s.flow {
			r.flows++
		}
	})
}

// begin has a stream read and write what it is joined to.
func (r *Relay) begin(s *stream) error { return r.unlessEnded(s, func() { r.start(s) }) }

// unlessEnded does something under the lock, or shuts a stream that came too late.
func (r *Relay) unlessEnded(s *stream, do func()) error {
	r.mu.Lock()
	over := r.ended
	if !over {
		do()
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
	full := len(r.streams)-r.flows >= streamMax
	r.mu.Unlock()
	if full {
		f.Close()
		return fmt.Errorf("open stream: %d are open", streamMax)
	}
	s, err := newStream(r, 0, f, f)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	return r.open(s, typeOpen)
}

// open tells the peer of a stream. It has its place before: the peer may speak first.
func (r *Relay) open(s *stream, typ byte, body ...[]byte) error {
	if err := r.add(s); err != nil {
		return err
	}
	if err := r.frame(typ, s.id, body...); err != nil {
		r.drop(s)
		s.shut()
		return err
	}
	return r.begin(s)
}

// nextID returns a number that no stream has; r.mu is held.
func (r *Relay) nextID() uint16 {
	id := r.next
	for r.streams[id] != nil {
		id = max(id+1, Opened)
	}
	r.next = max(id+1, Opened)
	return id
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
	bad := r.cfg.Open == nil || id < Opened || r.streams[id] != nil || len(r.streams)-r.flows >= streamMax
	r.mu.Unlock()
	if bad {
		return fmt.Errorf("%w: opened stream %d", errProtocol, id)
	}
	f, err := r.cfg.Open()
	if err != nil {
		return r.frame(typeClose, id)
	}
	return r.Join(id, f, f)
}

// owes notes that a stream's peer is to be allowed more.
func (r *Relay) owes(s end) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owing = append(r.owing, s)
	r.wakePayer()
}

// wakePayer has pay look what is owed; r.mu is held.
func (r *Relay) wakePayer() {
	if r.ended {
		return
	}
	select {
	case r.owe <- struct{}{}:
	default:
	}
}

// pay sends credit and the ends of flows. It has a goroutine of its own, because the reader must never wait for a write.
func (r *Relay) pay() {
	for range r.owe {
		r.mu.Lock()
		owing, resets := r.owing, r.resets
		r.owing, r.resets = nil, nil
		r.mu.Unlock()
		for _, s := range owing {
			if n := s.taken(); n > 0 {
				r.frame(typeCredit, s.number(), binary.LittleEndian.AppendUint32(nil, n))
			}
		}
		for _, id := range resets {
			r.frame(typeReset, id)
		}
	}
}

// ahead sends what the first streams hold, before bytes of another. Flows are no answers: nobody counts lines to them.
func (r *Relay) ahead(of *stream) {
	if of.flow || slices.Contains(r.cfg.First, of.id) {
		return
	}
	for _, id := range r.cfg.First {
		r.mu.Lock()
		s, ok := r.streams[id].(*stream)
		r.mu.Unlock()
		if ok {
			s.drain()
		}
	}
}

// drop forgets a stream whose both directions ended.
func (r *Relay) drop(s end) {
	r.mu.Lock()
	r.dropLocked(s)
	r.mu.Unlock()
}

func (r *Relay) dropLocked(s end) bool {
	id := s.number()
	if r.streams[id] != s {
		return false
	}
	delete(r.streams, id)
	if isFlow(s) {
		r.flows--
	}
	return true
}

func isFlow(s end) bool {
	local, ok := s.(*stream)
	return !ok || local.flow
}
