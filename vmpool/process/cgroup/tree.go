package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Tree holds the groups of one driver, below one parent group that carries the driver's name.
type Tree struct {
	version int
	mounts  map[string]string // v1: controller → mount; v2: "" → mount
	parent  string            // name of the parent group
}

// controllers of v1, in the order groups are made; memory first, because its limit must be there before the process.
var controllers = []string{"memory", "cpu", "cpuacct", "pids", "freezer"}

// Find looks below root (normally /sys/fs/cgroup) for version 2 with the needed controllers, else for version 1, and
// returns the tree whose parent group is called parent. Nothing is created yet.
func Find(root, parent string) (*Tree, error) {
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		if missing := missingFrom(strings.Fields(string(b)), "memory", "cpu", "pids"); len(missing) > 0 {
			return nil, fmt.Errorf("cgroup v2 at %s lacks the controllers %s: delegate them to this node", root, strings.Join(missing, ", "))
		}
		return &Tree{2, map[string]string{"": root}, parent}, nil
	}
	t := &Tree{1, map[string]string{}, parent}
	for _, c := range controllers {
		dir, err := filepath.EvalSymlinks(filepath.Join(root, c))
		if err != nil {
			return nil, fmt.Errorf("find cgroup controller %s (neither version 1 nor 2 is mounted in full below %s): %w", c, root, err)
		}
		t.mounts[c] = dir
	}
	return t, nil
}

func missingFrom(have []string, want ...string) (missing []string) {
next:
	for _, w := range want {
		for _, h := range have {
			if h == w {
				continue next
			}
		}
		missing = append(missing, w)
	}
	return missing
}

// Version is 1 or 2.
func (t *Tree) Version() int { return t.version }

// dirs returns the distinct folders of the group name; "" is the parent group itself. Controllers that share one
// mount (cpu,cpuacct) share the folder.
func (t *Tree) dirs(name string) []string {
	if t.version == 2 {
		return []string{filepath.Join(t.mounts[""], t.parent, name)}
	}
	var out []string
	for _, c := range controllers {
		d := filepath.Join(t.mounts[c], t.parent, name)
		dup := false
		for _, o := range out {
			dup = dup || o == d
		}
		if !dup {
			out = append(out, d)
		}
	}
	return out
}

// Open creates the parent group.
func (t *Tree) Open() error {
	for _, d := range t.dirs("") {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if t.version == 2 {
		for _, d := range []string{t.mounts[""], t.dirs("")[0]} {
			if err := write(d, "cgroup.subtree_control", "+memory +cpu +pids"); err != nil {
				return fmt.Errorf("enable controllers: %w", err)
			}
		}
	}
	if err := t.weigh(float64(runtime.NumCPU())); err != nil {
		return fmt.Errorf("set weight: %w", err)
	}
	if err := t.openBehind(); err != nil {
		return fmt.Errorf("make the group behind all: %w", err)
	}
	return nil
}

// behind is the folder of processes that stand behind everything else on the machine, "" where there is none: in version 2, and where one mount
// has the controllers cpu and cpuacct, so that a sandbox's processor time would be counted there and not as its own. It lies beside the parent group
// and not below it: a group counts as idle only against its siblings, and those of the parent are everything else.
func (t *Tree) behind() string {
	if t.version == 2 || t.mounts["cpu"] == t.mounts["cpuacct"] {
		return ""
	}
	return filepath.Join(t.mounts["cpu"], t.parent+"-behind")
}

// behindShares is the weight of the group behind all where the kernel knows no idle groups (before 5.15): a tenth of a CPU's.
const behindShares = weightUnit / 10

func (t *Tree) openBehind() error {
	d := t.behind()
	if d == "" {
		return nil
	}
	if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	err := write(d, "cpu.idle", "1")
	if errors.Is(err, os.ErrNotExist) {
		return write(d, "cpu.shares", strconv.Itoa(behindShares))
	}
	return err
}

// weigh gives the parent group the weight of cpus whole CPUs. By default a group weighs as much as one thread beside
// it: all functions of a machine together would get what one busy thread of the node gets.
func (t *Tree) weigh(cpus float64) error {
	if t.version == 2 {
		return write(t.dirs("")[0], "cpu.weight", strconv.Itoa(weight2(cpus)))
	}
	return write(filepath.Join(t.mounts["cpu"], t.parent), "cpu.shares", strconv.Itoa(int(cpus*weightUnit)))
}

// Lock takes the parent group for this process until the file is closed, so that two nodes never sweep each other. It
// waits at most wait, because the warden of an earlier life may still be cleaning up.
func (t *Tree) Lock(wait time.Duration) (*os.File, error) {
	deadline := time.Now().Add(wait)
	for {
		if err := t.Open(); err != nil {
			return nil, err
		}
		dir := t.dirs("")[0]
		f, err := os.Open(dir)
		if err == nil {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil && sameFile(f, dir) {
				return f, t.Open() // the previous owner may have removed some of the folders meanwhile
			}
			f.Close()
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("lock %s: another node with this tag runs on this machine; give each its own tag: %w", t.parent, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	b, err2 := os.Stat(path)
	return err == nil && err2 == nil && os.SameFile(a, b)
}

// Names lists the groups below the parent group.
func (t *Tree) Names() []string {
	seen := map[string]bool{}
	var out []string
	for _, d := range t.dirs("") {
		entries, _ := os.ReadDir(d)
		for _, e := range entries {
			if e.IsDir() && !seen[e.Name()] {
				seen[e.Name()] = true
				out = append(out, e.Name())
			}
		}
	}
	return out
}

// Sweep kills and removes every group below the parent group.
func (t *Tree) Sweep() error {
	var errs []error
	for _, name := range t.Names() {
		g := t.Group(name)
		errs = append(errs, g.Kill(), g.Remove())
	}
	return errors.Join(errs...)
}

// Remove removes the parent group, which must be empty, and the group behind all, which goes first: with the parent goes the lock.
func (t *Tree) Remove() error {
	var err error
	if d := t.behind(); d != "" {
		err = removeAll([]string{d})
	}
	return errors.Join(err, t.Group("").Remove())
}

// Group names one group; it need not exist yet.
func (t *Tree) Group(name string) Group {
	if t.version == 2 {
		return &v2{dir: t.dirs(name)[0]}
	}
	g := &v1{dirs: t.dirs(name), behind: t.behind()}
	at := func(c string) string { return filepath.Join(t.mounts[c], t.parent, name) }
	g.memory, g.cpu, g.cpuacct, g.pids, g.freezer = at("memory"), at("cpu"), at("cpuacct"), at("pids"), at("freezer")
	return g
}
