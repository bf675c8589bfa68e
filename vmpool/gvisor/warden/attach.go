package warden

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"starling/vmpool/gvisor/inside"
	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/link"
	process "starling/vmpool/process/warden"
)

// attach gives a sandbox its code and its limits, and for provided starts the bootstrap; entrypoint says why it cannot.
func (w *warden) attach(m *link.Message, fds []int) (entrypoint string, err error) {
	b := w.ward.Find(m.ID)
	if b == nil {
		return "", fmt.Errorf("no sandbox %d: it ended", m.ID)
	}
	code, layers, err := m.Trees(fds)
	if err != nil {
		return "", err
	}
	b.use.Lock()
	defer b.use.Unlock()
	if b.over {
		return "", fmt.Errorf("no sandbox %d: it ended", m.ID)
	}
	if err := show(code, b.at("var/task")); err != nil {
		return "", fmt.Errorf("mount code: %w", err)
	}
	if err := showLayers(layers, b.at("var/opt")); err != nil {
		return "", fmt.Errorf("mount layers: %w", err)
	}
	if err := b.Group.Limit(cgroup.Limits{MemoryBytes: m.MemoryBytes, CPU: m.CPU, Processes: m.Processes}); err != nil {
		return "", fmt.Errorf("set limits: %w", err)
	}
	if b.control == nil {
		return "", nil
	}
	return b.control.start(m.Env)
}

// show mounts code read-only at a folder of the box, whose mount is shared with the gofer's: it is there at once.
func show(code link.Tree, at string) error {
	mount := code.Mount
	if mount < 0 {
		mount = unix.AT_FDCWD
	}
	tree, err := unix.OpenTree(mount, code.Dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open it: %w", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// showLayers mounts layers, if any, as one tree in the same way. The sandbox's own kernel knows nothing of the host's mounts, so their
// folders may be named.
func showLayers(layers []link.Tree, at string) error {
	if len(layers) == 0 {
		return nil
	}
	tree, err := process.Overlay("opt", layers, process.EmptyDir(rootDir), func(fs int, dir string) error {
		return unix.FsconfigSetString(fs, "lowerdir+", dir)
	})
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// start tells the first process that the code is there and returns when the bootstrap runs, or with why it cannot.
func (c *control) start(env []string) (entrypoint string, err error) {
	text, err := json.Marshal(inside.Start{Env: env})
	if err == nil {
		if err = c.out.SetWriteDeadline(time.Now().Add(startMax)); err == nil {
			_, err = c.out.Write(text)
		}
	}
	if err != nil {
		return "", fmt.Errorf("start bootstrap: %w", err)
	}
	e, err := c.event()
	if err == nil && e.Entrypoint == "" && !e.Runs {
		err = errors.New("the first process said neither that the bootstrap runs nor why not")
	}
	return e.Entrypoint, err
}

// Enter is the life of a process that becomes runsc when it has been placed in its cgroup. args are runsc and its arguments.
func Enter(args []string) error {
	release := os.NewFile(enterFD, "release")
	var word [1]byte
	if n, err := release.Read(word[:]); n != 1 {
		return fmt.Errorf("wait to be placed: %w", err)
	}
	release.Close()
	return fmt.Errorf("execute %s: %w", args[0], unix.Exec(args[0], args, os.Environ()))
}

// enterFD is the descriptor by which a process that waits to be placed hears that it is.
const enterFD = 5
