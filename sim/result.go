package sim

import (
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// An ending says how a call ended: with the function's answer, or with the stable reason of its refusal.
type ending string

const (
	endAnswer     ending = "answered"
	endHostLost   ending = "HostLost"
	endConnection ending = "ConnectionLost" // the frontend died, or did not run
)

// A Result is what a run measured. Waits are from a call's arrival to the slot it ran on, of answered calls only.
type Result struct {
	Virtual   time.Duration     `json:"virtualNanoseconds"`
	Events    uint64            `json:"events"`
	Calls     uint64            `json:"calls"`
	Answered  uint64            `json:"answered"`
	Cold      uint64            `json:"cold"` // answered calls that waited for a start
	ColdRatio float64           `json:"coldRatio"`
	WaitP50   time.Duration     `json:"waitP50Nanoseconds"`
	WaitP99   time.Duration     `json:"waitP99Nanoseconds"`
	WaitP999  time.Duration     `json:"waitP999Nanoseconds"`
	WaitMax   time.Duration     `json:"waitMaxNanoseconds"`
	WaitMean  time.Duration     `json:"waitMeanNanoseconds"`
	Starts    uint64            `json:"starts"`          // instances that claimed memory
	Instances float64           `json:"instanceSeconds"` // summed life of instances, those that start included
	MemoryGiB float64           `json:"gibSeconds"`      // the same, weighed with memory
	Refused   map[string]uint64 `json:"refused"`         // by reason
	Accounts  []Account         `json:"accounts,omitempty"`

	starts    uint64
	instances time.Duration
	memory    float64 // MiB × s
	waits     *hdrhistogram.Histogram
	accounts  map[string]*Account
}

// An Account is the part of one tenant.
type Account struct {
	Name     string        `json:"name"`
	Calls    uint64        `json:"calls"`
	Answered uint64        `json:"answered"`
	Refused  uint64        `json:"refused"`
	WaitP50  time.Duration `json:"waitP50Nanoseconds"`
	WaitP99  time.Duration `json:"waitP99Nanoseconds"`

	// From the arrival to the answer, of answered calls.
	LatencyP50 time.Duration     `json:"latencyP50Nanoseconds"`
	LatencyP99 time.Duration     `json:"latencyP99Nanoseconds"`
	LatencyMax time.Duration     `json:"latencyMaxNanoseconds"`
	Reasons    map[string]uint64 `json:"reasons,omitempty"` // of the refused

	waits, times *hdrhistogram.Histogram
}

// accountsMax is up to how many accounts have percentiles of their own.
const accountsMax = 64

// newHistogram counts waits in microseconds up to an hour with two digits: 0.5 % at worst in a few kilobytes.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, 3_600_000_000, 2) }

func newResult() *Result {
	return &Result{Refused: map[string]uint64{}, accounts: map[string]*Account{}}
}

// end counts the answer of one call, which came latency after the call.
func (r *Result) end(f *function, how ending, wait, latency time.Duration, cold bool) {
	r.Calls++
	a := r.accounts[f.Account]
	if a == nil {
		a = &Account{Name: f.Account}
		r.accounts[f.Account] = a
	}
	a.Calls++
	if how != endAnswer {
		r.Refused[string(how)]++
		a.Refused++
		if a.Reasons == nil {
			a.Reasons = map[string]uint64{}
		}
		a.Reasons[string(how)]++
		return
	}
	r.Answered++
	a.Answered++
	if cold {
		r.Cold++
	}
	if r.waits == nil {
		r.waits = newHistogram()
	}
	us := max(wait.Microseconds(), 1)
	_ = r.waits.RecordValue(us) // an hour is beyond every queue's age
	if a.waits == nil && len(r.accounts) <= accountsMax {
		a.waits, a.times = newHistogram(), newHistogram()
	}
	if a.waits != nil {
		_ = a.waits.RecordValue(us)
		_ = a.times.RecordValue(max(latency.Microseconds(), 1))
	}
}

// lived counts the life of an instance, or of its part so far.
func (r *Result) lived(i *instance, d time.Duration) {
	r.instances += d
	r.memory += d.Seconds() * float64(i.memory)
}

// Result returns what was measured so far. Instances that still live count up to now.
func (w *World) Result() *Result {
	r := *w.result
	for _, n := range w.hosts {
		for _, i := range n.host.order {
			if n.up && i.memory > 0 {
				r.lived(i, w.now-i.born)
			}
		}
	}
	r.Virtual, r.Events, r.Starts = w.now, w.steps, r.starts
	r.Instances, r.MemoryGiB = r.instances.Seconds(), r.memory/1024
	if r.Answered > 0 {
		r.ColdRatio = float64(r.Cold) / float64(r.Answered)
		r.WaitP50, r.WaitP99, r.WaitP999 = at(r.waits, 50), at(r.waits, 99), at(r.waits, 99.9)
		r.WaitMax, r.WaitMean = micros(r.waits.Max()), micros(int64(r.waits.Mean()))
	}
	for _, a := range r.accounts {
		if a.waits != nil {
			a.WaitP50, a.WaitP99 = at(a.waits, 50), at(a.waits, 99)
			a.LatencyP50, a.LatencyP99, a.LatencyMax = at(a.times, 50), at(a.times, 99), micros(a.times.Max())
		}
		r.Accounts = append(r.Accounts, *a)
	}
	slices.SortFunc(r.Accounts, func(a, b Account) int { return strings.Compare(a.Name, b.Name) })
	return &r
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

func at(h *hdrhistogram.Histogram, percent float64) time.Duration {
	return micros(h.ValueAtPercentile(percent))
}
