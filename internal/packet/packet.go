// Package packet carries packets and descriptors between two processes of one machine over a pair of unix SEQPACKET sockets.
// The kernel keeps a packet whole, so one packet is one message and there is nothing to frame.
package packet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// fdsMax bounds the descriptors of one packet.
const fdsMax = 8

// A Conn is one end. Send is safe for concurrent use, Receive is for one goroutine.
type Conn struct {
	conn *net.UnixConn
	buf  []byte // as long as the largest packet it receives
	oob  []byte
}

// Pair returns one end that receives packets of at most limit bytes, and the other as a file for a child process.
func Pair(limit int) (*Conn, *os.File, error) {
	fd, theirs, err := pair()
	if err != nil {
		return nil, nil, err
	}
	c, err := New(os.NewFile(uintptr(fd), "packets"), limit)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

func pair() (fd int, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "packets"), nil
}

// New returns the end over f, which it owns from now on. It receives packets of at most limit bytes.
func New(f *os.File, limit int) (*Conn, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("open socket for packets: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("open socket for packets: it is no unix socket")
	}
	return &Conn{u, make([]byte, limit), make([]byte, unix.CmsgSpace(4*fdsMax))}, nil
}

// Send sends one packet, which is not empty, and duplicates of the descriptors, of which there are eight at most. The sender knows
// the limit of the other end: that fails to receive what is longer.
func (c *Conn) Send(b []byte, fds ...int) error {
	oob, err := rights(b, fds)
	if err != nil {
		return err
	}
	_, _, err = c.conn.WriteMsgUnix(b, oob, nil)
	return err
}

// Receive waits for one packet. It is valid until the next is received; the descriptors are close-on-exec and belong to the
// caller. The end of the connection is io.EOF, perhaps wrapped.
func (c *Conn) Receive() ([]byte, []int, error) {
	n, on, flags, _, err := c.conn.ReadMsgUnix(c.buf, c.oob)
	if err != nil {
		return nil, nil, err
	}
	return received(c.buf[:n], c.oob[:on], flags)
}

// Close closes the end and wakes a Receive that waits; the other end receives its end.
func (c *Conn) Close() error { return c.conn.Close() }

// CloseAll closes descriptors that nobody wants.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// rights returns what goes with the packet b for the descriptors.
func rights(b []byte, fds []int) ([]byte, error) {
	switch {
	case len(b) == 0:
		return nil, errors.New("send packet: an empty one would be the end of the connection")
	case len(fds) > fdsMax:
		return nil, fmt.Errorf("send packet: %d descriptors, at most %d", len(fds), fdsMax)
	case len(fds) == 0:
		return nil, nil
	}
	return unix.UnixRights(fds...), nil
}

// received takes apart what came with one packet.
func received(packet, oob []byte, flags int) ([]byte, []int, error) {
	fds, err := descriptors(oob)
	switch {
	case err != nil:
	case len(packet) == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("receive packet: cut off")
	}
	if err != nil {
		CloseAll(fds)
		return nil, nil, err
	}
	return packet, fds, nil
}

func descriptors(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}
