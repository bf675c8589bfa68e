// Package warden is the small process that makes, specialises and ends the sandboxes of one driver. It is apart from
// the node because a fork from a small process is cheap, because namespaces are a thread's business and best done where
// few threads run, and because something must clean up when the node dies without warning.
package warden

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/jail"
	"starling/vmpool/process/link"
	"starling/vmpool/process/ward"
)

// Main runs the warden until its node goes away.
func Main() error { return ward.Main(&warden{byPID: map[int]*box{}}) }

// warden makes sandboxes of processes. Its goroutines beside its ward's: the reaper, the cloner and one for each lane, which
// end with the process.
type warden struct {
	ward  *ward.Ward[*box]
	setup link.Setup
	root  string
	forks chan fork
	// waiter is what a sandbox of provided runs until it has code.
	waiter *os.File

	mu    sync.Mutex // held across a fork so that the reaper meets no unknown child; before the ward's lock
	byPID map[int]*box
}

var _ ward.Kind[*box] = (*warden)(nil)

// A box is one sandbox.
type box struct {
	*ward.Box
	pid    int           // 0 until the first process exists; under the warden's lock
	pidfd  int           // -1 before and after; under the warden's lock
	weight float64       // before it has code
	gone   chan struct{} // closed when the first process, and with it every other, has been collected
	status unix.WaitStatus

	use     sync.Mutex // held by who works on the box from outside, so that nothing is given to another in its place; before the warden's lock
	control *link.Line // to the first process of provided that waits for code; under use
}

// New returns a sandbox that is not there yet.
func (w *warden) New(b *ward.Box) *box { return &box{Box: b, pidfd: -1, gone: make(chan struct{})} }

// Open builds the root of all sandboxes and starts the goroutines of the warden.
func (w *warden) Open(of *ward.Ward[*box]) error {
	w.ward, w.setup = of, of.Setup
	w.root = w.setup.Dir
	err := w.buildRoot(w.ownOpt)
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
	go ward.Reap(&w.mu, w.collect)
	for i := range ward.Lanes {
		if err := w.startLane(link.NewLine(ward.LaneFD + i)); err != nil {
			return err
		}
	}
	return nil
}

func (w *warden) find(id uint64) (*box, error) {
	b := w.ward.Find(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	if b != nil && b.pid != 0 {
		return b, nil
	}
	return nil, fmt.Errorf("no sandbox %d: it ended", id)
}

// End kills the first process, and the kernel with it every process of its namespace. Frozen tasks of cgroup version 1
// die only when thawed, and those behind everything else on the machine only when that leaves them time for it.
func (w *warden) End(b *box) error {
	w.mu.Lock()
	pid := b.pid
	if b.pidfd >= 0 {
		_ = unix.PidfdSendSignal(b.pidfd, unix.SIGKILL, nil, 0)
	}
	w.mu.Unlock()
	if pid != 0 { // otherwise the fork to come sees that it is doomed
		_ = b.Group.Thaw()
		_ = b.Group.Forward()
	}
	return nil
}

// collect notes the end of a child. The caller holds w.mu.
func (w *warden) collect(pid int, status unix.WaitStatus) {
	if b := w.byPID[pid]; b != nil {
		delete(w.byPID, pid)
		b.status = status
		close(b.gone)
	}
}

// mourn waits for the end of a sandbox, removes what is left and tells the node.
func (w *warden) mourn(b *box) {
	<-b.gone
	oom := b.Group.OutOfMemory()
	_ = b.Group.Kill() // whoever outlived its namespace's first process: nobody, as far as the kernel keeps its word
	err := b.Group.Remove()
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
	m := &link.Message{Op: link.Exit, ID: b.ID, Status: b.status, OutOfMemory: oom && b.status.Signaled()}
	if err != nil {
		m.Error = err.Error()
	}
	w.ward.Gone(b, m)
}
