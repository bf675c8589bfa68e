// Package netns does things in another network namespace: the calling thread goes there and comes back. A socket belongs to
// the namespace it was made in for ever, so that is all that needs to happen there.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling"
)

// home is the namespace of this process.
var home = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })

// ErrNone says of what there is at a path that it is no network namespace.
var ErrNone = errors.New("it is no network namespace")

// Open returns the namespace at a path, such as one that "ip netns" made, or this process's own for "host".
func Open(path string) (*os.File, error) {
	if path == "host" {
		path = "/proc/thread-self/ns/net"
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "open network namespace", "%w", err)
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, starling.Errorf(starling.Invalid, "open network namespace", "%s: %w", path, ErrNone)
	}
	return f, nil
}

// New makes an empty namespace, in which not even the loopback is up. It lives as long as the file, or what was made in it.
func New() (*os.File, error) {
	type made struct {
		f   *os.File
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{nil, fmt.Errorf("make network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- made{f, err}
	}()
	m := <-done
	return m.f, m.err
}

// Same reports whether two files are one namespace.
func Same(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// Holds reports whether a socket was made in ns.
func Holds(ns *os.File, socket syscall.RawConn) bool {
	same := false
	err := socket.Control(func(fd uintptr) {
		of, _, code := unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCGSKNS, 0)
		if code != 0 {
			return
		}
		f := os.NewFile(of, "netns")
		same = Same(ns, f)
		f.Close()
	})
	return err == nil && same
}

// IsHome reports whether ns is this process's own.
func IsHome(ns *os.File) bool {
	h, err := home()
	return err == nil && Same(h, ns)
}

// Do runs f with its thread in ns. f must not start anything that stays on the thread, and should take microseconds: the
// thread serves nothing else meanwhile. A thread that cannot come back ends. When ns was closed it is an error, even beside Do: the number of
// its descriptor may be another namespace's by then.
func Do(ns *os.File, f func() error) error {
	h, err := home()
	if err != nil {
		return fmt.Errorf("find own network namespace: %w", err)
	}
	runtime.LockOSThread()
	if err := enter(ns); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := unix.Setns(int(h.Fd()), unix.CLONE_NEWNET); back != nil {
		return fmt.Errorf("leave network namespace: %w", back) // locked: the goroutine that called takes the thread with it
	}
	runtime.UnlockOSThread()
	return err
}

// enter moves the calling thread, for which it keeps ns open.
func enter(ns *os.File) error {
	raw, err := ns.SyscallConn()
	if err != nil {
		return err
	}
	var refused error
	err = raw.Control(func(fd uintptr) { refused = unix.Setns(int(fd), unix.CLONE_NEWNET) })
	return errors.Join(err, refused)
}

// Addresses returns the addresses of ns's own interfaces.
func Addresses(ns *os.File) (out []netip.Addr, err error) {
	err = Do(ns, func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr().Unmap())
			}
		}
		return err
	})
	return out, err
}

// Dial connects a socket made in ns: network is "tcp" or "udp", from the source address or, when it is not valid, from the
// namespace's choice. The connection waits on no thread.
func Dial(ns *os.File, network string, from netip.Addr, to netip.AddrPort, patience time.Duration) (net.Conn, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	var fd int
	err := Do(ns, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	if from.IsValid() {
		// the port is chosen when the destination is known: one port serves many destinations
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("bind %s: %w", from, err)
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("bind %s: %w", from, err)
		}
	}
	f := os.NewFile(uintptr(fd), network)
	defer f.Close() // the connection has a descriptor of its own
	if err := connect(f, fd, to, patience); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// connect begins and awaits the connection.
func connect(f *os.File, fd int, to netip.AddrPort, patience time.Duration) error {
	err := unix.Connect(fd, sockaddr(to))
	if err != unix.EINPROGRESS {
		return err
	}
	if err := f.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = rc.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			outcome = err
		case code != 0:
			outcome = syscall.Errno(code)
		default:
			_, err := unix.Getpeername(int(fd))
			return err == nil // not connected and no error: not yet
		}
		return true
	})
	if err != nil {
		return err
	}
	return outcome
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
