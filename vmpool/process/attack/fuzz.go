package attack

import (
	"encoding/json"
	"flag"
	"fmt"
	"time"
)

// Flags of every test binary that runs the suite.
var (
	syscalls    = flag.Int("syscalls", 0, "random system calls of row B21; 0 for 20,000, and for 5,000 where a part of the rows is run")
	syscallSeed = flag.Int64("syscallseed", 0, "what they are drawn from; 0 for the time")
)

// Asked returns how many random system calls the flags ask for, or unsaid, and the seed.
func Asked(unsaid int) (calls int, seed int64) {
	if *syscallSeed == 0 {
		*syscallSeed = 1 + time.Now().UnixNano()%1_000_000_000
	}
	if calls = *syscalls; calls == 0 {
		calls = unsaid
	}
	return calls, *syscallSeed
}

// fuzzCalls is how many random calls there are when nobody says; emulated, a thousand take most of a second.
func (t Target) fuzzCalls() int {
	if t.Few && *asked == "" {
		return 5_000
	}
	return 20_000
}

// Fuzzer is Python source that defines fuzz(seed, calls): random system calls with random arguments, made by children, so
// that one that ends itself ends no instance. The numbers are 0 to 599; half of the calls go to those that the sandbox
// answers with more than a refusal. Arguments are small numbers, descriptors of many kinds, pointers to memory that holds
// anything, and noise. It returns how many calls were made, by how many children, how many of those ended by a signal or
// stood still and were killed, and how many numbers were answered.
const Fuzzer = `
import ctypes, errno, mmap, os, random, signal, socket, struct, tempfile, time
_raw = ctypes.CDLL(None, use_errno=True).syscall
_raw.restype, _raw.argtypes = ctypes.c_long, [ctypes.c_long] + [ctypes.c_ulong] * 6
# Not called: ends of the caller, signals and limits for its family, waits without end, and what closes its way out.
_skip = {0, 3, 7, 15, 17, 19, 23, 32, 33, 34, 35, 43, 45, 47, 60, 61, 62, 109, 112, 128, 129, 130, 157, 200, 202, 230, 231, 234, 247, 270, 271, 288, 292, 297, 302, 424, 436}
_rare = {12, 56, 57, 58, 335} # end most callers: one in twenty is made
def _descriptors():
    "Opens one of each kind, from 5 on."
    made = [lambda: os.open("/", os.O_RDONLY), lambda: os.memfd_create("x"), lambda: os.eventfd(0), lambda: socket.socket().detach(), lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
      lambda: _raw(291, 0, 0, 0, 0, 0, 0), lambda: _raw(283, 1, 0, 0, 0, 0, 0), lambda: _raw(294, 0, 0, 0, 0, 0, 0), lambda: os.open("/tmp", os.O_RDWR | os.O_TMPFILE), lambda: os.open("/proc/self", os.O_RDONLY), lambda: os.open("/dev/urandom", os.O_RDONLY)]
    for m in made:
        try: m()
        except OSError: pass
    os.pipe(); socket.socketpair()
def _work(rnd, shared, calls):
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(5): os.dup2(null, fd)
    _descriptors()
    memory = bytearray(rnd.getrandbits(8) for _ in range(8192))
    for at, text in enumerate([b"/tmp/x\0", b"/proc/self/mem\0", b"../../..\0", b"tmpfs\0", b"user.x\0", b"\2\0\0\0\177\0\0\1"]): memory[at * 64:at * 64 + len(text)] = text
    block = ctypes.create_string_buffer(bytes(memory), 8192)
    at = ctypes.addressof(block)
    struct.pack_into("<4Q", block, 4096, at, 64, at + 1024, 512) # pairs of pointer and length
    pool = list(range(24)) + [(1 << 64) - 1, (1 << 64) - 100, 1 << 12, 1 << 21, 1 << 31, 1 << 63] + [at + 64 * i for i in range(8)] + [at + 4096, at + 8000]
    pool = [rnd.choice(pool) for _ in range(200)] + [rnd.getrandbits(64) for _ in range(28)] + [1 << rnd.randrange(64) for _ in range(28)]
    known = [i for i in range(600) if shared[64 + i] and i not in _skip]
    me, n, refusals = os.getpid(), 0, (errno.ENOSYS, errno.EPERM)
    while n < calls:
        r = rnd.getrandbits(64)
        nr = known[(r >> 49) % len(known)] if known and r >> 63 else (r >> 49) % 600
        if nr in _skip or nr in _rare and (r >> 59) % 20: continue
        n += 1
        struct.pack_into("<Q", shared, 0, n)
        got = _raw(nr, pool[r & 255], pool[r >> 8 & 255], pool[r >> 16 & 255], pool[r >> 24 & 255], pool[r >> 32 & 255], pool[r >> 40 & 255])
        if got != -1 or ctypes.get_errno() not in refusals: shared[64 + nr] = 1
        if os.getpid() != me: os._exit(0) # the call was a fork
def fuzz(seed, calls, each=2000):
    shared, done, children, ended, idle = mmap.mmap(-1, 4096), 0, 0, 0, 0
    while done < calls and idle < 50:
        shared[0:8] = bytes(8)
        try: p = os.fork()
        except OSError: time.sleep(.05); idle += 1; continue # what others left is at the limit of processes
        if p == 0:
            try: _work(random.Random(seed * 1000003 + children), shared, min(each, calls - done))
            except BaseException: pass
            finally: os._exit(0)
        before, still = 0, time.monotonic()
        while True:
            got, status = os.waitpid(p, os.WNOHANG)
            if got: break
            now = int.from_bytes(shared[0:8], "little")
            if now != before: before, still = now, time.monotonic()
            elif time.monotonic() - still > (.2 if now else 10):
                os.kill(p, signal.SIGKILL)
                still = time.monotonic() + 3600 # once
            time.sleep(.002)
        try: os.killpg(p, signal.SIGKILL)
        except OSError: pass
        made = min(int.from_bytes(shared[0:8], "little"), each)
        done, children, ended, idle = done + made, children + 1, ended + os.WIFSIGNALED(status), 0 if made else idle + 1
        try:
            while os.waitpid(-1, os.WNOHANG)[0]: pass
        except OSError: pass
    return {"calls": done, "children": children, "killed": ended, "answered": sum(shared[64:664])}
`

// Tally is what fuzz returns, as JSON.
type Tally struct {
	Calls    int `json:"calls"`
	Children int `json:"children"`
	Killed   int `json:"killed"`
	Answered int `json:"answered"` // numbers, of 600
}

// Add adds what another round did.
func (t *Tally) Add(o Tally) {
	t.Calls, t.Children, t.Killed, t.Answered = t.Calls+o.Calls, t.Children+o.Children, t.Killed+o.Killed, max(t.Answered, o.Answered)
}

// fuzzRound is what one request asks of an instance: what is lost when it ends itself.
const fuzzRound = 10_000

// attackFuzz is row B21: random calls until there were enough, in as many instances as that takes, then a look at the
// kernel's log and the neighbour.
func attackFuzz(a *arena) result {
	calls, seed := Asked(a.target.fuzzCalls())
	complaints, neighbour := Complaints(), newArena(a.t, a.target)
	large := a.target
	large.MemoryMiB = max(large.MemoryMiB, large.MostMiB) // and with it more of the CPU
	box, began := newArena(a.t, large), time.Now()
	box.do(Fuzzer)
	var sum Tally
	ended := 0
	for round := int64(0); sum.Calls < calls; round++ {
		out, err := box.Python(fmt.Sprintf("out = fuzz(%d, %d)", seed+round, min(fuzzRound, calls-sum.Calls)))
		var got Tally
		if err == nil {
			text, _ := json.Marshal(out)
			a.check(json.Unmarshal(text, &got))
		}
		if err != nil || got.Calls == 0 { // it ended itself, or can do no more: what it did is not counted
			if ended++; ended > 20+calls/fuzzRound {
				return fail(sum.Calls, "seed %d: %d instances ended in %d calls: %v", seed, ended, sum.Calls, err)
			}
			a.check(box.Close())
			box = newArena(a.t, large)
			box.do(Fuzzer)
			continue
		}
		sum.Add(got)
	}
	if after := Complaints(); after > complaints {
		return fail(sum.Calls, "seed %d: the host's kernel complained: see its log", seed)
	}
	neighbour.do("out = 1")
	return result{contained, sum.Calls, fmt.Sprintf("%d calls in %v, seed %d: %d numbers answered, %d of %d children ended by a signal, %d instances replaced; the host's log clean, the neighbour alive",
		sum.Calls, time.Since(began).Round(time.Second), seed, sum.Answered, sum.Killed, sum.Children, ended)}
}
