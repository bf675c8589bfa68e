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
	tmp  int64 // bytes of /tmp
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
	// What lies in /tmp is memory of the function: with half of it a full /tmp is an error that code can handle, and not its death.
	a := attachment{b, m.Code, min(w.setup.Jail.TmpBytes, m.MemoryBytes/2), make(chan error)}
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
			a.done <- furnish(a, int(home.Fd()), filepath.Join(w.root, "opt"))
		}
	}()
	return <-started
}

// furnish mounts the code read-only at /var/task of the sandbox's mount namespace and gives /tmp its size.
func furnish(a attachment, home int, empty string) error {
	tree, err := overlay(a.code, empty)
	if err != nil {
		tree, err = bind(a.code)
	}
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := unix.Setns(a.box.pidfd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter sandbox: %w", err)
	}
	err = unix.MoveMount(tree, "", unix.AT_FDCWD, "/var/task", unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err == nil {
		err = unix.Mount("tmp", "/tmp", "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", a.tmp))
	}
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
