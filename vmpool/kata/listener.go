package kata

import (
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"starling/vmpool"
)

// backlog is how many connections of a function may wait to be accepted.
const backlog = 64

// A listener accepts what a guest opens to its Runtime API.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn, backlog), done: make(chan struct{})}
}

// open makes a connection of which one end is accepted here and the other is the relay's.
func (l *listener) open() (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "runtime-api")
	ours := os.NewFile(uintptr(fds[0]), "runtime-api")
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, err
	}
	select {
	case l.conns <- c:
		return theirs, nil
	case <-l.done:
		err = net.ErrClosed
	default:
		err = unix.ECONNREFUSED
	}
	c.Close()
	theirs.Close()
	return nil, err
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and what waits for it.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	for {
		select {
		case c := <-l.conns:
			c.Close()
		default:
			return nil
		}
	}
}

// Addr is the address inside the guest.
func (l *listener) Addr() net.Addr { return guestAddr{} }

type guestAddr struct{}

func (guestAddr) Network() string { return "tcp" }
func (guestAddr) String() string  { return vmpool.RuntimeAPI }
