// Package warden is the small process beside the node that makes, specialises and ends gVisor sandboxes. It speaks the
// protocol of the process driver's warden. It runs runsc for each sandbox, which leaves two processes of gVisor's behind: the
// sentry, which is the kernel of the sandbox, and the gofer, which opens files for it. Both live in the sandbox's cgroup, as
// a user of the host that owns nothing.
package warden

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

	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
	process "starling/vmpool/process/warden"
)

// Where the warden keeps things, in its own mount namespace: no path of the host, which the users of sandboxes may not walk.
const (
	baseDir  = "/mnt"
	rootDir  = baseDir + "/root"  // of all sandboxes, read-only
	boxesDir = baseDir + "/boxes" // a folder for each
	stateDir = baseDir + "/state" // runsc's
)

// Main runs the warden until its node goes away.
func Main() error {
	node, err := link.New(os.NewFile(process.NodeFD, "node"))
	if err != nil {
		return err
	}
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

// warden owns the sandboxes of one driver. Its goroutines: serve, the reaper and one for each lane, which end with the
// process, and one for each command under way.
type warden struct {
	node  *link.Conn
	setup link.Setup
	tree  *cgroup.Tree
	lock  *os.File

	mu      sync.Mutex // a leaf, but held across a fork so that the reaper meets no unknown child
	boxes   map[uint64]*box
	byPID   map[int]*box                   // by the sentry
	helpers map[int]chan<- unix.WaitStatus // runsc commands under way
	ended   [256]ending                    // the last of the others: a sentry may end before runsc does, which tells its number
	endedAt int
	free    []uint32 // user slots that came back
	next    uint32   // first user slot never used
	closing bool
}

// idsPerBox is how many user ids of the host one sandbox takes: one for its root, one for its user.
const idsPerBox = 2

// A box is one sandbox.
type box struct {
	id     uint64
	slot   uint32
	group  cgroup.Group
	doomed bool          // to be killed, perhaps before it exists; under the warden's lock
	gone   chan struct{} // closed when the sentry has been collected
	status unix.WaitStatus
	done   chan struct{} // closed when every trace is removed

	use     sync.Mutex // held by who works on the box from outside; before the warden's lock
	over    bool       // its traces are being removed; under use
	mounted bool       // its folder is a mount; under use
	control *control   // to the first process of provided that waits for code; under use
}

func (b *box) at(name string) string {
	return boxesDir + "/" + strconv.FormatUint(b.id, 10) + "/" + name
}

func (w *warden) open() error {
	// What runsc leaves behind becomes our child when runsc ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	tree, err := cgroup.Find(w.setup.CgroupRoot, w.setup.Parent)
	if err != nil {
		return err
	}
	w.tree, w.helpers = tree, map[int]chan<- unix.WaitStatus{}
	if w.lock, err = tree.Lock(w.setup.TakeOver); err != nil {
		return err
	}
	if err := tree.Sweep(); err != nil {
		return fmt.Errorf("sweep what an earlier life left: %w", err)
	}
	if err := w.furnish(); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	go w.reap()
	for i := range process.Lanes {
		go w.lane(link.NewLine(process.LaneFD + i))
	}
	return nil
}

// furnish makes the folders of the warden and the root of all sandboxes.
func (w *warden) furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leave mount propagation: %w", err)
	}
	if err := unix.Mount("starling", baseDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=64m,mode=755"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", baseDir, err)
	}
	for _, d := range []string{rootDir, boxesDir, stateDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(baseDir+"/guest", self, 0o755); err != nil {
		return err
	}
	return process.BuildRoot(w.setup, rootDir)
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

// admit reserves a user slot.
func (w *warden) admit(id uint64) (*box, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return nil, errors.New("the warden is closing")
	}
	if len(w.boxes) >= w.setup.SandboxMax {
		return nil, fmt.Errorf("%d sandboxes exist: the driver's limit", len(w.boxes))
	}
	b := &box{id: id, gone: make(chan struct{}), done: make(chan struct{}), group: w.tree.Group(strconv.FormatUint(id, 10))}
	if n := len(w.free); n > 0 {
		b.slot, w.free = w.free[n-1], w.free[:n-1]
	} else {
		b.slot = w.next
		w.next++
	}
	w.boxes[id] = b
	return b, nil
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
	err := b.group.Kill() // before it exists there is nothing to kill, and who makes it sees that it is doomed
	<-b.done
	return nil, err
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
	var errs []error
	for _, b := range boxes {
		errs = append(errs, b.group.Kill())
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
	return errors.Join(errors.Join(errs...), w.tree.Sweep(), w.tree.Remove(), w.lock.Close())
}
