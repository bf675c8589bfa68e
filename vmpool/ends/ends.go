// Package ends holds the node's ends of one sandbox's pipes and sockets: what it prints, and how calls reach it. They are the
// same for every driver; what differs is how the other ends get inside.
package ends

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"starling/internal/packet"
	"starling/vmpool/framed"
)

// Ends are the node's. The zero value has none. A sandbox embeds them for the methods that vmpool.Sandbox wants.
type Ends struct {
	channel        net.Conn     // framed, shipped runtimes
	listener       net.Listener // of the Runtime API, provided
	stdout, stderr *os.File
}

// Plumb makes the pipes of what is printed and, for a shipped runtime, of calls and answers. It returns the sandbox's ends, which
// block, close on execution and belong to the caller: stdout, stderr, calls, answers. The node's ends of the first two do not
// block, so that a call's end can empty them.
func (e *Ends) Plumb(shipped bool) (theirs []int, err error) {
	for _, f := range []**os.File{&e.stdout, &e.stderr} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			packet.CloseAll(theirs)
			return nil, fmt.Errorf("make pipe: %w", err)
		}
		_ = unix.SetNonblock(p[0], true) // cannot fail on a fresh pipe
		*f = os.NewFile(uintptr(p[0]), "output")
		theirs = append(theirs, p[1])
	}
	if !shipped {
		return theirs, nil
	}
	channel, pipes, err := framed.Pipes()
	if err != nil {
		packet.CloseAll(theirs)
		return nil, err
	}
	e.channel = channel
	return append(theirs, pipes[:]...), nil
}

// Listen keeps what accepts connections to the Runtime API.
func (e *Ends) Listen(ln net.Listener) { e.listener = ln }

// Channel is the framed connection to a shipped runtime; nil for provided.
func (e *Ends) Channel() net.Conn { return e.channel }

// Listener accepts connections to the Runtime API made inside; nil for shipped runtimes.
func (e *Ends) Listener() net.Listener { return e.listener }

// Output is what the code prints.
func (e *Ends) Output() (stdout, stderr io.Reader) { return e.stdout, e.stderr }

// Release closes them all. Whoever used one may have closed it already.
func (e *Ends) Release() error {
	var errs []error
	closing := func(c io.Closer) {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if e.channel != nil {
		closing(e.channel)
	}
	if e.listener != nil {
		closing(e.listener)
	}
	if e.stdout != nil {
		closing(e.stdout)
	}
	if e.stderr != nil {
		closing(e.stderr)
	}
	return errors.Join(errs...)
}
