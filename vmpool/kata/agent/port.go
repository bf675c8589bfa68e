package agent

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A port is a virtio-serial port. Reads and writes block in the kernel; a poller that asks for readiness would be told at
// once while no one is connected, for ever.
type port struct {
	f     *os.File
	epoll int
}

func openPort(name string) (*port, error) {
	dev, err := find("/sys/class/virtio-ports/*/name", name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/"+dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", name, err)
	}
	p := &port{f: os.NewFile(uintptr(fd), name)}
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	// A port that is connected and silent is ready for output only.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return nil, fmt.Errorf("watch port %s: %w", name, err)
	}
	return p, nil
}

// waitConnected returns when the host is connected. It is woken by edges only: by what happens to the port.
func (p *port) waitConnected() error {
	fd := int32(p.f.Fd())
	for {
		now := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}}
		if _, err := unix.Poll(now, 0); err != nil && err != unix.EINTR {
			return err
		}
		if now[0].Revents&unix.POLLHUP == 0 {
			return nil
		}
		var events [1]unix.EpollEvent
		if _, err := unix.EpollWait(p.epoll, events[:], -1); err != nil && err != unix.EINTR {
			return err
		}
	}
}

// Read reads at least a byte; the end is that of the host's connection.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(p.f.Fd()), b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Write writes all of b.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(int(p.f.Fd()), b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Close leaves the port open: the next connection comes on it.
func (p *port) Close() error { return nil }
