package warden

import (
	"errors"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/link"
)

// collect notes the end of a child. The caller holds w.mu.
func (w *warden) collect(pid int, status unix.WaitStatus) {
	if b := w.byPID[pid]; b != nil {
		delete(w.byPID, pid)
		b.status = status
		close(b.gone)
		return
	}
	if ended := w.helpers[pid]; ended != nil {
		delete(w.helpers, pid)
		ended <- status // there is room for the one
		return
	}
	w.ended[w.endedAt] = ending{pid, status}
	w.endedAt = (w.endedAt + 1) % len(w.ended)
}

// An ending is that of a child of which nobody knew.
type ending struct {
	pid    int
	status unix.WaitStatus
}

// start runs a command whose end the reaper collects.
func (w *warden) start(b *box, cmd *exec.Cmd) (pid int, end <-chan unix.WaitStatus, err error) {
	w.mu.Lock() // held across the fork so that the reaper meets no unknown child
	defer w.mu.Unlock()
	if !w.ward.Wanted(b) {
		return 0, nil, errors.New("the sandbox is not wanted any more")
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	ended := make(chan unix.WaitStatus, 1)
	pid = cmd.Process.Pid
	w.helpers[pid] = ended
	return pid, ended, cmd.Process.Release()
}

// adopt makes pid the sentry of b, or finds that it ended already.
func (w *warden) adopt(b *box, pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if unix.Kill(pid, 0) != unix.ESRCH { // alive, or not collected yet
		w.byPID[pid] = b
		return
	}
	b.status = unix.WaitStatus(unix.SIGKILL) // unless it is remembered
	for _, e := range w.ended {
		if e.pid == pid {
			b.status = e.status
		}
	}
	close(b.gone)
}

// mourn waits for the end of a sandbox, removes what is left and tells the node.
func (w *warden) mourn(b *box) {
	<-b.gone
	oom := b.Group.OutOfMemory()
	status := inner(b.status)
	m := &link.Message{Op: link.Exit, ID: b.ID, Status: status, OutOfMemory: oom && (status.Signaled() || status.ExitStatus() != 0)}
	if m.OutOfMemory {
		m.Status = unix.WaitStatus(unix.SIGKILL)
	}
	if err := w.remove(b); err != nil {
		m.Error = err.Error()
	}
	w.ward.Gone(b, m)
}

// inner is how the first process inside ended, of which the sentry's own end tells as a shell does: 128 and the signal.
func inner(s unix.WaitStatus) unix.WaitStatus {
	if code := s.ExitStatus(); s.Exited() && code > 128 && code <= 128+int(unix.SIGSYS) {
		return unix.WaitStatus(code - 128)
	}
	return s
}

// remove ends whatever lives in the box and removes its folder, mounts and group.
func (w *warden) remove(b *box) error {
	err := b.Group.Kill() // the gofer, and who outlived the sentry
	b.use.Lock()
	defer b.use.Unlock()
	b.over = true
	if b.control != nil {
		b.control.close()
		b.control = nil
	}
	if b.mounted {
		b.mounted = false
		err = errors.Join(err, unix.Unmount(b.at("var"), unix.MNT_DETACH))
	}
	return errors.Join(err, os.RemoveAll(b.at("")), b.Group.Remove())
}
