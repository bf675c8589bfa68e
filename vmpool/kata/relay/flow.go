package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Flows are the connections that the function makes to the world. In the guest a flow is a descriptor, like every stream; at
// the node it is a Flow, which has no descriptor, no goroutine and no buffer but what came and was not read.

// addrSize is the length of an address in a frame: four bytes and a big-endian port. Guests have no way to IPv6.
const addrSize = 6

// DatagramMax is the longest datagram that is carried, in bytes.
const DatagramMax = bodyMax - 2*addrSize

func appendAddr(b []byte, a netip.AddrPort) []byte {
	four := a.Addr().Unmap().As4()
	return binary.BigEndian.AppendUint16(append(b, four[:]...), a.Port())
}

func addrOf(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[4:]))
}

// resetMax bounds the ends of flows that the peer was not told yet. One that opens flows and takes no word of their end is none of
// ours.
const resetMax = 4 * flowMax

// OpenFlow hands the peer a connection that was made to an IPv4 address. f belongs to the relay, which resets it when there are too
// many.
func (r *Relay) OpenFlow(f *os.File, to netip.AddrPort) error {
	s, err := newStream(r, 0, f, f)
	if err != nil {
		return fmt.Errorf("open flow: %w", err)
	}
	s.flow = true
	r.mu.Lock()
	full := r.flows >= flowMax
	r.mu.Unlock()
	if full {
		s.reset()
		return fmt.Errorf("open flow: %d are open", flowMax)
	}
	return r.open(s, typeFlow, appendAddr(nil, to))
}

// giveUp ends a flow at both ends after an error of its descriptor.
func (s *stream) giveUp() {
	s.r.mu.Lock()
	if s.r.dropLocked(s) {
		s.r.resets = append(s.r.resets, s.id)
		s.r.wakePayer()
	}
	s.r.mu.Unlock()
	s.shut()
}

// reset resets the function's connection.
func (s *stream) reset() {
	s.r.drop(s)
	s.rawIn.Control(func(fd uintptr) {
		// Fails on a socket that has ended: then there is nothing to reset.
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	s.shut()
}

// openedFlow hands over a connection that the peer's code made.
func (r *Relay) openedFlow(id uint16, body []byte) error {
	f := &Flow{r: r, id: id}
	f.begin()
	r.mu.Lock()
	bad := r.cfg.Flow == nil || len(body) != addrSize || id < Opened || r.streams[id] != nil || len(r.resets) >= resetMax
	full := r.flows >= flowMax
	switch {
	case bad:
	case full:
		r.resets = append(r.resets, id)
		r.wakePayer()
	default:
		r.streams[id] = f
		r.flows++
	}
	r.mu.Unlock()
	if bad {
		return fmt.Errorf("%w: opened flow %d", errProtocol, id)
	}
	if !full {
		r.cfg.Flow(addrOf(body), f)
	}
	return nil
}

// Datagram sends one datagram to the peer. It waits while the connection takes nothing; what is longer than DatagramMax is an error.
func (r *Relay) Datagram(from, to netip.AddrPort, b []byte) error {
	if len(b) > DatagramMax {
		return fmt.Errorf("a datagram of %d bytes: at most %d are carried", len(b), DatagramMax)
	}
	return r.frame(typeDgram, 0, appendAddr(appendAddr(make([]byte, 0, 2*addrSize), from), to), b)
}

func (r *Relay) tookDatagram(body []byte) error {
	if r.cfg.Datagram == nil || len(body) < 2*addrSize {
		return fmt.Errorf("%w: a datagram of %d bytes", errProtocol, len(body))
	}
	r.cfg.Datagram(addrOf(body), addrOf(body[addrSize:]), body[2*addrSize:])
	return nil
}

// ErrReset is what the end of a flow is that is no good one.
var ErrReset = errors.New("the connection was reset")

// A Flow is the node's end of a connection that the function made. Read and Write may be used by one goroutine each at the same
// time, the rest by any.
type Flow struct {
	r  *Relay
	id uint16

	account        // whose lock guards what follows
	queue   []byte // came and not read; at most window
	last    bool   // the peer sends no more
	closed  bool   // nor do we
	over    error  // why both directions are over
}

// Read reads what the function wrote; io.EOF is the function's own end of it.
func (f *Flow) Read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.over == nil && len(f.queue) == 0 && !f.last {
		f.grown.Wait()
	}
	switch {
	case f.over != nil:
		return 0, f.over
	case len(f.queue) == 0:
		return 0, io.EOF
	}
	n := copy(b, f.queue)
	if f.queue = f.queue[n:]; len(f.queue) == 0 {
		f.queue = nil
	}
	if f.passed(n) && !f.last {
		f.r.owes(f)
	}
	return n, nil
}

// Write writes to the function, and waits while it has a window full unread.
func (f *Flow) Write(b []byte) (n int, err error) {
	for n < len(b) {
		m, err := f.claim(min(len(b)-n, bodyMax))
		if err == nil {
			err = f.r.frame(typeData, f.id, b[n:n+m])
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// claim waits for credit and takes at most n of it.
func (f *Flow) claim(n int) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.over == nil && !f.closed && f.credit == 0 {
		f.grown.Wait()
	}
	switch {
	case f.over != nil:
		return 0, f.over
	case f.closed:
		return 0, os.ErrClosed
	}
	n = min(n, f.credit)
	f.credit -= n
	return n, nil
}

// CloseWrite tells the function that nothing more comes.
func (f *Flow) CloseWrite() error {
	f.mu.Lock()
	again, over := f.closed, f.over
	f.closed = true
	f.grown.Broadcast()
	f.mu.Unlock()
	if again || over != nil {
		return over
	}
	err := f.r.frame(typeClose, f.id)
	f.leave()
	return err
}

// Abort resets the function's connection.
func (f *Flow) Abort() {
	f.r.mu.Lock()
	if f.r.dropLocked(f) {
		f.r.resets = append(f.r.resets, f.id)
		f.r.wakePayer()
	}
	f.r.mu.Unlock()
	f.end(ErrReset)
}

// Close frees what the flow holds; one of which not both directions have ended is reset.
func (f *Flow) Close() error {
	f.Abort()
	return nil
}

// leave forgets the flow when both directions have ended.
func (f *Flow) leave() {
	f.mu.Lock()
	both := f.last && f.closed
	f.mu.Unlock()
	if both {
		f.r.drop(f)
	}
}

// end ends both directions, unless they have ended already.
func (f *Flow) end(why error) {
	f.mu.Lock()
	if f.over == nil {
		f.over, f.queue = why, nil
	}
	f.grown.Broadcast()
	f.mu.Unlock()
}

func (f *Flow) number() uint16 { return f.id }

func (f *Flow) deliver(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last || !f.came(len(b)) {
		return fmt.Errorf("%w: %d bytes over the window of flow %d, or after its end", errProtocol, len(b)-f.under, f.id)
	}
	if f.over == nil {
		f.queue = append(f.queue, b...)
		f.grown.Broadcast()
	}
	return nil
}

func (f *Flow) finish() {
	f.mu.Lock()
	f.last = true
	f.grown.Broadcast()
	f.mu.Unlock()
	f.leave()
}

func (f *Flow) reset() {
	f.r.drop(f)
	f.end(ErrReset)
}

func (f *Flow) hangUp() { f.end(io.ErrUnexpectedEOF) }
func (f *Flow) shut()   { f.end(io.ErrUnexpectedEOF) }
