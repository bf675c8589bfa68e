package link

import (
	"os"

	"starling/internal/packet"
)

// A Line is one end for a thread that has nothing else to do, which waits in the kernel. That spares the way of a start two
// switches of threads against a Conn. One goroutine uses it, Close included.
type Line struct{ packets *packet.Line }

// NewLine returns the Line over fd, which it owns from now on and which must block.
func NewLine(fd int) *Line { return &Line{packet.NewLine(fd, MessageMax)} }

// LinePair returns one end as a Line and the other as a file for a child process.
func LinePair() (*Line, *os.File, error) {
	p, theirs, err := packet.LinePair(MessageMax)
	if err != nil {
		return nil, nil, err
	}
	return &Line{p}, theirs, nil
}

// Send is as [Conn.Send].
func (l *Line) Send(m *Message, fds ...int) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	return l.packets.Send(b, fds...)
}

// SendBytes sends a packet that is no Message.
func (l *Line) SendBytes(b []byte) error { return l.packets.Send(b) }

// ReceiveBytes waits for one packet of any content; it is valid until the next is received. The end of the connection is io.EOF.
func (l *Line) ReceiveBytes() ([]byte, error) {
	b, fds, err := l.packets.Receive()
	packet.CloseAll(fds) // none are expected
	return b, err
}

// Receive is as [Conn.Receive].
func (l *Line) Receive() (*Message, []int, error) { return decode(l.packets.Receive()) }

// Close closes the end.
func (l *Line) Close() { l.packets.Close() }
