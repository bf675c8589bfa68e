package frontend

import (
	"bytes"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"time"

	"starling/frontend/overload"
)

// lateMax is an overload: a tenth of the goroutines that could run wait longer for a processor of this process. This sees
// a node that has too much work itself; overload.Crowd, of the threads of the whole machine, sees functions that have.
// See DESIGN.md for what was tried before.
const lateMax = 10 * time.Millisecond

// A pressure measures how much more work there is than can be done. One goroutine uses it.
type pressure struct {
	last    time.Time
	late    time.Duration // most that a tick was late in this window
	loadavg *os.File      // nil where there is none
	cpus    float64
	crowd   overload.Crowd
	latency [1]metrics.Sample
	before  []uint64
}

func newPressure() *pressure {
	p := &pressure{cpus: float64(runtime.NumCPU()), latency: [1]metrics.Sample{{Name: "/sched/latencies:seconds"}}}
	p.loadavg, _ = os.Open("/proc/loadavg")
	p.tail()
	return p
}

func (p *pressure) close() {
	if p.loadavg != nil {
		p.loadavg.Close()
	}
}

// sample looks at the crowd of this moment.
func (p *pressure) sample(now time.Time) {
	if !p.last.IsZero() {
		p.late = max(p.late, now.Sub(p.last)-overload.SampleTime)
	}
	p.last = now
	if p.loadavg != nil {
		var b [64]byte
		n, _ := p.loadavg.ReadAt(b[:], 0)
		p.crowd.Sample(runnable(b[:n]), p.cpus)
	}
}

// runnable returns how many threads want to run besides the one that reads, from the text of /proc/loadavg: its fourth
// field is "runnable/all".
func runnable(loadavg []byte) int {
	fields := bytes.Fields(loadavg)
	if len(fields) < 4 {
		return 0
	}
	want, _, _ := bytes.Cut(fields[3], []byte("/"))
	n, _ := strconv.Atoi(string(want))
	return max(n-1, 0)
}

// window returns the pressure of the window that ends now; from 1 on the node has too much work.
func (p *pressure) window() float64 {
	late := max(p.late, p.tail())
	p.late = 0
	return max(float64(late)/float64(lateMax), p.crowd.Pressure())
}

// tail returns what a tenth of the waits of goroutines for a processor since the last call exceeded.
func (p *pressure) tail() time.Duration {
	metrics.Read(p.latency[:])
	h := p.latency[0].Value.Float64Histogram()
	total := uint64(0)
	p.before = slices.Grow(p.before, len(h.Counts))[:len(h.Counts)]
	for i, n := range h.Counts {
		h.Counts[i], p.before[i] = n-p.before[i], n
		total += h.Counts[i]
	}
	above := uint64(0)
	for i := len(h.Counts) - 1; i > 0; i-- {
		if above += h.Counts[i]; above*10 > total {
			return time.Duration(h.Buckets[i] * float64(time.Second))
		}
	}
	return 0
}
