package vmpool

import (
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/nowait"
)

const (
	outletPiece = 32 << 10             // bytes of one read
	drainReads  = 8                    // reads at the end of a call at most: more than a pipe holds
	floodPause  = 2 * time.Millisecond // between reads of a call that is over its limit: 16 MiB/s
)

var outletBuffers = sync.Pool{New: func() any { return new([outletPiece]byte) }}

// An outlet reads one output stream of a sandbox into its capture. It is read by one goroutine, and, when it is
// a non-blocking descriptor, also by the goroutine of a call that ends.
type outlet struct {
	c      *capture
	stream Stream
	from   io.Reader
	raw    syscall.RawConn // nil for a reader that is no non-blocking descriptor

	drainFD func(fd uintptr) // a field so that a call allocates no closure
}

func newOutlet(c *capture, s Stream, from io.Reader) *outlet {
	o := &outlet{c: c, stream: s, from: from}
	if f, ok := from.(syscall.Conn); ok {
		if raw, err := f.SyscallConn(); err == nil && nonblocking(raw) {
			o.raw = raw
		}
	}
	o.drainFD = func(fd uintptr) {
		for range drainReads {
			if n, _ := o.readFD(int(fd)); n <= 0 {
				return
			}
		}
	}
	return o
}

func nonblocking(raw syscall.RawConn) (yes bool) {
	raw.Control(func(fd uintptr) { yes = nowait.Able(int(fd)) })
	return yes
}

// readFD moves what the pipe holds into the capture; both happen under its lock, so that nothing is between pipe and
// capture when drain returns. n is -1 when the pipe is empty and 0 at its end.
func (o *outlet) readFD(fd int) (n int, flooding bool) {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	buf := outletBuffers.Get().(*[outletPiece]byte)
	defer outletBuffers.Put(buf)
	for {
		n, err := unix.Read(fd, buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return -1, false
		case err != nil || n == 0:
			return 0, false
		}
		return n, o.c.tookLocked(o.stream, buf[:n])
	}
}

// drain empties the pipe without waiting.
func (o *outlet) drain() {
	if o.raw != nil {
		o.raw.Control(o.drainFD)
	}
}

// A drainer empties both outlets of an instance at the end of a call. Most calls print nothing, so it first asks
// the kernel about both pipes at once.
type drainer struct {
	outlets [2]*outlet
	fds     [2]unix.PollFd
	note    [2]func(fd uintptr) // fields so that a call allocates no closure
}

func newDrainer(outlets [2]*outlet) *drainer {
	d := &drainer{outlets: outlets}
	for i := range d.note {
		d.note[i] = func(fd uintptr) { d.fds[i].Fd = int32(fd) }
	}
	return d
}

// drain empties what holds something. It is used by one goroutine at a time.
func (d *drainer) drain() {
	for i, o := range d.outlets {
		d.fds[i] = unix.PollFd{Fd: -1, Events: unix.POLLIN}
		if o.raw != nil {
			o.raw.Control(d.note[i])
		}
	}
	if n, err := nowait.Poll(d.fds[:]); err == nil && n == 0 {
		return
	}
	d.outlets[0].drain()
	d.outlets[1].drain()
}

// run reads until the stream ends. A call that prints far over its limit is slowed down, not the host.
func (o *outlet) run() {
	if o.raw == nil {
		o.runPlain()
		return
	}
	for {
		ended, flooding := false, false
		err := o.raw.Read(func(fd uintptr) bool {
			n, f := o.readFD(int(fd))
			ended, flooding = n == 0, f
			return n >= 0
		})
		if err != nil || ended {
			return
		}
		if flooding {
			time.Sleep(floodPause)
		}
	}
}

func (o *outlet) runPlain() {
	buf := make([]byte, 4<<10)
	for {
		n, err := o.from.Read(buf)
		if n > 0 && o.c.took(o.stream, buf[:n]) {
			time.Sleep(floodPause)
		}
		if err != nil {
			return
		}
	}
}
