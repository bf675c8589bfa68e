package packet

import (
	"os"

	"golang.org/x/sys/unix"
)

// A Line is one end for a thread that has nothing else to do: it waits in the kernel, where a [Conn] waits in Go's poller and
// is woken by way of other threads. One goroutine uses it, Close included.
type Line struct {
	fd  int
	buf []byte // as long as the largest packet it receives
	oob []byte
}

// NewLine returns the end over fd, which it owns from now on and which must block. It receives packets of at most limit bytes.
func NewLine(fd, limit int) *Line {
	unix.CloseOnExec(fd)
	return &Line{fd, make([]byte, limit), make([]byte, unix.CmsgSpace(4*fdsMax))}
}

// LinePair returns one end as a Line and the other as a file for a child process.
func LinePair(limit int) (*Line, *os.File, error) {
	fd, theirs, err := pair()
	if err != nil {
		return nil, nil, err
	}
	return NewLine(fd, limit), theirs, nil
}

// Send is as [Conn.Send].
func (l *Line) Send(b []byte, fds ...int) error {
	oob, err := rights(b, fds)
	if err != nil {
		return err
	}
	for {
		if err := unix.Sendmsg(l.fd, b, oob, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return err
		}
	}
}

// Receive is as [Conn.Receive].
func (l *Line) Receive() ([]byte, []int, error) {
	for {
		n, on, flags, _, err := unix.Recvmsg(l.fd, l.buf, l.oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		return received(l.buf[:n], l.oob[:on], flags)
	}
}

// Close closes the end.
func (l *Line) Close() { unix.Close(l.fd) }
