package link

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A Line is one end for a thread that has nothing else to do: it waits in the kernel, where a Conn waits in Go's poller
// and is woken by way of other threads. That is worth two switches of threads on the way of a start. One goroutine uses
// it, Close included.
type Line struct {
	fd  int
	buf []byte
}

// NewLine returns the Line over fd, which it owns from now on and which must block.
func NewLine(fd int) *Line {
	unix.CloseOnExec(fd)
	return &Line{fd, make([]byte, MessageMax)}
}

// LinePair returns one end as a Line and the other as a file for a child process.
func LinePair() (*Line, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return NewLine(fds[0]), os.NewFile(uintptr(fds[1]), "line"), nil
}

// Send sends one message and duplicates of the descriptors.
func (l *Line) Send(m *Message, fds ...int) error {
	b, oob, err := encode(m, fds)
	if err != nil {
		return err
	}
	return l.send(b, oob)
}

// SendBytes sends a packet that is no Message.
func (l *Line) SendBytes(b []byte) error { return l.send(b, nil) }

func (l *Line) send(b, oob []byte) error {
	for {
		if err := unix.Sendmsg(l.fd, b, oob, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return err
		}
	}
}

// ReceiveBytes waits for one packet of any content; it is valid until the next is received. The end of the connection is io.EOF.
func (l *Line) ReceiveBytes() ([]byte, error) {
	for {
		n, err := unix.Read(l.fd, l.buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, err
		case n == 0:
			return nil, io.EOF
		}
		return l.buf[:n], nil
	}
}

// Receive waits for one message, as [Conn.Receive] does.
func (l *Line) Receive() (*Message, []int, error) {
	oob := make([]byte, unix.CmsgSpace(4*fdsMax))
	for {
		n, on, flags, _, err := unix.Recvmsg(l.fd, l.buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		return decode(l.buf[:n], oob[:on], flags)
	}
}

// Close closes the end.
func (l *Line) Close() { unix.Close(l.fd) }
