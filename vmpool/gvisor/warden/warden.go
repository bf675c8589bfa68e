// Package warden is the small process beside the node that makes, specialises and ends gVisor sandboxes. It speaks the
// protocol of the process driver's warden. It runs runsc for each sandbox, which leaves two processes of gVisor's behind: the
// sentry, which is the kernel of the sandbox, and the gofer, which opens files for it. Both live in the sandbox's cgroup, as
// a user of the host that owns nothing.
package warden

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/link"
	"starling/vmpool/process/ward"
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
	return ward.Main(&warden{byPID: map[int]*box{}, helpers: map[int]chan<- unix.WaitStatus{}})
}

// warden makes sandboxes with runsc. Its goroutines beside its ward's: the reaper and one for each lane, which end with the
// process.
type warden struct {
	ward  *ward.Ward[*box]
	setup link.Setup

	mu      sync.Mutex                     // held across a fork so that the reaper meets no unknown child; before the ward's lock
	byPID   map[int]*box                   // by the sentry
	helpers map[int]chan<- unix.WaitStatus // runsc commands under way
	ended   [256]ending                    // the last of the others: a sentry may end before runsc does, which tells its number
	endedAt int
}

var _ ward.Kind[*box] = (*warden)(nil)

// A box is one sandbox.
type box struct {
	*ward.Box
	gone   chan struct{} // closed when the sentry has been collected
	status unix.WaitStatus

	use     sync.Mutex // held by who works on the box from outside; before the warden's lock
	over    bool       // its traces are being removed; under use
	mounted bool       // its folder is a mount; under use
	control *control   // to the first process of provided that waits for code; under use
}

// New returns a sandbox that is not there yet.
func (w *warden) New(b *ward.Box) *box { return &box{Box: b, gone: make(chan struct{})} }

func (b *box) at(name string) string {
	return boxesDir + "/" + strconv.FormatUint(b.ID, 10) + "/" + name
}

// Open makes the folders of the warden and the root of all sandboxes, and starts the goroutines of the warden.
func (w *warden) Open(of *ward.Ward[*box]) error {
	w.ward, w.setup = of, of.Setup
	// What runsc leaves behind becomes our child when runsc ends.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	if err := w.furnish(); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	go ward.Reap(&w.mu, w.collect)
	for i := range ward.Lanes {
		go ward.Attach(link.NewLine(ward.LaneFD+i), w.attach)
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
	return process.BuildRoot(w.setup, rootDir, "var/opt")
}

// End kills whatever lives in the box. Before it exists there is nothing to kill, and who makes it sees that it is doomed.
func (w *warden) End(b *box) error { return b.Group.Kill() }
