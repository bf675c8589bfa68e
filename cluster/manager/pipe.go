package manager

import (
	"net"
	"time"

	"starling/transport"
)

// A pipe is one end of a stream inside this process. Each direction is a net.Pipe of its own, so that one can
// end while the other goes on.
type pipe struct {
	in, out net.Conn
	peer    transport.Peer
}

var _ transport.Stream = (*pipe)(nil)

// newPipe returns the two ends of a stream; each says of the other that it is peer.
func newPipe(peer transport.Peer) (a, b *pipe) {
	leftIn, leftOut := net.Pipe()
	rightIn, rightOut := net.Pipe()
	return &pipe{in: leftIn, out: rightIn, peer: peer}, &pipe{in: rightOut, out: leftOut, peer: peer}
}

func (p *pipe) Read(b []byte) (int, error)         { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error)        { return p.out.Write(b) }
func (p *pipe) CloseWrite() error                  { return p.out.Close() }
func (p *pipe) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p *pipe) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }
func (p *pipe) Peer() transport.Peer               { return p.peer }

// Cancel ends both directions for both ends.
func (p *pipe) Cancel() {
	_ = p.in.Close() // closing a net.Pipe does not fail
	_ = p.out.Close()
}
