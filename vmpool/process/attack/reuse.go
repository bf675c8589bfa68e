package attack

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool"
)

// reuseRows attack from one instance to the next: what is left, and what two have in common; and go on after the answer.
var reuseRows = []row{
	{id: "E5", name: "work on after the answer", run: attackPause},
	{id: "G1", name: "find a secret of the instance before", run: attackMemoryOfBefore},
	{id: "G2", name: "use an instance again", run: func(a *arena) result {
		if err := a.Attach(context.Background(), vmpool.Code{Dir: a.code, MemoryMiB: a.target.MemoryMiB}); starling.KindOf(err) != starling.Invalid {
			return fail(1, "it was given code twice: %v", err)
		}
		if _, err := a.Python("os._exit(3)"); err == nil {
			return fail(2, "it answered after its end")
		}
		select {
		case <-a.Done():
		case <-time.After(20 * time.Second):
			return fail(2, "nobody noticed its end")
		}
		if _, err := a.Python("out = 1"); err == nil {
			return fail(3, "it answers after its end")
		}
		return result{refused, 3, "no second code, no call after its end"}
	}},
	{id: "G3", name: "draw what a sibling draws", run: attackSiblings},
}

// packageRows attack with a package that got past every check of the code store.
var packageRows = []row{
	{id: "F2", name: "links that lead out of the package", run: func(a *arena) result {
		r, err := a.packaged(func(dir string) error {
			up := strings.Repeat("../", 12)
			for name, to := range map[string]string{"absolute": a.canary, "relative": up + a.canary[1:], "host": up + "etc/shadow", "first": "/proc/1/root" + a.canary, "loop": "loop", "parent": ".."} {
				if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
					return err
				}
			}
			return os.Link(a.canary, filepath.Join(dir, "inside")) // a hard link to a file of the host is that file, and the package's own
		}, `out = [t(n, lambda: open("/var/task/" + n).read()) for n in ["absolute", "relative", "host", "first", "loop", "parent/../" + "absolute"]]
out += [t("write " + n, lambda: open("/var/task/" + n, "w").write("x")) for n in ["absolute", "relative", "inside"]]`)
		if err != nil {
			return result{refused, 1, fmt.Sprintf("the package was not taken: %v", err)}
		}
		if text, err := os.ReadFile(a.canary); err != nil || string(text) != "host secret" {
			return fail(r.attempts, "a file of the host was written: %q %v", text, err)
		}
		return r
	}},
	{id: "F4", name: "set-uid files, devices and pipes in a package", run: func(a *arena) result {
		r, err := a.packaged(func(dir string) error {
			text, err := os.ReadFile("/usr/bin/id")
			if err != nil {
				return err
			}
			path := func(name string) string { return filepath.Join(dir, name) }
			for _, err := range []error{os.WriteFile(path("id"), text, 0o755), os.Chmod(path("id"), 0o755|os.ModeSetuid|os.ModeSetgid), os.WriteFile(path("open"), nil, 0o600), os.Chmod(path("open"), 0o777),
				unix.Mknod(path("mem"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))), unix.Mknod(path("disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))), unix.Mkfifo(path("pipe"), 0o666)} {
				if err != nil {
					return err
				}
			}
			return nil
		}, `import subprocess
def run(p):
    said = subprocess.run([p], capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    if "uid=0" in said or "gid=0" in said: return said
    raise OSError(errno.EPERM, said)
out = [t("set-uid id", lambda: run("/var/task/id")), t("mem", lambda: os.open("/var/task/mem", os.O_RDONLY)), t("disk", lambda: os.open("/var/task/disk", os.O_RDONLY)),
  t("world-writable", lambda: os.open("/var/task/open", os.O_WRONLY)), t("chmod", lambda: os.chmod("/var/task/open", 0o777))]`)
		if err != nil {
			return result{refused, 1, fmt.Sprintf("the package was not taken: %v", err)}
		}
		return r
	}},
}

// packaged runs source by attempts in a fresh sandbox whose package fill has spoiled. The error is that of giving it the package.
func (a *arena) packaged(fill func(dir string) error, source string) (result, error) {
	a.t.Helper()
	dir := a.t.TempDir()
	a.check(os.Chmod(dir, 0o755))
	a.check(os.WriteFile(filepath.Join(dir, "main.py"), []byte("answer = 42\n"), 0o644))
	a.check(fill(dir))
	b := &arena{Box: NewBox(a.t, a.target.Template), t: a.t, target: a.target, code: dir, canary: a.canary}
	if err := b.attach(); err != nil {
		return result{}, err
	}
	return b.attempts(source), nil
}

// attackMemoryOfBefore looks in all memory that an instance can read, and in what the kernel gives it anew, for a secret of
// the instance before it.
func attackMemoryOfBefore(a *arena) result {
	half := [2]string{}
	for i := range half {
		b := make([]byte, 12)
		rand.Read(b)
		half[i] = hex.EncodeToString(b)
	}
	a.do(fmt.Sprintf(`secret = %q
keep = [(secret * 1000).encode() for i in range(100)]
os.environ["SECRET"] = secret
for p in ["/tmp/s", "/dev/shm/s"]:
    try: open(p, "w").write(secret * 1000)
    except OSError: pass`, half[0]+half[1]))
	a.check(a.Close())
	next := newArena(a.t, a.target)
	out := next.do(fmt.Sprintf(`import mmap
one, two = %q.encode(), %q.encode() # never side by side in the memory of this instance
def seen(data):
    at = data.find(one)
    while at >= 0:
        if data[at + len(one):at + len(one) + len(two)] == two: return True
        at = data.find(one, at + 1)
    return False
found, read = [], 0
for line in open("/proc/self/maps"):
    f = line.split()
    begin, end = (int(x, 16) for x in f[0].split("-"))
    name = f[5] if len(f) > 5 else ""
    if f[1][0] != "r" or name.startswith(("[v", "/")) or end - begin > 1 << 28: continue
    read += end - begin
    if seen(ctypes.string_at(begin, end - begin)): found.append(line)
fresh = mmap.mmap(-1, 64 << 20)
if seen(fresh[:]) or fresh[:].count(0) != 64 << 20: found.append("fresh memory")
found += [k for k in os.environ if seen(os.environ[k].encode())] + [d for d in ("/tmp", "/dev/shm") if os.path.isdir(d) and os.listdir(d)]
out = [found, (read + (64 << 20)) >> 20]`, half[0], half[1])).([]any)
	if left := out[0].([]any); len(left) > 0 {
		return fail(1, "found by the next instance: %v", left)
	}
	return result{refused, 1, fmt.Sprintf("not in the %v MiB that the next instance can read", out[1])}
}

// siblings are the sandboxes that row G3 compares.
const siblings = 6

// attackSiblings draws from every generator that a sandbox has and compares with its siblings.
func attackSiblings(a *arena) result {
	seen, drawn := map[string]string{}, 0
	for n := range siblings {
		b := a
		if n > 0 {
			b = newArena(a.t, a.target)
		}
		for kind, value := range b.do(`import random, secrets, tempfile, uuid
buf = ctypes.create_string_buffer(16); sc(318, buf, 16, 0)
out = {"urandom": open("/dev/urandom", "rb", 0).read(16).hex(), "getrandom": buf.raw.hex(), "random": random.random(), "uuid4": str(uuid.uuid4()), "secrets": secrets.token_hex(),
  "name": next(tempfile._get_candidate_names()), "auxv": open("/proc/self/auxv", "rb").read().hex() if os.access("/proc/self/auxv", 4) else os.urandom(8).hex()}`).(map[string]any) {
			drawn++
			if kind == "auxv" && a.target.OwnKernel {
				continue // addresses of a clone are its template's
			}
			at := kind + fmt.Sprint(value)
			if other, ok := seen[at]; ok {
				return fail(drawn, "%s of two siblings is the same: %s", kind, other)
			}
			seen[at] = at
		}
		if n > 0 {
			a.check(b.Close())
		}
	}
	return result{refused, drawn, fmt.Sprintf("%d siblings, %d distinct values", siblings, len(seen))}
}

// attackPause leaves a child at work. Between calls an instance is paused, and what the host sees of it must stand still.
func attackPause(a *arena) result {
	a.do("for i in range(3):\n  if os.fork() == 0:\n    while True: pass")
	pids := a.target.PIDs(a.Sandbox)
	a.check(a.Pause())
	before := ticks(pids)
	time.Sleep(300 * time.Millisecond)
	used := ticks(pids) - before
	a.check(a.Resume())
	time.Sleep(50 * time.Millisecond)
	if len(pids) == 0 || before == 0 {
		return fail(1, "the host sees no process at work")
	}
	if used > 1 { // hundredths of a second: the emulator's own
		return fail(1, "used %d0 ms of CPU in 300 ms of pause", used)
	}
	a.do("out = 1")
	return result{contained, 1, "no CPU while paused, and on with it afterwards"}
}

// ticks returns the CPU time of processes in hundredths of a second.
func ticks(pids []int) (sum int) {
	for _, pid := range pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(string(text[max(0, slices.Index(text, ')')):]))
		if len(f) < 14 {
			continue // it ended
		}
		for _, field := range f[12:14] { // utime and stime, counted from the ")"
			n, _ := strconv.Atoi(field)
			sum += n
		}
	}
	return sum
}
