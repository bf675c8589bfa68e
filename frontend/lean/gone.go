package lean

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

var errGone = errors.New("the caller does not take the answer")

// Context ends when the caller goes away. Only who asks for its Done pays for watching the connection: calls that need not
// wait do not.
func (c *Conn) Context() context.Context {
	if c.answer.context == nil {
		c.answer.context = &callContext{c: c}
	}
	return c.answer.context
}

// callContext is a context.Context of one request.
type callContext struct {
	c *Conn

	mu    sync.Mutex // a leaf
	done  chan struct{}
	err   error
	over  bool // the request is
	watch chan struct{}
}

var _ context.Context = (*callContext)(nil)

func (x *callContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (x *callContext) Value(any) any               { return nil }

func (x *callContext) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// Done begins to watch the connection. More bytes are no sign of the end, nor of the opposite: then nothing is watched
// any more.
func (x *callContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done != nil {
		return x.done
	}
	x.done = make(chan struct{})
	if x.over {
		x.cancel()
	} else {
		x.watch = make(chan struct{})
		go x.look()
	}
	return x.done
}

// cancel ends the context; x.mu is held.
func (x *callContext) cancel() {
	if x.err == nil {
		x.err = context.Canceled
		close(x.done)
	}
}

// look waits until the connection has something to read: its end, or bytes. end stops it.
func (x *callContext) look() {
	defer close(x.watch)
	gone := false
	var b [1]byte
	err := x.c.raw.Read(func(fd uintptr) bool {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == unix.EAGAIN || err == unix.EINTR {
			return false
		}
		gone = n <= 0
		return true
	})
	if gone || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		x.mu.Lock()
		x.cancel()
		x.mu.Unlock()
	}
}

// end ends the context with its request and stops the watch.
func (x *callContext) end() {
	x.mu.Lock()
	x.over = true
	watch := x.watch
	x.mu.Unlock()
	if watch != nil {
		x.c.nc.SetReadDeadline(time.Unix(1, 0))
		<-watch
		x.c.deadline(time.Time{})
	}
	x.mu.Lock()
	if x.done != nil {
		x.cancel()
	}
	x.err = context.Canceled
	x.mu.Unlock()
}

func splitList(s string) []string {
	list := strings.Split(s, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
