package warden

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
)

// attachers is how many sandboxes can be given code at once. More would only wait for the kernel's mount lock.
const attachers = 2

const codeFlags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// An attachment asks an attacher to mount code in a box.
type attachment struct {
	box  *box
	code string
	done chan error
}

// attach gives a sandbox its code and its limits. The code is there before the limits rise, and both before the node
// says a word to the program inside.
func (w *warden) attach(m *link.Message, _ []int) ([]int, error) {
	b, err := w.find(m.ID)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(m.Code) {
		return nil, fmt.Errorf("code folder %q is not absolute", m.Code)
	}
	a := attachment{b, m.Code, make(chan error)}
	w.turns <- a
	if err := <-a.done; err != nil {
		return nil, fmt.Errorf("mount code: %w", err)
	}
	if err := b.group.Limit(cgroup.Limits{MemoryBytes: m.MemoryBytes, CPU: m.CPU, Processes: m.Processes}); err != nil {
		return nil, fmt.Errorf("set limits: %w", err)
	}
	return nil, nil
}

// startAttacher starts a thread that walks into the mount namespaces of sandboxes and back.
func (w *warden) startAttacher() error {
	home, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("open own mount namespace: %w", err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: this thread's working folder and namespace are its own
		// A thread that shares its working folder with others may not change its mount namespace.
		err := unix.Unshare(unix.CLONE_FS)
		started <- err
		if err != nil {
			return
		}
		for a := range w.turns {
			a.done <- mountCode(a.box.pidfd, int(home.Fd()), a.code, filepath.Join(w.root, "opt"))
		}
	}()
	return <-started
}

// mountCode mounts the folder code read-only at /var/task of the mount namespace of the process behind pidfd.
func mountCode(pidfd, home int, code, empty string) error {
	tree, err := overlay(code, empty)
	if err != nil {
		tree, err = bind(code)
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter sandbox: %w", err)
	}
	err = unix.MoveMount(tree, "", unix.AT_FDCWD, "/var/task", unix.MOVE_MOUNT_F_EMPTY_PATH)
	if back := unix.Setns(home, unix.CLONE_NEWNS); back != nil {
		// A thread lost in a sandbox must do nothing more; the node starts a new warden.
		fmt.Fprintln(os.Stderr, "starling-guest: leave sandbox:", back)
		os.Exit(1)
	}
	return err
}

// overlay returns the folder code as a mount of its own kind: a bind mount would show the sandbox where the code lies
// on the host, in /proc/self/mountinfo. The layers are named "." for the same reason. Two layers, because an overlay
// needs two; the second is empty.
func overlay(code, empty string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", "task")
	for _, dir := range []string{code, empty} {
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = unix.FsconfigSetString(fs, "lowerdir+", ".")
		}
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if back := unix.Chdir("/"); err != nil || back != nil {
		return -1, errors.Join(err, back)
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, codeFlags)
}

// bind returns a detached, read-only copy of the mount at code, for kernels before 6.8 and without overlayfs.
func bind(code string) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, code, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", code, err)
	}
	attr := unix.MountAttr{Attr_set: codeFlags}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("make read-only: %w", err)
	}
	return tree, nil
}
