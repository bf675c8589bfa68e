package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/cgroup"
	"starling/vmpool/process/jail"
)

// A Finding is what Check learned about one thing the driver needs.
type Finding struct {
	Name     string
	OK       bool
	Optional bool   // sandboxes work without it, with one wall or one runtime less
	Detail   string // what is there, or what happened
	Fix      string // what to do when not OK
}

// Check looks whether this machine and user can make process sandboxes. It changes nothing and takes less than a second
// unless an interpreter hangs.
func Check(ctx context.Context) []Finding {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return []Finding{
		found("root", checkRoot, "run the node as root"),
		found("namespaces", func() (string, error) { return checkNamespaces(ctx) },
			"raise the limits /proc/sys/user/max_*_namespaces, or start the container with the right to make namespaces"),
		found("cgroups", checkCgroups, "mount the controllers memory, cpu, cpuacct, pids and freezer (v1), or delegate memory, cpu and pids (v2)"),
		found("seccomp", checkSeccomp, "use a kernel with CONFIG_SECCOMP_FILTER"),
		optional("landlock", checkLandlock, "use Linux 5.13 or later with landlock among the lsm= list; sandboxes work without, with one wall less"),
		found("mount API", checkMounts, "use Linux 5.12 or later"),
		optional("overlay", checkOverlay, "use Linux 6.8 or later with overlayfs; without, functions see the path of their code on the host"),
		optional("python3.11", func() (string, error) { return version(ctx, "/usr/bin/python3", "Python 3.11") }, "install python3 3.11, or do without this runtime"),
		optional("nodejs20", func() (string, error) { return version(ctx, "/usr/bin/node", "v20.") }, "install nodejs 20, or do without this runtime"),
	}
}

func found(name string, look func() (string, error), fix string) Finding {
	detail, err := look()
	if err != nil {
		if detail == "" {
			detail = err.Error()
		}
		return Finding{Name: name, Detail: detail, Fix: fix}
	}
	return Finding{Name: name, OK: true, Detail: detail}
}

func optional(name string, look func() (string, error), fix string) Finding {
	f := found(name, look, fix)
	f.Optional = true
	return f
}

func checkRoot() (string, error) {
	if uid := os.Geteuid(); uid != 0 {
		return "", fmt.Errorf("user id %d", uid)
	}
	return "user id 0", nil
}

func checkNamespaces(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/true")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{UidMappings: ids, GidMappings: ids,
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("start a process in new namespaces: %w", err)
	}
	return "user, mount, pid, network, ipc, uts, cgroup", nil
}

func checkCgroups() (string, error) {
	t, err := cgroup.Find(DefaultConfig().CgroupRoot, "starling")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("version %d", t.Version()), nil
}

func checkSeccomp() (string, error) {
	if err := jail.SeccompKills(); err != nil {
		return "", fmt.Errorf("ask for the action kill-process: %w", err)
	}
	return fmt.Sprintf("allow-list of %d instructions", len(jail.Filter())), nil
}

func checkLandlock() (string, error) {
	abi := jail.LandlockABI()
	switch {
	case abi < 1:
		return "", errors.New("not offered by the kernel")
	case abi < 6:
		return fmt.Sprintf("ABI %d: files only; from 6 on also abstract sockets and signals", abi), nil
	}
	return fmt.Sprintf("ABI %d", abi), nil
}

func checkMounts() (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/usr", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	return "open_tree, move_mount, mount_setattr", nil
}

func checkOverlay() (string, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("open overlayfs: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.FsconfigSetString(fd, "lowerdir+", "/usr"); err != nil {
		return "", fmt.Errorf("add a layer: %w", err)
	}
	return "layers can be added one by one", nil
}

func version(ctx context.Context, program, want string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	got := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("run %s: %w", program, err)
	}
	if !strings.HasPrefix(got, want) {
		return "", fmt.Errorf("%s is %s", program, got)
	}
	return program + " " + got, nil
}
