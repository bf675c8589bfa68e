package frontend

import (
	rtm "runtime/metrics"
	"slices"
	"time"

	"starling/frontend/overload"
	"starling/metrics"
)

// lateMax is an overload: a tenth of the goroutines that could run wait longer for a processor of this process. This sees
// a node that has too much work itself; overload.Crowd, of the threads of the whole machine, sees functions that have.
// See DESIGN.md for what was tried before.
const lateMax = 10 * time.Millisecond

// A pressure measures how much more work there is than can be done. One goroutine uses it.
type pressure struct {
	last     time.Time
	late     time.Duration // most that a tick was late in this window
	runnable *metrics.Runnable
	crowd    overload.Crowd
	latency  [1]rtm.Sample
	before   []uint64
}

func newPressure() *pressure {
	p := &pressure{runnable: metrics.OpenRunnable(), latency: [1]rtm.Sample{{Name: "/sched/latencies:seconds"}}}
	p.tail()
	return p
}

func (p *pressure) close() { p.runnable.Close() }

// sample looks at the crowd of this moment and returns it, for each processor.
func (p *pressure) sample(now time.Time) float64 {
	if !p.last.IsZero() {
		p.late = max(p.late, now.Sub(p.last)-overload.SampleTime)
	}
	p.last = now
	perCPU := p.runnable.PerCPU()
	p.crowd.Sample(perCPU)
	return perCPU
}

// window returns the pressure of the window that ends now; from 1 on the node has too much work.
func (p *pressure) window() float64 {
	late := max(p.late, p.tail())
	p.late = 0
	return max(float64(late)/float64(lateMax), p.crowd.Pressure())
}

// tail returns what a tenth of the waits of goroutines for a processor since the last call exceeded.
func (p *pressure) tail() time.Duration {
	rtm.Read(p.latency[:])
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
