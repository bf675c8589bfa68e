package agent

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/jail"
)

const (
	newRoot   = "/root"           // what the function sees as its root
	groupRoot = "/sys/fs/cgroup"  // version 2
	group     = groupRoot + "/fn" // the function's
	taskRoot  = newRoot + "/var/task"
	layerRoot = newRoot + LayerPoint
	slotRoot  = "/slot" // where the function does not see it: the slot's image, when it holds layers too
)

// mount is one line of the guest's mount table.
type mount struct {
	from, to, kind string
	flags          uintptr
	options        string
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

func mountAll(list []mount) error {
	for _, m := range list {
		if err := unix.Mount(m.from, m.to, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.to, err)
		}
	}
	return nil
}

func mountBasics() error {
	for _, dir := range []string{"/proc", "/sys", "/dev", newRoot, slotRoot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return mountAll([]mount{
		{"proc", "/proc", "proc", quiet, ""},
		{"sysfs", "/sys", "sysfs", quiet, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, ""},
	})
}

// loadModules loads what the kernel lacks, in the order of the names.
func loadModules() error {
	names, _ := filepath.Glob("/modules/*.ko")
	slices.Sort(names)
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", filepath.Base(name), err)
		}
	}
	return nil
}

// deviceWait bounds the search for a device, which the kernel may find a moment after its driver was loaded.
const deviceWait = 10 * time.Second

// find returns the first name below pattern whose file says want.
func find(pattern, want string) (string, error) {
	for end := time.Now().Add(deviceWait); ; time.Sleep(2 * time.Millisecond) {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == want {
				return filepath.Base(filepath.Dir(name)), nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no device %s", want)
		}
	}
}

func disk(serial string) (string, error) {
	name, err := find("/sys/block/vd*/serial", serial)
	return "/dev/" + name, err
}

// buildRoot makes what the function will see.
func buildRoot(cfg Config) error {
	dev, err := disk(RootDisk)
	if err != nil {
		return err
	}
	err = mountAll([]mount{
		{dev, newRoot, "erofs", unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID, ""},
		{"proc", newRoot + "/proc", "proc", quiet, "hidepid=invisible,subset=pid"},
		{"dev", newRoot + "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755,size=64k"},
		{"tmp", newRoot + "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", cfg.TmpBytes, cfg.TmpFiles)},
		{"etc", newRoot + "/run", "tmpfs", quiet, "mode=755,size=64k"},
		// Of one folder: the loader looks for libraries of layers only where there was a folder when the runtime started.
		{"opt", layerRoot, "tmpfs", quiet, "mode=755,size=64k"},
		{"/var/runtime", newRoot + "/var/runtime", "", unix.MS_BIND, ""},
		{"", newRoot + "/var/runtime", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID, ""},
		{"cgroup", groupRoot, "cgroup2", quiet, ""},
	})
	if err != nil {
		return err
	}
	if err := makeDevices(); err != nil {
		return err
	}
	if err := os.Mkdir(layerRoot+"/lib", 0o755); err != nil {
		return err
	}
	// As on a large machine, a function may reserve more than it has, and is ended when it takes more.
	if err := os.WriteFile("/proc/sys/vm/overcommit_memory", []byte("1"), 0); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("starling")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := jail.RaiseLoopback(); err != nil {
		return err
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(groupRoot+"/cgroup.subtree_control", []byte("+memory +pids"), 0); err != nil {
		return fmt.Errorf("switch on memory and pids: %w", err)
	}
	return os.WriteFile(group+"/pids.max", fmt.Appendf(nil, "%d", cfg.Tasks), 0)
}

func makeDevices() error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		path := newRoot + "/dev/" + name
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, newRoot+"/dev/"+name); err != nil {
			return err
		}
	}
	if err := os.Mkdir(newRoot+"/dev/shm", 0o755); err != nil {
		return err
	}
	return unix.Mount("shm", newRoot+"/dev/shm", "tmpfs", quiet, "mode=1777,size=64m")
}

// listen opens the Runtime API's address inside the guest.
func listen(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	return net.Listen("tcp4", address)
}
