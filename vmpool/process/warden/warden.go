// Package warden is the small process that makes, specialises and ends the sandboxes of one driver. It is apart from
// the node because a fork from a small process is cheap, because namespaces are a thread's business and best done where
// few threads run, and because something must clean up when the node dies without warning.
package warden

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/jail"
	"starling/vmpool/process/link"
)

// Descriptors that the node hands to its warden.
const (
	NodeFD = 3 // the link
	LaneFD = 4 // the first of the lanes
)

// Lanes is how many sandboxes can be given code at once. More would only wait for the kernel's mount lock.
const Lanes = 4

// Main runs the warden until its node goes away.
func Main() error {
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
	w := &warden{node: node, setup: *m.Setup, boxes: map[uint64]*box{}, byPID: map[int]*box{}}
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

// warden owns the sandboxes of one driver. Its goroutines: serve, the reaper, the cloner and one for each lane, which
// end with the process, and one for each command under way.
type warden struct {
	node  *link.Conn
	setup link.Setup
	tree  *cgroup.Tree
	lock  *os.File
	root  string
	forks chan fork
	// waiter is what a sandbox of provided runs until it has code.
	waiter *os.File

	mu      sync.Mutex // a leaf, but held across a fork so that the reaper meets no unknown child
	boxes   map[uint64]*box
	byPID   map[int]*box
	free    []uint32 // user slots that came back
	next    uint32   // first user slot never used
	closing bool
}

// A box is one sandbox.
type box struct {
	id     uint64
	slot   uint32
	pid    int  // 0 until the first process exists; under the warden's lock
	doomed bool // to be killed, perhaps before it exists; under the warden's lock
	pidfd  int  // -1 before and after; under the warden's lock
	group  cgroup.Group
	weight float64       // before it has code
	gone   chan struct{} // closed when the first process, and with it every other, has been collected
	status unix.WaitStatus
	done   chan struct{} // closed when every trace is removed

	use     sync.Mutex // held by who works on the box from outside, so that nothing is given to another in its place; before the warden's lock
	control *link.Line // to the first process of provided that waits for code; under use
}

func (w *warden) open() error {
	tree, err := cgroup.Find(w.setup.CgroupRoot, w.setup.Parent)
	if err != nil {
		return err
	}
	w.tree = tree
	if w.lock, err = tree.Lock(w.setup.TakeOver); err != nil {
		return err
	}
	if err := tree.Sweep(); err != nil {
		return fmt.Errorf("sweep what an earlier life left: %w", err)
	}
	w.root = w.setup.Dir
	err = w.buildRoot()
	if err == nil {
		err = os.Chdir(w.root)
	}
	if err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	if w.waiter, err = jail.Waiter(); err != nil {
		return err
	}
	w.forks = make(chan fork)
	go w.cloner()
	go w.reap()
	for i := range Lanes {
		if err := w.startLane(link.NewLine(LaneFD + i)); err != nil {
			return err
		}
	}
	return nil
}

// serve answers the node until it goes away.
func (w *warden) serve() {
	for {
		m, fds, err := w.node.Receive()
		if err != nil {
			return
		}
		switch m.Op {
		case link.Clone:
			// Admitted here, in order, so that a Kill right behind it finds it.
			b, err := w.admit(m.ID)
			go w.answer(m, fds, func(m *link.Message, fds []int) ([]int, error) {
				if err != nil {
					return nil, err
				}
				return w.clone(b, m, fds)
			})
		case link.Kill:
			go w.answer(m, fds, w.kill)
		}
	}
}

// answer runs one command and reports how it went. Descriptors that came with it are closed afterwards.
func (w *warden) answer(m *link.Message, fds []int, do func(*link.Message, []int) (extra []int, err error)) {
	out, err := do(m, fds)
	reply := &link.Message{Op: m.Op, ID: m.ID}
	if err != nil {
		reply.Error = err.Error()
	}
	_ = w.node.Send(reply, out...) // a node that is gone shows at the next Receive
	for _, fd := range append(fds, out...) {
		unix.Close(fd)
	}
}

func (w *warden) find(id uint64) (*box, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.boxes[id]; ok && b.pid != 0 {
		return b, nil
	}
	return nil, fmt.Errorf("no sandbox %d: it ended", id)
}

// kill ends one sandbox and waits until nothing is left of it.
func (w *warden) kill(m *link.Message, _ []int) ([]int, error) {
	w.mu.Lock()
	b := w.boxes[m.ID]
	if b != nil {
		b.doomed = true
	}
	w.mu.Unlock()
	if b == nil {
		return nil, nil
	}
	w.end(b)
	<-b.done
	return nil, nil
}

// end kills the first process, and the kernel with it every process of its namespace. Frozen tasks of cgroup version 1
// die only when thawed.
func (w *warden) end(b *box) {
	w.mu.Lock()
	pid := b.pid
	if b.pidfd >= 0 {
		_ = unix.PidfdSendSignal(b.pidfd, unix.SIGKILL, nil, 0)
	}
	w.mu.Unlock()
	if pid != 0 { // otherwise the fork to come sees that it is doomed
		_ = b.group.Thaw()
	}
}

// reap collects every child that ends. One goroutine for all, because a waiting thread for each would cost more than
// the sandbox.
func (w *warden) reap() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGCHLD)
	for range c {
		for {
			var status unix.WaitStatus
			w.mu.Lock()
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			b := w.byPID[pid]
			delete(w.byPID, pid)
			w.mu.Unlock()
			if pid <= 0 || (err != nil && err != unix.EINTR) {
				break
			}
			if b != nil {
				b.status = status
				close(b.gone)
			}
		}
	}
}

// mourn waits for the end of a sandbox, removes what is left and tells the node.
func (w *warden) mourn(b *box) {
	<-b.gone
	oom := b.group.OutOfMemory()
	_ = b.group.Kill() // whoever outlived its namespace's first process: nobody, as far as the kernel keeps its word
	err := b.group.Remove()
	b.use.Lock()
	if b.control != nil {
		b.control.Close()
		b.control = nil
	}
	w.mu.Lock()
	unix.Close(b.pidfd)
	b.pidfd = -1
	w.mu.Unlock()
	b.use.Unlock()
	m := &link.Message{Op: link.Exit, ID: b.id, Status: b.status, OutOfMemory: oom && b.status.Signaled()}
	if err != nil {
		m.Error = err.Error()
	}
	w.forget(b)
	_ = w.node.Send(m) // a node that is gone shows at the next Receive
	close(b.done)
}

func (w *warden) forget(b *box) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.boxes, b.id)
	w.free = append(w.free, b.slot)
}

// close ends every sandbox and removes what the warden made outside its own namespaces.
func (w *warden) close() error {
	w.mu.Lock()
	w.closing = true
	boxes := make([]*box, 0, len(w.boxes))
	for _, b := range w.boxes {
		b.doomed = true
		boxes = append(boxes, b)
	}
	w.mu.Unlock()
	for _, b := range boxes {
		w.end(b)
	}
	for _, b := range boxes {
		select {
		case <-b.done:
		case <-time.After(10 * time.Second): // the sweep below is the second try
		}
	}
	if w.lock == nil {
		return nil // another node's groups are not ours to remove
	}
	return errors.Join(w.tree.Sweep(), w.tree.Remove(), w.lock.Close())
}
