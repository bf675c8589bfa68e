package attack

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fileRows attack the file system.
var fileRows = []row{
	{id: "A1", name: "read files of the host", run: func(a *arena) result {
		return a.attempts(fmt.Sprintf(`out = [t(p, lambda: open(p).read()) for p in ["/etc/shadow", "/etc/ssh/sshd_config", "/etc/hostname~", "/root/.profile", "/etc/machine-id", "/sys/kernel/vmcoreinfo", "/boot", "/var/lib/dpkg/status", "/var/log/dpkg.log", %q]]
out += [t(p, lambda: os.listdir(p)) for p in ["/root", "/home", "/sys", "/boot", "/mnt", "/run", "/var/lib", "/srv"]]`, a.canary))
	}},
	{id: "A2", name: "walk out of the root", run: func(a *arena) result {
		return a.attempts(fmt.Sprintf(`c = %q
out = []
def seen(p):
    if os.stat(p): return p
for base in ["/..", "/proc/self/root/../../..", "/proc/1/root/..", "/proc/self/cwd/../../..", "/proc/1/cwd/../..", "/var/task/../../..", "/tmp/../.."]:
    out.append(t(base, lambda: seen(base + c)))
for fd in range(0, 64):
    out.append(t("fd %%d" %% fd, lambda: os.open(".." + c, os.O_RDONLY, dir_fd=fd)))
how = struct.pack("QQQ", 0, 0, 0)
r = os.open("/", os.O_RDONLY)
out.append(t("openat2", lambda: sc(437, r, ("../.." + c).encode(), how, 24)))
try: os.symlink(c, "/tmp/link")
except OSError: pass
out.append(t("symlink", lambda: seen("/tmp/link")))`, a.canary))
	}},
	{id: "A3", name: "write to code, runtime and root", run: attackReadOnly},
	simple("A4", "remount", `fs = lambda: os.open("/", os.O_RDONLY)
out = many(mount_tmpfs=(165, b"x", b"/tmp", b"tmpfs", 0, 0), remount_root=(165, b"", b"/", b"", 32, 0), remount_task=(165, b"", b"/var/task", b"", 32|4096, 0),
  umount=(166, b"/var/task", 2), open_tree=(428, -100, b"/", 1), move_mount=(429, -100, b"/usr", -100, b"/tmp", 0), fsopen=(430, b"tmpfs", 0),
  fsconfig=(431, 0, 6, 0, 0, 0), fsmount=(432, 0, 0, 0), fspick=(433, -100, b"/", 0), mount_setattr=(442, -100, b"/", 0, bytes(32), 32))`),
	simple("A5", "second root", `os.makedirs("/tmp/r", exist_ok=True)
out = many(chroot=(161, b"/tmp/r"), pivot_root=(155, b"/tmp/r", b"/tmp/r"))`),
	simple("A6", "devices", `out = [t(d, lambda: os.open("/dev/" + d, os.O_RDWR)) for d in ["mem", "kmem", "port", "kmsg", "kvm", "fuse", "vda", "sda", "loop-control", "loop0", "ptmx", "tty", "console", "net/tun", "vhost-net", "vsock", "userfaultfd", "mapper/control", "cpu/0/msr"]]
out += [t("mknod", lambda: os.mknod("/tmp/mem", 0o600 | 0o020000, os.makedev(1, 1))), t("mknod block", lambda: os.mknod("/tmp/vda", 0o600 | 0o060000, os.makedev(254, 0))), t("mknod null", lambda: os.mknod("/tmp/n", 0o600 | 0o020000, os.makedev(1, 3)))]`),
	simple("A7", "open by handle", `h = struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0)
out = many(name_to_handle_at=(303, -100, b"/usr", ctypes.create_string_buffer(144), ctypes.create_string_buffer(8), 0), open_by_handle_at=(304, os.open("/usr", 0), h, 0), root_handle=(304, -100, h, 0))`),
	{id: "A8", name: "fill scratch space", run: func(a *arena) result {
		out := a.do(`n = 0
try:
    with open("/tmp/big", "wb", buffering=0) as f:
        while n < 4096: n += f.write(bytes(1 << 20)) / (1 << 20)
    out = [n, "no limit"]
except OSError as e: out = [n, errno.errorcode[e.errno]]
os.unlink("/tmp/big")`).([]any)
		return bounded(out, float64(a.target.TmpBytes>>20), "ENOSPC", "MiB")
	}},
	{id: "A9", name: "exhaust inodes", run: func(a *arena) result {
		out := a.do(`n = 0
try:
    while n < 1000000:
        os.close(os.open("/tmp/i%d" % n, os.O_CREAT | os.O_WRONLY)); n += 1
    out = [n, "no limit"]
except OSError as e: out = [n, errno.errorcode[e.errno]]`).([]any)
		return bounded(out, float64(a.target.TmpInodes), "ENOSPC", "files")
	}},
	simple("A11", "gain privilege by a set-uid file", `import shutil, subprocess
shutil.copy("/usr/bin/id", "/tmp/id"); os.chmod("/tmp/id", 0o6755)
def run(*argv):
    p = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    ids = [l for l in p.stdout.split() if l.startswith(("uid=0", "gid=0"))]
    if "euid=0" in p.stdout or ids: return p.stdout
    raise OSError(errno.EPERM, p.stdout + p.stderr)
out = [t("set-uid id", lambda: run("/tmp/id")), t("su", lambda: run("/usr/bin/su", "-c", "id")), t("sudo", lambda: run("/usr/bin/sudo", "-n", "id")),
  t("file capability", lambda: os.setxattr("/tmp/id", "security.capability", bytes(20))), t("mount", lambda: run("/usr/bin/mount", "-t", "tmpfs", "x", "/tmp"))]`),
	{id: "A12", name: "poison the next instance", run: attackReuse},
	{id: "A13", name: "run a dropped binary", run: func(a *arena) result {
		out := a.do(`import shutil
def status(start):
    r, w = os.pipe()
    p = os.fork()
    if p == 0:
        os.dup2(w, 1)
        try: start()
        except BaseException as e: os.write(1, str(e).encode())
        os._exit(1)
    os.close(w)
    text = b""
    while True:
        b = os.read(r, 4096)
        if not b: break
        text += b
    os.waitpid(p, 0)
    return text.decode()
shutil.copy("/usr/bin/cat", "/tmp/cat"); os.chmod("/tmp/cat", 0o755)
fd = os.memfd_create("x"); os.write(fd, open("/usr/bin/cat", "rb").read())
argv = ["cat", "/proc/self/status"]
out = [status(lambda: os.execv("/tmp/cat", argv)), status(lambda: os.execve(fd, argv, {}))]`).([]any)
		for _, text := range out {
			wants := []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"}
			if a.target.OwnKernel { // the filter is around that kernel
				wants = []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"}
			}
			for _, want := range wants {
				if s := text.(string); strings.HasPrefix(s, "Name:") && !strings.Contains(s, want) {
					return fail(2, "a dropped binary runs without %q", want)
				}
			}
		}
		return result{contained, 2, "allowed from /tmp and memory, under the same filter and without privilege"}
	}},
	simple("A15", "look into the page cache", `import mmap
m = mmap.mmap(os.open("/usr/bin/id", 0), 0, prot=1)
libc.mmap.restype = ctypes.c_void_p
addr = libc.mmap(ctypes.c_void_p(0), 4096, 1, 2, os.open("/usr/bin/id", 0), ctypes.c_long(0))
out = many(mincore=(27, addr, 4096, ctypes.create_string_buffer(8)), cachestat=(451, os.open("/usr/bin/id", 0), bytes(16), ctypes.create_string_buffer(40), 0))`),
}

// bounded judges a list of [how much, error]: the error must be the wanted one and come at the limit or before.
func bounded(out []any, most float64, want, unit string) result {
	n, _ := out[0].(float64)
	if out[1] != want || n > most {
		return fail(1, "stopped after %v %s by %v, limit %v", n, unit, out[1], most)
	}
	return result{contained, 1, fmt.Sprintf("%v after %v %s of %v", want, n, unit, most)}
}

func attackReadOnly(a *arena) result {
	before := treeHash(a.t, a.code)
	r := a.attempts(`out = []
for p in ["/x", "/usr/x", "/usr/bin/x", "/etc/x", "/opt/x", "/var/x", "/var/task/x", "/var/runtime/x", "/dev/x", "/proc/x", "/proc/sys/kernel/core_pattern"]:
    out.append(t("create " + p, lambda: os.open(p, os.O_CREAT | os.O_WRONLY)))
for p in ["/var/task/main.py", "/etc/passwd", "/etc/ld.so.cache", "/usr/bin/id", "/var/runtime/attack.py"]:
    out += [t("open " + p, lambda: os.open(p, os.O_RDWR)), t("truncate " + p, lambda: os.truncate(p, 0)), t("unlink " + p, lambda: os.unlink(p)),
      t("rename " + p, lambda: os.rename(p, p + "x")), t("chmod " + p, lambda: os.chmod(p, 0o777)), t("link " + p, lambda: os.link(p, "/tmp/l")), t("xattr " + p, lambda: os.setxattr(p, "user.x", b"1")),
      t("proc fd " + p, lambda: os.open("/proc/self/fd/%d" % os.open(p, 0), os.O_RDWR))]
out += [t("mkdir /var/task/d", lambda: os.mkdir("/var/task/d")), t("rename over", lambda: os.rename("/var/task", "/tmp/task"))]`)
	if after := treeHash(a.t, a.code); after != before {
		return fail(r.attempts, "the code on the host changed")
	}
	return r
}

// treeHash sums names, modes and contents below dir, of links where they lead.
func treeHash(t testing.TB, dir string) string {
	h := sha256.New()
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		var b []byte
		switch info.Mode().Type() {
		case 0:
			b, err = os.ReadFile(p)
		case os.ModeSymlink:
			to, _ := os.Readlink(p)
			b = []byte(to)
		}
		fmt.Fprintf(h, "%s %v %d %x\n", p, info.Mode(), len(b), b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func attackReuse(a *arena) result {
	poison := `import os
out = []
for p in ["/tmp/poison", os.environ["HOME"] + "/.pth", "/tmp/node_modules", "/dev/shm/x", "/var/tmp/x", "/run/x"]:
    try: open(p, "w").write("poison"); out.append(p)
    except OSError: pass
os.environ["POISON"] = "1"`
	written := a.do(poison).([]any)
	next := newArena(a.t, a.target)
	list, _ := json.Marshal(written)
	left := next.do(fmt.Sprintf(`out = [p for p in %s if os.path.exists(p)] + os.listdir("/tmp") + [k for k in os.environ if k == "POISON"]`, list)).([]any)
	if len(left) > 0 {
		return fail(len(written), "found by the next instance: %v", left)
	}
	return result{contained, len(written), fmt.Sprintf("%d files written, none left for the next instance", len(written))}
}
