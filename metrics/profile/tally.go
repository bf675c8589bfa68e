package profile

import (
	"math/rand/v2"
	"time"
)

// runsKept is how many run times of one beat an instance keeps: 256 bytes in each instance.
const runsKept = 64

// A Tally is what the calls of one instance used since somebody last took it. A plain value of fixed size: counting a
// call allocates nothing and costs nanoseconds. Its owner guards it.
type Tally struct {
	Calls       uint64
	Run         time.Duration // sum over Calls
	OutOfMemory uint64        // calls that ended because the memory was used up
	MemoryMax   int64         // bytes, peak of the instance so far; 0 when unknown
	Active      time.Duration // age of the tally, when it has calls; set by who takes it

	// CPU is what the processes used between readings of their counter, CPUCalls the calls that ended in between. A
	// reading costs more than a short call, so not every beat has one, and what preceded the first is not counted:
	// it holds the initialisation.
	CPU      time.Duration
	CPUCalls uint64

	runs    [runsKept]uint32 // µs, a uniform sample of the calls (algorithm R: Vitter 1985)
	pending uint64           // calls since the last reading
	read    bool             // there was one
	last    time.Duration    // what it said
}

// Add counts one call that ended.
func (t *Tally) Add(run time.Duration) {
	at := t.Calls
	t.Calls++
	t.pending++
	t.Run += run
	if at >= runsKept {
		at = rand.Uint64N(t.Calls)
	}
	if at < runsKept {
		t.runs[at] = uint32(min(run.Microseconds(), 1<<32-1))
	}
}

// Reading begins a reading of the CPU counter and returns the calls that it will account for.
func (t *Tally) Reading() (pending uint64) {
	pending, t.pending = t.pending, 0
	return pending
}

// Read ends a reading: the counter says cpu, and pending came from Reading. Readings may overtake each other.
func (t *Tally) Read(cpu time.Duration, pending uint64) {
	switch {
	case !t.read:
		t.read, t.last = true, cpu
	case cpu >= t.last:
		t.CPU += cpu - t.last
		t.CPUCalls += pending
		t.last = cpu
	default:
		t.pending += pending
	}
}

// Take returns the tally and begins a new one, which goes on from the same reading. Active is what it is told.
func (t *Tally) Take(active time.Duration) Tally {
	out := *t
	out.Active = active
	*t = Tally{MemoryMax: t.MemoryMax, pending: t.pending, read: t.read, last: t.last}
	return out
}

// sample returns the kept run times in µs and how many calls each stands for.
func (t *Tally) sample() (runs []uint32, weight float64) {
	n := min(t.Calls, runsKept)
	return t.runs[:n], float64(t.Calls) / float64(max(n, 1))
}
