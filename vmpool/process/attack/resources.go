package attack

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// resourceRows attack what all instances share.
var resourceRows = []row{
	{id: "C1", name: "fork bomb", run: func(a *arena) result {
		neighbour := newArena(a.t, a.target)
		out, died := a.lethal(`n, e = 0, "no limit"
try:
    while n < 100000:
        if os.fork() == 0:
            while True: time.sleep(100)
        n += 1
except OSError as x: e = errno.errorcode[x.errno]
out = [n, e]`)
		r := a.alone(neighbour, 1)
		if !died {
			r = bounded(out.([]any), float64(a.target.Processes), "EAGAIN", "processes")
		}
		began := time.Now()
		a.check(a.Close())
		if left := a.target.PIDs(a.Sandbox); len(left) > 0 {
			return fail(1, "%d processes outlived their instance", len(left))
		}
		r.detail += fmt.Sprintf("; all killed in %v", time.Since(began).Round(time.Millisecond))
		return r
	}},
	{id: "C2", name: "thread bomb", run: func(a *arena) result {
		neighbour := newArena(a.t, a.target)
		out, died := a.lethal(`import threading
threading.stack_size(65536)
n, e, stop = 0, "no limit", threading.Event()
try:
    while n < 100000: threading.Thread(target=stop.wait, daemon=True).start(); n += 1
except RuntimeError as x: e = "EAGAIN"
out = [n, e]
stop.set()`)
		if died {
			return a.alone(neighbour, 1)
		}
		return bounded(out.([]any), float64(a.target.Processes), "EAGAIN", "threads")
	}},
	{id: "C3", name: "memory bombs", run: attackMemory},
	{id: "C4", name: "descriptor exhaustion", run: func(a *arena) result {
		out := a.do(`n, e, l = 0, "no limit", []
try:
    while n < 100000: l.append(os.open("/dev/null", 0)); n += 1
except OSError as x: e = errno.errorcode[x.errno]
for f in l: os.close(f)
try: resource.setrlimit(resource.RLIMIT_NOFILE, (100000, 100000)); e = "limit raised"
except (OSError, ValueError): pass
out = [n, e]`).([]any)
		return bounded(out, float64(a.target.Files), "EMFILE", "descriptors")
	}},
	{id: "C5", name: "spin beside a neighbour", run: attackCPU},
	{id: "C6", name: "disk bandwidth", run: func(a *arena) result {
		kinds := a.do(`out = []
for l in open("/proc/self/mountinfo"):
    f = l.split(); i = f.index("-")
    if "rw" in f[5].split(","): out.append(f[4] + " " + f[i + 1])`).([]any)
		for _, k := range kinds {
			inMemory := []string{"tmpfs", "proc"}
			if a.target.OwnKernel { // which has nothing of a disk but what it is given, as 9p
				inMemory = append(inMemory, "sysfs", "dev", "devtmpfs", "devpts", "mqueue", "cgroup")
			}
			if f := strings.Fields(k.(string)); len(f) != 2 || !slices.Contains(inMemory, f[1]) {
				return fail(1, "a writable mount of a disk: %v", k)
			}
		}
		return result{refused, 1, fmt.Sprintf("nothing writable lies on a disk: %v", kinds)}
	}},
	simple("C7", "network flood", `def send(family, a):
    s = socket.socket(family, socket.SOCK_DGRAM); s.setblocking(False); return s.sendto(b"x" * 1000, a)
def conn(a):
    s = socket.socket(); s.settimeout(1); s.connect(a); return "connected"
out = [t(str(a), lambda: send(socket.AF_INET, a)) for a in [("8.8.8.8", 53), ("169.254.169.254", 80), ("10.0.0.1", 53), ("255.255.255.255", 9), ("224.0.0.1", 9)]] + [t(str(a), lambda: send(socket.AF_INET6, a)) for a in [("2001:db8::1", 53), ("fe80::1", 53), ("ff02::1", 9)]]
out += [t(str(a), lambda: conn(a)) for a in [("169.254.169.254", 80), ("127.0.0.1", 22), ("127.0.0.1", 2024), ("1.1.1.1", 443), ("0.0.0.0", 8080)]]`),
	{id: "C8", name: "log flood", run: attackOutput},
	{id: "C12", name: "pin kernel memory", run: attackKernelMemory},
}

// held returns the memory that the host's kernel holds for files in memory, page tables and its own objects, in MiB: what a
// sandbox could leave behind. Memory of processes is not counted: it ends with them, and the machine has others.
func held(a *arena) int {
	b, err := os.ReadFile("/proc/meminfo")
	a.check(err)
	sum := 0
	for line := range strings.Lines(string(b)) {
		switch f := strings.Fields(line); f[0] {
		case "Shmem:", "SUnreclaim:", "PageTables:", "KernelStack:":
			n, err := strconv.Atoi(f[1])
			a.check(err)
			sum += n >> 10
		}
	}
	return sum
}

// attackMemory takes memory in every way there is. Each ends with the instance killed for its memory, or at a limit
// below it; the host's kernel holds no more memory afterwards.
func attackMemory(a *arena) result {
	bombs := []struct{ name, source string }{
		{"touch", "l = []\nwhile True: l.append(bytearray(1 << 20))"},
		{"scratch files", "n = 0\nwhile True:\n  open('/tmp/f%d' % n, 'wb').write(bytes(1 << 20)); n += 1"},
		{"memory files", "l = []\nwhile True:\n  f = os.memfd_create('x'); l.append(f)\n  for i in range(64): os.write(f, bytes(1 << 20))"},
		{"shared maps", "import mmap\nl = []\nwhile True:\n  m = mmap.mmap(-1, 1 << 20); m.write(bytes(1 << 20)); l.append(m)"},
		{"page tables", "import mmap\nl = []\nwhile True:\n  m = mmap.mmap(-1, 1 << 36, flags=0x4022, prot=3); l.append(m)\n  for i in range(0, 1 << 36, 1 << 21): m[i] = 1"},
		{"pipes", "import fcntl\nl = []\nwhile True:\n  p = os.pipe(); l.append(p); os.set_blocking(p[1], False)\n  try: fcntl.fcntl(p[1], 1031, 1 << 20)\n  except OSError: pass\n  try:\n    while True: os.write(p[1], bytes(65536))\n  except BlockingIOError: pass"},
		{"sockets", "l = []\nwhile True:\n  s = socket.socketpair(); l.append(s); s[0].setblocking(False); s[0].setsockopt(1, 7, 1 << 30)\n  try:\n    while True: s[0].send(bytes(65536))\n  except BlockingIOError: pass"},
		{"locked", "import mmap\nlibc.mlockall(3)\nl = []\nwhile True: l.append(bytearray(1 << 20))"},
		{"children", "for i in range(2):\n  if os.fork() == 0: break\nl = []\nwhile True: l.append(bytearray(1 << 20))"},
	}
	patience := 200 * time.Millisecond
	if a.target.OwnKernel {
		patience = 5 * time.Second // until its kernel has told
	}
	before := held(a)
	killed, limited := 0, []string{}
	for _, bomb := range bombs {
		b := newArena(a.t, a.target)
		_, err := b.Python(bomb.source)
		if err == nil {
			return fail(len(bombs), "%s: no end", bomb.name)
		}
		if s, err := b.Stats(); err == nil && s.MemoryMax > int64(a.target.MemoryMiB+a.target.SpareMiB)<<20 {
			return fail(len(bombs), "%s: took %d MiB", bomb.name, s.MemoryMax>>20)
		}
		select {
		case <-b.Done():
			if !b.Exit().OutOfMemory {
				return fail(len(bombs), "%s: ended with %+v instead of out of memory", bomb.name, b.Exit())
			}
			killed++
		case <-time.After(patience):
			limited = append(limited, bomb.name+" by "+strings.SplitN(err.Error(), ":", 2)[0])
		}
		a.check(b.Close())
	}
	deadline := time.Now().Add(5 * time.Second)
	for held(a) > before+128 { // one bomb of nine would be about that
		if time.Now().After(deadline) {
			return fail(len(bombs), "the host's kernel holds %d MiB, %d before", held(a), before)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return result{contained, len(bombs), fmt.Sprintf("%d killed as out of memory, %d stopped before: %s", killed, len(limited), strings.Join(limited, ", "))}
}

// attackCPU measures how long a small call takes at a neighbour while eight spinners run.
func attackCPU(a *arena) result {
	neighbour := newArena(a.t, a.target)
	p99 := func() time.Duration {
		var took []time.Duration
		for range 300 {
			began := time.Now()
			neighbour.do("out = sum(range(1000))")
			took = append(took, time.Since(began))
			time.Sleep(time.Millisecond) // calls come apart; back to back they would use up the neighbour's own share
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	quiet := p99()
	a.do("for i in range(8):\n  if os.fork() == 0:\n    while True: pass")
	used, err := a.Stats()
	a.check(err)
	began := time.Now()
	loud := p99()
	after, err := a.Stats()
	a.check(err)
	share := float64(after.CPU-used.CPU) / float64(time.Since(began))
	const bound = 150 * time.Millisecond
	if loud > bound {
		return fail(1, "a neighbour's p99 rose from %v to %v, bound %v", quiet, loud, bound)
	}
	most := a.target.CPUs
	if most == 0 {
		most = max(.25, float64(a.target.MemoryMiB)/1769)
	}
	if most += .15; share > most {
		return fail(1, "eight spinners took %.2f CPUs, at most %.2f were theirs", share, most)
	}
	return result{contained, 1, fmt.Sprintf("spinners held to %.2f CPUs, a neighbour's p99 %v → %v", share, quiet.Round(10*time.Microsecond), loud.Round(10*time.Microsecond))}
}

// attackOutput floods stdout while nobody reads: the flood must stop, and with it what the host holds. What is kept of a
// read flood is vmpool's business.
func attackOutput(a *arena) result {
	n := a.do(`n = 0
for fd in (1, 2):
    os.set_blocking(fd, False)
    try:
        while n < 1 << 30: n += os.write(fd, b"\0" * 65536)
    except BlockingIOError: pass
out = n`).(float64)
	if n > 4<<20 {
		return fail(1, "%v bytes were taken off unread", n)
	}
	return result{contained, 2, fmt.Sprintf("the host holds %.0f KiB, then writing blocks", n/1024)}
}

// attackKernelMemory makes objects that live in the kernel and looks whether they are charged to the instance.
func attackKernelMemory(a *arena) result {
	before, err := a.Stats()
	a.check(err)
	a.do(`keep = []
try:
    while len(keep) < 900: keep.append(socket.socket(socket.AF_UNIX))
except OSError: pass
for i in range(20000):
    try: os.stat("/tmp/absent%d" % i)
    except OSError: pass
for i in range(2000): os.close(os.open("/tmp/k%d" % i, os.O_CREAT | os.O_WRONLY))`)
	after, err := a.Stats()
	a.check(err)
	grown := (after.MemoryBytes - before.MemoryBytes) >> 10
	if m := a.target.MachineMiB; m > 0 {
		return inMachine(a, m)
	}
	if grown < 1024 {
		return fail(3, "900 sockets, 20,000 missing names and 2,000 files charged only %d KiB", grown)
	}
	return result{contained, 3, fmt.Sprintf("charged to the instance: %d KiB", grown)}
}

// emulatorMiB is what an emulator takes beyond the memory of its machine.
const emulatorMiB = 160

// inMachine judges objects of a kernel that is a machine's: all of it is in the memory of that machine.
func inMachine(a *arena, most int) result {
	for _, pid := range a.target.PIDs(a.Sandbox) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		a.check(err)
		_, after, _ := strings.Cut(string(text), "VmRSS:")
		var kib int
		_, err = fmt.Sscan(after, &kib)
		a.check(err)
		if kib>>10 > most+emulatorMiB {
			return fail(3, "the machine of %d MiB takes %d", most, kib>>10)
		}
		return result{contained, 3, fmt.Sprintf("in the machine's own memory, of which the host holds %d MiB", kib>>10)}
	}
	return fail(3, "the host sees no process of the sandbox")
}
