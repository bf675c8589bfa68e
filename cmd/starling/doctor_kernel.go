package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"starling"
)

func unavailable(format string, args ...any) error {
	return starling.Errorf(starling.Unavailable, "doctor", format, args...)
}

func readTrim(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func checkKernel(context.Context, *app) []finding {
	release := readTrim("/proc/sys/kernel/osrelease")
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return []finding{noteworthy("kernel", "", "cannot read its version (%q)", release)}
	}
	if major < 5 || major == 5 && minor < 12 { // mount_setattr
		return []finding{broken("kernel", "install Linux 5.12 or newer", "%s is too old", release)}
	}
	return []finding{healthy("kernel", "%s", release)}
}

func checkUser(context.Context, *app) []finding {
	if os.Geteuid() != 0 {
		return []finding{broken("user", "run the node as root (its functions never are)", "user %d may not make sandboxes", os.Geteuid())}
	}
	status := readTrim("/proc/self/status")
	for line := range strings.Lines(status) {
		var caps uint64
		if n, _ := fmt.Sscanf(line, "CapEff:\t%x", &caps); n == 1 && caps&(1<<unix.CAP_SYS_ADMIN) == 0 {
			return []finding{broken("user", "start with the capability SYS_ADMIN", "root without CAP_SYS_ADMIN cannot make sandboxes")}
		}
	}
	return []finding{healthy("user", "root")}
}

// checkNamespaces makes one process in all the namespaces a sandbox has.
func checkNamespaces(ctx context.Context, _ *app) []finding {
	cmd := exec.CommandContext(ctx, "/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		return []finding{broken("namespaces", "sysctl -w user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1", "cannot make user, mount, pid, net, ipc, uts and cgroup namespaces: %v", err)}
	}
	out := []finding{healthy("namespaces", "user, mount, pid, net, ipc, uts, cgroup")}
	for _, kind := range []string{"user", "net", "mnt", "pid"} {
		path := "/proc/sys/user/max_" + kind + "_namespaces"
		var n int
		if _, err := fmt.Sscan(readTrim(path), &n); err == nil && n < 10_000 {
			out = append(out, noteworthy("namespaces", fmt.Sprintf("sysctl -w user.max_%s_namespaces=65536", kind), "at most %d %s namespaces, one for each instance", n, kind))
		}
	}
	return out
}

// checkCgroups looks for the controllers in either version, for they may be spread over both.
func checkCgroups(context.Context, *app) []finding {
	where := map[string]string{}
	for line := range strings.Lines(readTrim("/proc/self/mountinfo")) {
		before, after, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		point := strings.Fields(before)[4]
		f := strings.Fields(after)
		switch f[0] {
		case "cgroup2":
			for _, c := range strings.Fields(readTrim(filepath.Join(point, "cgroup.controllers"))) {
				where[c] = "v2"
			}
			if _, err := os.Stat(filepath.Join(point, "cgroup.kill")); err == nil || where["memory"] == "v2" {
				where["freezer"] = "v2" // part of every v2 group
			}
		case "cgroup":
			for _, o := range strings.Split(f[len(f)-1], ",") {
				where[o] = "v1"
			}
		}
	}
	var have, missing []string
	for _, c := range []string{"memory", "cpu", "pids", "freezer"} {
		if where[c] == "" {
			missing = append(missing, c)
			continue
		}
		have = append(have, c+" ("+where[c]+")")
	}
	if len(missing) > 0 {
		return []finding{broken("cgroups", "boot with cgroup_enable=memory, or mount cgroup2 on /sys/fs/cgroup", "missing: %s; found: %s", strings.Join(missing, ", "), strings.Join(have, ", "))}
	}
	return []finding{healthy("cgroups", "%s", strings.Join(have, ", "))}
}

func checkSeccomp(context.Context, *app) []finding {
	actions := readTrim("/proc/sys/kernel/seccomp/actions_avail")
	if !slices.Contains(strings.Fields(actions), "errno") {
		return []finding{broken("seccomp", "use a kernel with CONFIG_SECCOMP_FILTER=y", "no filters in this kernel")}
	}
	return []finding{healthy("seccomp", "%s", actions)}
}

func checkLandlock(context.Context, *app) []finding {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1) // 1 asks for the version
	if errno != 0 {
		return []finding{noteworthy("landlock", "boot with lsm=landlock,...", "not available (%v): sandboxes have one wall less", errno)}
	}
	return []finding{healthy("landlock", "ABI %d", abi)}
}

func checkMounts(context.Context, *app) []finding {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/usr", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return []finding{broken("mounts", "use Linux 5.12 or newer, as root", "open_tree: %v", err)}
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return []finding{broken("mounts", "use Linux 5.12 or newer, as root", "mount_setattr: %v", err)}
	}
	return []finding{healthy("mounts", "open_tree, mount_setattr")}
}

func checkVirtualization(context.Context, *app) []finding {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		detail := "no /dev/kvm: microVMs would run in software"
		if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
			detail += "; no QEMU either"
		}
		return []finding{noteworthy("virtual machines", "needed for driver kata only: enable virtualization in the firmware, apt-get install qemu-system-x86", "%s", detail)}
	}
	f.Close()
	return []finding{healthy("virtual machines", "/dev/kvm")}
}
