package compare

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Result is what one policy did with one trace.
type Result struct {
	Policy          string
	Calls           int64
	Cold            int64         // calls that waited for an instance that was not there when they came
	Refused         int64         // calls that waited too long, or found the queue full
	Starts          int64         // instances
	Most            int           // most instances of one function at once
	InstanceSeconds float64       // from the decision to start an instance until it was stopped, summed
	MemorySeconds   float64       // the same times its memory, GiB × s
	Plans           int64         // questions to the policy
	WaitP50         time.Duration // over all calls, as are the next; 0 for those that found a free slot
	WaitP99         time.Duration
	WaitP999        time.Duration
	WaitMax         time.Duration
	Params          map[string]string `json:",omitempty"` // settings that differ from the policy's defaults

	waits *hdrhistogram.Histogram // µs
}

// ColdRatio is the share of calls that were cold, in [0, 1].
func (r *Result) ColdRatio() float64 { return float64(r.Cold) / float64(max(r.Calls, 1)) }

func newResult(policy string, longest time.Duration) *Result {
	return &Result{Policy: policy, waits: hdrhistogram.New(1, max(longest.Microseconds(), 2), 3)}
}

// waited counts a call that got its slot, or gave up, after d.
func (r *Result) waited(d time.Duration) {
	r.waits.RecordValue(min(d.Microseconds(), r.waits.HighestTrackableValue())) // in range: it cannot fail
}

func (r *Result) close() {
	at := func(p float64) time.Duration {
		return time.Duration(r.waits.ValueAtQuantile(p)) * time.Microsecond
	}
	r.WaitP50, r.WaitP99, r.WaitP999, r.WaitMax = at(50), at(99), at(99.9), time.Duration(r.waits.Max())*time.Microsecond
}

// WriteTable writes results side by side. Cold starts and instance-seconds are also given relative to the first.
func WriteTable(w io.Writer, results []*Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-28s %9s %9s %9s %9s %9s %8s %6s %13s %8s %12s\n", "policy", "cold", "vs first", "wait p50", "p99", "p99.9", "starts", "most", "instance-s", "vs first", "GiB-s")
	for _, r := range results {
		fmt.Fprintf(&b, "%-28s %8.4f%% %8.1f%% %9s %9s %9s %8d %6d %13.0f %7.1f%% %12.0f", r.Policy, 100*r.ColdRatio(),
			share(float64(r.Cold), float64(results[0].Cold)), short(r.WaitP50), short(r.WaitP99), short(r.WaitP999), r.Starts, r.Most,
			r.InstanceSeconds, share(r.InstanceSeconds, results[0].InstanceSeconds), r.MemorySeconds)
		if r.Refused > 0 {
			fmt.Fprintf(&b, "  %d refused", r.Refused)
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func share(x, of float64) float64 { return 100 * x / max(of, 1) }

func short(d time.Duration) string {
	if d >= time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}
