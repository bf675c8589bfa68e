// Package ward is what wardens of every kind have in common: one hears its node, answers it, and knows its sandboxes with their
// user ids and cgroups. How a sandbox is made and ended is the kind's.
package ward

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/packet"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
)

// Descriptors that the node hands to its warden.
const (
	NodeFD = 3 // the link
	LaneFD = 4 // the first of the lanes
)

// Lanes is how many sandboxes can be given code at once. More would only wait for the kernel's mount lock.
const Lanes = 4

// idsPerBox is how many user ids of the host one sandbox takes: one for its root, one for its user.
const idsPerBox = 2

// endMax is how long the sandboxes may take to end with their warden; the sweep that follows is the second try.
const endMax = 10 * time.Second

// A Box is what every warden knows of a sandbox. A kind's own type embeds it.
type Box struct {
	ID    uint64
	UID   uint32 // of the sandbox's root on the host; that of its user is the next
	Group cgroup.Group
	slot  uint32

	doomed bool          // to be killed, perhaps before it exists; under the ward's lock
	done   chan struct{} // closed when every trace is removed
}

// Common returns the box itself, by which a kind's type that embeds it is known.
func (b *Box) Common() *Box { return b }

// Done is closed when nothing of the sandbox is left.
func (b *Box) Done() <-chan struct{} { return b.done }

// A Sandbox is a kind's own type, which embeds a [Box].
type Sandbox interface{ Common() *Box }

// A Kind makes and ends sandboxes of its own type. Its methods are safe for concurrent use, each about another sandbox.
type Kind[S Sandbox] interface {
	// Open readies what all sandboxes share, lanes included. The cgroups are the warden's and empty by then.
	Open(w *Ward[S]) error
	// New returns a sandbox of which nothing exists yet.
	New(b *Box) S
	// Clone makes it and waits until its program runs or waits for code. The descriptors stay the caller's, those it returns
	// become so. Whether it fails or the sandbox ends later, [Ward.Gone] is called once.
	Clone(s S, m *link.Message, fds []int) (extra []int, err error)
	// End begins the end of a sandbox, which may not exist yet and then must not come to be: see [Ward.Wanted].
	End(s S) error
}

// A Ward is the sandboxes of one warden. It has a goroutine for each command under way.
type Ward[S Sandbox] struct {
	Setup link.Setup

	kind Kind[S]
	node *link.Conn
	tree *cgroup.Tree
	lock *os.File

	mu      sync.Mutex // a leaf
	boxes   map[uint64]S
	free    []uint32 // slots that came back
	next    uint32   // first slot never used
	closing bool
}

// Main runs a warden until its node goes away.
func Main[S Sandbox](kind Kind[S]) error {
	node, err := link.New(os.NewFile(NodeFD, "node"))
	if err != nil {
		return err
	}
	// The node's death arrives as the end of the link and, should a stray copy of the other end live on somewhere, as
	// SIGTERM. Other signals of a terminal are not ours.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	go func() {
		<-stop
		node.Close()
	}()
	m, _, err := node.Receive()
	if err != nil {
		return fmt.Errorf("wait for setup: %w", err)
	}
	if m.Op != link.Open || m.Setup == nil {
		return fmt.Errorf("wait for setup: message %d", m.Op)
	}
	w := &Ward[S]{Setup: *m.Setup, kind: kind, node: node, boxes: map[uint64]S{}}
	err = w.open()
	answer := &link.Message{Op: link.Open}
	if err != nil {
		answer.Error = err.Error()
	}
	_ = node.Send(answer) // a node that is gone shows at the next Receive
	if err == nil {
		w.serve()
	}
	return errors.Join(err, w.close())
}

func (w *Ward[S]) open() error {
	tree, err := cgroup.Find(w.Setup.CgroupRoot, w.Setup.Parent)
	if err != nil {
		return err
	}
	w.tree = tree
	if w.lock, err = tree.Lock(w.Setup.TakeOver); err != nil {
		return err
	}
	if err := tree.Sweep(); err != nil {
		return fmt.Errorf("sweep what an earlier life left: %w", err)
	}
	return w.kind.Open(w)
}

// serve answers the node until it goes away.
func (w *Ward[S]) serve() {
	for {
		m, fds, err := w.node.Receive()
		if err != nil {
			return
		}
		switch m.Op {
		case link.Clone:
			// Admitted here, in order, so that a Kill right behind it finds it.
			s, err := w.admit(m.ID)
			go w.answer(m, fds, func(m *link.Message, fds []int) ([]int, error) {
				if err != nil {
					return nil, err
				}
				return w.kind.Clone(s, m, fds)
			})
		case link.Kill:
			go w.answer(m, fds, w.kill)
		}
	}
}

// answer runs one command and reports how it went. Descriptors that came with it are closed afterwards.
func (w *Ward[S]) answer(m *link.Message, fds []int, do func(*link.Message, []int) (extra []int, err error)) {
	out, err := do(m, fds)
	reply := &link.Message{Op: m.Op, ID: m.ID}
	if err != nil {
		reply.Error = err.Error()
	}
	_ = w.node.Send(reply, out...) // a node that is gone shows at the next Receive
	packet.CloseAll(append(fds, out...))
}

// admit reserves user ids.
func (w *Ward[S]) admit(id uint64) (s S, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return s, errors.New("the warden is closing")
	}
	if len(w.boxes) >= w.Setup.SandboxMax {
		return s, fmt.Errorf("%d sandboxes exist: the driver's limit", len(w.boxes))
	}
	b := &Box{ID: id, done: make(chan struct{}), Group: w.tree.Group(strconv.FormatUint(id, 10))}
	if n := len(w.free); n > 0 {
		b.slot, w.free = w.free[n-1], w.free[:n-1]
	} else {
		b.slot = w.next
		w.next++
	}
	b.UID = w.Setup.UIDBase + b.slot*idsPerBox
	s = w.kind.New(b)
	w.boxes[id] = s
	return s, nil
}

// Find returns the sandbox of that number, which may not be made yet; the zero value of S when there is none.
func (w *Ward[S]) Find(id uint64) S {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.boxes[id]
}

// Wanted reports whether nobody asked for the end of the sandbox, or of the warden, yet.
func (w *Ward[S]) Wanted(s S) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !s.Common().doomed && !w.closing
}

// Gone forgets a sandbox of which nothing is left, and tells the node unless m is nil.
func (w *Ward[S]) Gone(s S, m *link.Message) {
	b := s.Common()
	w.mu.Lock()
	delete(w.boxes, b.ID)
	w.free = append(w.free, b.slot)
	w.mu.Unlock()
	if m != nil {
		_ = w.node.Send(m) // a node that is gone shows at the next Receive
	}
	close(b.done)
}

// kill ends one sandbox and waits until nothing is left of it.
func (w *Ward[S]) kill(m *link.Message, _ []int) ([]int, error) {
	w.mu.Lock()
	s, ok := w.boxes[m.ID]
	if ok {
		s.Common().doomed = true
	}
	w.mu.Unlock()
	if !ok {
		return nil, nil
	}
	err := w.kind.End(s)
	<-s.Common().done
	return nil, err
}

// close ends every sandbox and removes what the warden made outside its own namespaces.
func (w *Ward[S]) close() error {
	w.mu.Lock()
	w.closing = true
	all := make([]S, 0, len(w.boxes))
	for _, s := range w.boxes {
		s.Common().doomed = true
		all = append(all, s)
	}
	w.mu.Unlock()
	var errs []error
	for _, s := range all {
		errs = append(errs, w.kind.End(s))
	}
	for _, s := range all {
		select {
		case <-s.Common().done:
		case <-time.After(endMax):
		}
	}
	if w.lock == nil {
		return nil // another node's groups are not ours to remove
	}
	return errors.Join(errors.Join(errs...), w.tree.Sweep(), w.tree.Remove(), w.lock.Close())
}

// Attach answers what comes over a lane, one after the other, until the node is gone. entrypoint says why a bootstrap cannot run.
func Attach(lane *link.Line, attach func(m *link.Message, fds []int) (entrypoint string, err error)) {
	for {
		m, fds, err := lane.Receive()
		if err != nil {
			return // which serve sees too
		}
		reply := &link.Message{Op: link.Attach, ID: m.ID}
		if reply.Entrypoint, err = attach(m, fds); err != nil {
			reply.Error = err.Error()
		}
		packet.CloseAll(fds)
		if lane.Send(reply) != nil {
			return
		}
	}
}

// Reap calls collect with every child that ends. One goroutine for all, because a waiting thread for each would cost more than
// the sandbox. The lock is held while a child is collected.
func Reap(lock sync.Locker, collect func(pid int, status unix.WaitStatus)) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	for range c {
		for {
			var status unix.WaitStatus
			lock.Lock()
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if pid > 0 {
				collect(pid, status)
			}
			lock.Unlock()
			if pid <= 0 && err != unix.EINTR {
				break
			}
		}
	}
}
