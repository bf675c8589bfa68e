package lean

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/nowait"
)

var errGone = errors.New("the caller does not take the answer")

// Context ends when the caller goes away. Only who asks for its Done pays for watching the connection: calls that need not
// wait do not.
func (c *Conn) Context() context.Context {
	if c.answer.context == nil {
		c.answer.context = &callContext{c: c, reading: c.body > c.w-c.r}
	}
	return c.answer.context
}

// callContext is a context.Context of one request.
type callContext struct {
	c *Conn

	mu      sync.Mutex // a leaf
	done    chan struct{}
	err     error
	reading bool          // the body is still to come: it would be taken for a caller that goes on
	over    bool          // the request is
	soon    *time.Timer   // runs look; nil before somebody asked for Done and the body came
	watch   chan struct{} // closed when look ended; nil before it began
}

var _ context.Context = (*callContext)(nil)

func (x *callContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (x *callContext) Value(any) any               { return nil }

func (x *callContext) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// watchAfter is how long who asked for Done waits before the connection is watched. Most have by then what they waited for, a slot that
// another call leaves, and a watch costs a goroutine, three changes of a deadline and a system call.
const watchAfter = 5 * time.Millisecond

// Done begins to watch the connection, a moment later. More bytes are no sign of the end, nor of the opposite: then nothing is watched
// any more.
func (x *callContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done != nil {
		return x.done
	}
	x.done = make(chan struct{})
	switch {
	case x.over:
		close(x.done)
	case !x.reading:
		x.begin()
	}
	return x.done
}

// bodyRead says that the whole body came: whoever asked for Done before gets the watch now.
func (x *callContext) bodyRead() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reading = false
	if x.done != nil && x.soon == nil {
		x.begin()
	}
}

// begin starts the watch soon; x.mu is held.
func (x *callContext) begin() { x.soon = time.AfterFunc(watchAfter, x.look) }

// looks prepares the watch, which ends with the call or with the caller and not with a deadline of former reads. False: the call is over.
func (x *callContext) looks() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return false
	}
	x.watch = make(chan struct{})
	x.c.nc.SetReadDeadline(time.Time{})
	return true
}

// cancel ends the context; x.mu is held.
func (x *callContext) cancel() {
	if x.err == nil {
		x.err = context.Canceled
		if x.done != nil {
			close(x.done)
		}
	}
}

// look waits until the connection has something to read: its end, or bytes. end stops it.
func (x *callContext) look() {
	if !x.looks() {
		return
	}
	defer close(x.watch)
	gone := false
	var b [1]byte
	err := x.c.raw.Read(func(fd uintptr) bool {
		n, err := nowait.Peek(int(fd), b[:])
		if err == unix.EAGAIN {
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

// endContext ends the context of a request, if it was asked for.
func (a *answer) endContext() {
	if a.context != nil {
		a.context.end()
	}
}

// end ends the context with its request and stops the watch.
func (x *callContext) end() {
	x.mu.Lock()
	x.over = true
	watch := x.watch
	if x.soon != nil {
		x.soon.Stop()
	}
	x.mu.Unlock()
	if watch != nil {
		x.c.nc.SetReadDeadline(time.Unix(1, 0))
		<-watch
		x.c.deadline(time.Time{})
	}
	x.mu.Lock()
	x.cancel()
	x.mu.Unlock()
}

func splitList(s string) []string {
	list := strings.Split(s, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
