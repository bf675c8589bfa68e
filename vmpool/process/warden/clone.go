package warden

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/internal/packet"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/jail"
	"starling/vmpool/process/link"
)

// namespaces of every sandbox. The cgroup namespace is entered later, when the process sits in its group, or it would
// show where the group lies.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// A fork asks the cloner for one process.
type fork struct {
	box   *box
	files [7]uintptr // 0 stands for /dev/null
	done  chan error
}

// Clone makes a sandbox and waits until its first process has become the program (or, for provided, waits for code).
func (w *warden) Clone(b *box, m *link.Message, fds []int) ([]int, error) {
	control, err := w.start(b, m, fds)
	if err != nil {
		w.ward.Gone(b, nil)
		return nil, errors.Join(err, b.Group.Kill(), b.Group.Remove())
	}
	j := w.setup.Jail
	j.Argv, j.Env = m.Argv, m.Env
	if len(m.Argv) > 0 {
		j.Listen = ""
	}
	b.use.Lock()
	go w.mourn(b) // once we are done with control
	listener, err := w.release(b, control, &j)
	if err == nil && len(m.Argv) == 0 {
		b.control = control // until there is code
	} else {
		control.Close()
	}
	b.use.Unlock()
	if err != nil {
		_ = w.End(b) // which cannot fail
		packet.CloseAll(listener)
		return nil, err
	}
	return listener, nil
}

// behindMax is how long a sandbox that nobody waits for may have only what the rest of the machine leaves, or a busy host would never
// have any. A short time is of no use: five clones that came forward together after a quarter of a second, half made, held
// up the calls of two processors for as long again.
const behindMax = 2 * time.Second

// start makes the group and the process, and puts the one into the other. The process does nothing until released.
func (w *warden) start(b *box, m *link.Message, fds []int) (*link.Line, error) {
	if len(fds) != 2 && len(fds) != 4 {
		return nil, fmt.Errorf("%d descriptors, want stdout, stderr and perhaps those of calls and answers", len(fds))
	}
	b.weight = m.Weight
	err := b.Group.Create(cgroup.Limits{MemoryBytes: m.MemoryBytes, CPU: 1, Weight: m.Weight, Processes: w.setup.Processes})
	if err != nil {
		return nil, err
	}
	control, theirs, err := link.LinePair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	f := fork{b, [7]uintptr{1: uintptr(fds[0]), uintptr(fds[1]), jail.ControlFD: theirs.Fd(), jail.WaiterFD: w.waiter.Fd()}, make(chan error)}
	if len(fds) == 4 {
		f.files[jail.ChannelFD], f.files[jail.AnswersFD] = uintptr(fds[2]), uintptr(fds[3])
	}
	w.forks <- f
	if err := <-f.done; err != nil {
		control.Close()
		return nil, fmt.Errorf("fork: %w", err)
	}
	return control, nil
}

// release puts the process into its group, lets it go on and waits until the program runs.
func (w *warden) release(b *box, control *link.Line, j *link.Jail) (listener []int, err error) {
	place := b.Group.Place
	if b.weight != 0 {
		place = b.Group.PlaceBehind
		time.AfterFunc(behindMax, func() { _ = b.Group.Forward() }) // the node does it earlier; one that ended has nothing to move
	}
	if err := place(b.pid); err != nil {
		return nil, fmt.Errorf("place in cgroup: %w", err)
	}
	if err := control.Send(&link.Message{Op: link.Enter, Jail: j}); err != nil {
		return nil, fmt.Errorf("release: %w", err)
	}
	ready := false
	for {
		m, fds, err := control.Receive()
		switch {
		case err != nil && ready:
			return listener, nil // closed by the execution of the program
		case err != nil:
			return listener, fmt.Errorf("the first process ended before it was ready: %w", err)
		case m.Error != "":
			return listener, errors.New(m.Error)
		case m.Op == link.Listener:
			listener = fds
		case m.Op == link.Ready && len(j.Argv) == 0:
			return listener, nil // it waits for code
		case m.Op == link.Ready:
			ready = true
		}
	}
}

// cloner makes all processes from one thread that lives as long as the warden, because a child's promise to die with
// its parent is about the parent's thread.
func (w *warden) cloner() {
	runtime.LockOSThread()
	// The node may run before everything else; what it passes on to the warden is not for tenants.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0) // nice 0, too
	null, nullErr := os.Open(os.DevNull)
	for f := range w.forks {
		if err := nullErr; err != nil {
			f.done <- err
			continue
		}
		for i, fd := range f.files {
			if fd == 0 {
				f.files[i] = null.Fd()
			}
		}
		f.done <- w.fork(f)
	}
}

func (w *warden) fork(f fork) error {
	base := int(f.box.UID)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 1}, {ContainerID: jail.User, HostID: base + 1, Size: 1}}
	attr := &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=4MiB"}, // the first process is small and short-lived
		Files: f.files[:],
		Sys: &syscall.SysProcAttr{
			Cloneflags: namespaces, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			// Root of the new user namespace; without this the exec would drop its capabilities.
			Credential: &syscall.Credential{NoSetGroups: true},
			Setsid:     true, Pdeathsig: syscall.SIGKILL, PidFD: &f.box.pidfd,
		},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ward.Wanted(f.box) {
		return errors.New("the sandbox is not wanted any more")
	}
	// By this link, because the child may not walk the folders above the binary; and in the working folder of the warden,
	// the shared root, because its copy of that mount can be reached in no other way.
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"starling-guest", "init"}, attr)
	if err != nil {
		return err
	}
	f.box.pid = pid
	w.byPID[pid] = f.box
	return nil
}
