package inside

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// The relay carries every connection to the Runtime API out to the node: the network of the sandbox is its own kernel's and
// ends there, so a listener of the host cannot be in it.
//
// It reads with calls that block, each direction on a thread of its own. Go's poller would add two calls and the wake-up of a
// thread to each step, and there are three of them in the way of every call of a function.

// relayPiece is how much is read at once.
const relayPiece = 32 << 10

// listen opens the Runtime API's address and carries what connects to it from now on.
func listen(addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return err
	}
	if err := unix.Listen(l, 256); err != nil {
		return err
	}
	go func() {
		for {
			c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err == nil {
				go carry(c)
			} else if err != unix.EINTR && err != unix.ECONNABORTED && err != unix.EMFILE {
				return
			}
		}
	}()
	return nil
}

// carry connects c with the node until either end is closed.
func carry(c int) {
	defer unix.Close(c)
	_ = unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) // without it calls are slower, and right
	node, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(node)
	if unix.Connect(node, &unix.SockaddrUnix{Name: APISocket}) != nil {
		return
	}
	var outwards sync.WaitGroup
	outwards.Go(func() {
		pump(node, c)
		_ = unix.Shutdown(node, unix.SHUT_WR) // the node may still be answering
	})
	pump(c, node)
	_ = unix.Shutdown(c, unix.SHUT_RDWR)
	outwards.Wait()
}

// pump writes to one what it reads from the other, until either fails or ends.
func pump(to, from int) {
	buf := make([]byte, relayPiece)
	for {
		n, err := unix.Read(from, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		for part := buf[:n]; len(part) > 0; {
			n, err := unix.Write(to, part)
			if err != nil && err != unix.EINTR {
				return
			}
			part = part[max(n, 0):]
		}
	}
}
