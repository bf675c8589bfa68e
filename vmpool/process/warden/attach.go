package warden

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/jail"
	"starling/vmpool/process/link"
	"starling/vmpool/process/ward"
)

const codeFlags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// startLane starts a thread that gives sandboxes code, one after the other: it walks into their mount namespaces and back.
func (w *warden) startLane(lane *link.Line) error {
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
		if err == nil {
			ward.Attach(lane, func(m *link.Message, fds []int) (string, error) { return w.attach(m, fds, int(home.Fd())) })
		}
	}()
	return <-started
}

// attach gives a sandbox its code and its limits. The code is there before the limits rise, and both before a word is
// said to the program inside: by the node, or for provided by the warden itself, whose word is the bootstrap's start. Then it
// waits until the bootstrap runs; entrypoint says why it cannot.
func (w *warden) attach(m *link.Message, fds []int, home int) (entrypoint string, err error) {
	b, err := w.find(m.ID)
	if err != nil {
		return "", err
	}
	code, layers, err := m.Trees(fds)
	if err != nil {
		return "", err
	}
	b.use.Lock()
	defer b.use.Unlock()
	if b.pidfd < 0 {
		return "", fmt.Errorf("no sandbox %d: it ended", m.ID)
	}
	control := b.control
	// What lies in /tmp is memory of the function: with half of it a full /tmp is an error that code can handle, and not its death.
	bootstrap, entrypoint, err := furnish(b, code, layers, min(w.setup.Jail.TmpBytes, m.MemoryBytes/2), home, w.at(emptyDir))
	if err != nil {
		return "", fmt.Errorf("mount code: %w", err)
	}
	limits := cgroup.Limits{MemoryBytes: m.MemoryBytes, CPU: m.CPU, Processes: m.Processes}
	if control != nil {
		limits.Weight = b.weight // as it is: the waiter can be told before it weighs more
	}
	if err := b.Group.Limit(limits); err != nil {
		return "", fmt.Errorf("set limits: %w", err)
	}
	if control == nil || entrypoint != "" {
		return entrypoint, nil
	}
	b.control = nil
	defer control.Close()
	if err := sayBootstrap(control, bootstrap, m.Env); err != nil {
		return "", fmt.Errorf("start bootstrap: %w", err)
	}
	if err := b.Group.LimitCPU(m.CPU, 0); err != nil {
		return "", fmt.Errorf("set weight: %w", err)
	}
	return awaitBootstrap(control)
}

// sayBootstrap tells the waiter to become the bootstrap at path.
func sayBootstrap(control *link.Line, path string, env []string) error {
	image, err := jail.Image(path, env)
	if err != nil {
		return err
	}
	return control.SendBytes(image)
}

// awaitBootstrap returns when the waiter has become the bootstrap, or cannot.
func awaitBootstrap(control *link.Line) (entrypoint string, err error) {
	switch said, err := control.ReceiveBytes(); {
	case errors.Is(err, io.EOF):
		return "", nil // closed by the execution of the bootstrap
	case err != nil:
		return "", fmt.Errorf("start bootstrap: %w", err)
	default:
		return jail.Refused(said), nil
	}
}

// furnish mounts code read-only at /var/task of the sandbox's mount namespace, its layers at /opt, and gives /tmp its size in bytes. home
// is the thread's own mount namespace, empty an empty folder. If a bootstrap is needed it returns which, or in entrypoint what is wrong with it.
func furnish(b *box, code link.Tree, layers []link.Tree, tmp int64, home int, empty string) (bootstrap, entrypoint string, err error) {
	task, err := overlay("task", []link.Tree{code}, empty)
	if err != nil && code.Mount < 0 {
		task, err = bind(code.Dir)
	}
	if err != nil {
		return "", "", err
	}
	defer unix.Close(task)
	opt := -1
	if len(layers) > 0 {
		if opt, err = overlay("opt", layers, empty); err != nil {
			return "", "", fmt.Errorf("layers: %w", err)
		}
		defer unix.Close(opt)
	}
	if err := unix.Setns(b.pidfd, unix.CLONE_NEWNS); err != nil {
		return "", "", fmt.Errorf("enter sandbox: %w", err)
	}
	err = unix.MoveMount(task, "", unix.AT_FDCWD, "/var/task", unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err == nil && opt >= 0 {
		err = unix.MoveMount(opt, "", unix.AT_FDCWD, "/opt", unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err == nil {
		err = unix.Mount("tmp", "/tmp", "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d", tmp))
	}
	if err == nil && b.control != nil {
		bootstrap, entrypoint = jail.FindBootstrap()
	}
	if back := unix.Setns(home, unix.CLONE_NEWNS); back != nil {
		// A thread lost in a sandbox must do nothing more; the node starts a new warden.
		fmt.Fprintln(os.Stderr, "starling-guest: leave sandbox:", back)
		os.Exit(1)
	}
	return bootstrap, entrypoint, err
}

// Overlay returns trees, a later one over an earlier one, as a read-only mount of its own kind: a bind mount would show the sandbox
// where they lie on the host, in /proc/self/mountinfo. lower adds the folder dir below what an overlay has. An overlay needs two
// layers: the last is empty, an empty folder.
func Overlay(name string, trees []link.Tree, empty string, lower func(fs int, dir string) error) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "source", name)
	for _, t := range slices.Backward(trees) { // the topmost is added first
		switch {
		case err != nil:
		case t.Mount >= 0:
			err = unix.FsconfigSetFd(fs, "lowerdir+", t.Mount)
		default:
			err = lower(fs, t.Dir)
		}
	}
	if err == nil {
		err = lower(fs, empty)
	}
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, codeFlags)
}

// overlay is Overlay on a thread with a working folder of its own, where a folder is named "." and tells nothing, either.
func overlay(name string, trees []link.Tree, empty string) (int, error) {
	tree, err := Overlay(name, trees, empty, func(fs int, dir string) error {
		if err := unix.Chdir(dir); err != nil {
			return err
		}
		return unix.FsconfigSetString(fs, "lowerdir+", ".")
	})
	if back := unix.Chdir("/"); back != nil && err == nil {
		unix.Close(tree)
		err = back
	}
	return tree, err
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
