// Package bench measures a function platform, ours or another's, with the same tool: open loop at a constant
// rate of arrivals or closed loop at a concurrency, over HTTP or QUIC, beside a bare net/http server that is
// measured in the same run. A figure without the floor of its machine says nothing.
package bench

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// A Caller makes calls one after another, usually over a connection of its own. One goroutine uses it.
type Caller interface {
	// Call makes one call, which begins now, and waits for its whole answer. The error is nil, or a *Failure
	// that names its kind.
	Call(now time.Time, timeout time.Duration) error
	Close() error
}

// A Target hands out callers.
type Target interface {
	Dial(ctx context.Context) (Caller, error)
}

// A Failure is a call that brought no good answer; failures are counted by kind.
type Failure struct {
	Kind string // "connect", "timeout", "broken", "http-429", or a starling kind
	Err  error
}

func (f *Failure) Error() string { return fmt.Sprintf("%s: %v", f.Kind, f.Err) }

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// A Load says how calls arrive.
type Load struct {
	Name        string
	Concurrency int           // closed loop: callers; open loop: the most calls in flight
	Rate        float64       // open loop: arrivals a second; 0 means closed loop
	Burst       int           // open loop: arrivals at the same instant, 1 or more; Rate stays the average
	Calls       int           // stop after so many; 0 means by Duration
	Duration    time.Duration // measured, after Warmup
	Warmup      time.Duration // same load, not measured
	Timeout     time.Duration // of one call
}

// Validate reports the first field that cannot work.
func (l Load) Validate() error {
	switch {
	case l.Concurrency < 1 || l.Concurrency > 10_000:
		return fmt.Errorf("concurrency %d: use 1-10000", l.Concurrency)
	case l.Rate < 0 || l.Rate > 1e6:
		return fmt.Errorf("rate %v: use up to a million a second", l.Rate)
	case l.Burst < 0 || l.Burst > 1 && l.Rate == 0:
		return fmt.Errorf("burst %d: give a rate, too", l.Burst)
	case l.Calls == 0 && l.Duration <= 0:
		return fmt.Errorf("give a duration or a number of calls")
	case l.Timeout <= 0:
		return fmt.Errorf("timeout %s: use more than 0", l.Timeout)
	}
	return nil
}

const (
	slowest    = 60 * time.Second // histograms hold up to this; slower calls count as this
	resolution = 3                // decimal digits
	// A load that is bounded by its duration is also told in so many parts of equal length: how far they lie apart is how
	// much of a figure is chance.
	windowCount = 6
	windowDigit = 2 // decimal digits of a part, and of what is told beside the headline
)

// recorder is what one caller's goroutine saw. Nothing is shared while calls are made.
type recorder struct {
	latency *hdrhistogram.Histogram // µs, from the scheduled arrival in open loop
	late    *hdrhistogram.Histogram // µs, how late a caller that had nothing else to do began: the generator's own error
	sent    *hdrhistogram.Histogram // µs, from when a call really began, to two digits
	errors  map[string]int
	seconds []second
	windows [windowCount]*hdrhistogram.Histogram // latency by the part of the load in which a call ended; nil without a call
}

// second is one second of the timeline.
type second struct {
	calls, errors int
	slowest       int64 // µs
}

func newRecorder() *recorder {
	return &recorder{latency: histogram(), late: histogram(), sent: coarse(), errors: map[string]int{}}
}

func histogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, slowest.Microseconds(), resolution)
}

// coarse is a histogram of a tenth of the size.
func coarse() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, slowest.Microseconds(), windowDigit)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	us := min(max(d.Microseconds(), 1), slowest.Microseconds())
	_ = h.RecordValue(us) // cannot fail: us is inside the range
}

// note counts a call that ended so long after the load began.
func (r *recorder) note(since time.Duration, took time.Duration, err error) {
	at := int(since / time.Second)
	for at >= len(r.seconds) && at < 1<<16 {
		r.seconds = append(r.seconds, second{})
	}
	if at < 0 || at >= len(r.seconds) {
		return
	}
	s := &r.seconds[at]
	if err != nil {
		s.errors++
		return
	}
	s.calls++
	s.slowest = max(s.slowest, took.Microseconds())
}

// window records a call that ended at, which is past whole for those that were late at the end.
func (r *recorder) window(at, whole, took time.Duration) {
	h := &r.windows[min(max(int(windowCount*at/whole), 0), windowCount-1)]
	if *h == nil {
		*h = coarse()
	}
	record(*h, took)
}

// Run puts load on target and returns what it saw. The CPU that meter tells is charged to the measured calls,
// not to the warm-up; a nil meter is none.
func Run(ctx context.Context, target Target, load Load, meter Meter) (*Result, error) {
	if err := load.Validate(); err != nil {
		return nil, err
	}
	callers := make([]Caller, 0, load.Concurrency)
	defer func() {
		for _, c := range callers {
			c.Close()
		}
	}()
	for range load.Concurrency {
		c, err := target.Dial(ctx)
		if err != nil {
			return nil, fmt.Errorf("reach target: %w", err)
		}
		callers = append(callers, c)
	}
	if load.Warmup > 0 {
		warm := load
		warm.Duration, warm.Calls = load.Warmup, 0
		drive(ctx, callers, warm)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	var server time.Duration
	var err error
	if meter != nil {
		if server, err = meter.CPU(ctx); err != nil {
			return nil, err
		}
	}
	before, began := ownCPU(), time.Now()
	recorders, arrivals := drive(ctx, callers, load)
	r := summarize(load, recorders, arrivals, time.Since(began), ownCPU()-before)
	if err := ctx.Err(); err != nil {
		return r, err
	}
	if p, ok := target.(interface{ Phases() map[string]Latency }); ok {
		r.Phases = p.Phases()
	}
	if meter != nil && r.Calls > 0 {
		after, err := meter.CPU(ctx)
		if err != nil {
			return nil, err
		}
		r.ServerCPU = float64((after - server).Microseconds()) / float64(r.Calls)
	}
	return r, nil
}

// drive makes the calls and returns what each caller saw and how many arrivals there were.
func drive(ctx context.Context, callers []Caller, load Load) ([]*recorder, int64) {
	recorders := make([]*recorder, len(callers))
	for i := range recorders {
		recorders[i] = newRecorder() // before the start: the histograms of 256 callers take 70 MB and 40 ms, which were calls that came late and all at once
	}
	arrivals := make(chan arrival)
	var count atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for i, c := range callers {
		wg.Go(func() {
			if load.Rate > 0 {
				openLoop(c, load, start, arrivals, recorders[i])
			} else {
				closedLoop(ctx, c, load, start, &count, recorders[i])
			}
		})
	}
	if load.Rate > 0 {
		count.Store(pace(ctx, load, start, arrivals))
	}
	wg.Wait()
	return recorders, count.Load()
}

// An arrival is one call of an open loop.
type arrival struct {
	due    time.Time
	onTime bool // a caller was free and nothing but the generator stood between due and the call
}

// pace hands out arrivals when they are due and closes to. It sleeps on a thread of its own by the kernel's
// clock, because Go's own timers wake an idle process up to a millisecond late, which would be most of what
// is measured here. When all callers are busy an arrival waits and those behind it, too; none is left out.
func pace(ctx context.Context, load Load, start time.Time, to chan<- arrival) int64 {
	defer close(to)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Timer slack is how late the kernel may be to save power: 50 µs by default. Not fatal when refused.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	total := int64(math.Ceil(load.Rate * load.Duration.Seconds()))
	if load.Calls > 0 {
		total = int64(load.Calls)
	}
	burst := int64(max(load.Burst, 1))
	gap := float64(burst) / load.Rate * float64(time.Second)
	for i := range total {
		a := arrival{due: start.Add(time.Duration(float64(i/burst) * gap))}
		for wait := time.Until(a.due); wait > 0; wait = time.Until(a.due) {
			if ctx.Err() != nil {
				return i
			}
			ts := unix.NsecToTimespec(min(wait, 100*time.Millisecond).Nanoseconds())
			_ = unix.Nanosleep(&ts, nil) // an interrupted sleep is slept again
			a.onTime = true
		}
		select {
		case to <- a:
			continue
		default:
			a.onTime = false
		}
		select {
		case to <- a:
		case <-ctx.Done():
			return i
		}
	}
	return total
}

// openLoop makes calls as they arrive. Latency counts from the instant a call was due: what a user would
// have seen, not what a patient client saw.
func openLoop(c Caller, load Load, start time.Time, arrivals <-chan arrival, r *recorder) {
	for a := range arrivals {
		now := time.Now()
		if a.onTime {
			record(r.late, now.Sub(a.due))
		}
		err := c.Call(now, load.Timeout)
		done := time.Now()
		if err == nil {
			record(r.sent, done.Sub(now))
		}
		r.end(load, done.Sub(start), done.Sub(a.due), err)
	}
}

func closedLoop(ctx context.Context, c Caller, load Load, start time.Time, next *atomic.Int64, r *recorder) {
	end := start.Add(load.Duration)
	for ctx.Err() == nil {
		i := next.Add(1) - 1
		began := time.Now()
		if load.Calls > 0 && i >= int64(load.Calls) || load.Calls == 0 && began.After(end) {
			next.Add(-1)
			return
		}
		err := c.Call(began, load.Timeout)
		done := time.Now()
		r.end(load, done.Sub(start), done.Sub(began), err)
	}
}

func (r *recorder) end(load Load, at, took time.Duration, err error) {
	r.note(at, took, err)
	if err == nil {
		record(r.latency, took)
		if load.Calls == 0 {
			r.window(at, load.Duration, took)
		}
		return
	}
	kind := "other"
	if f, ok := err.(*Failure); ok {
		kind = f.Kind
	}
	r.errors[kind]++
	if kind == "connect" {
		time.Sleep(10 * time.Millisecond) // a dead target must not be hammered by a tight loop
	}
}
