// Package advise says which memory size would fit a version, from what its calls used. It is arithmetic over one
// [Observation]: pure, and it changes nothing itself. A person or a deployment decides.
package advise

import (
	"fmt"
	"math"
	"slices"
	"time"

	"starling"
)

// Config is what the asker may choose. Start from [DefaultConfig].
type Config struct {
	CallMin  uint64  // calls below which nothing is advised, at least 1
	Headroom float64 // share added to the p99 of the memory peak, 0 or more
	Slower   float64 // share by which the mean call may become slower, 0 or more
}

// DefaultConfig asks for 100 calls, since a p99 of fewer is their maximum, adds a quarter, and takes 10 % more time.
func DefaultConfig() Config { return Config{CallMin: 100, Headroom: 0.25, Slower: 0.10} }

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	const op = "check advice"
	switch {
	case c.CallMin < 1:
		return starling.Errorf(starling.Invalid, op, "calls %d: use 1 or more", c.CallMin)
	case !(c.Headroom >= 0 && c.Headroom <= 10):
		return starling.Errorf(starling.Invalid, op, "headroom %v: use 0-10", c.Headroom)
	case !(c.Slower >= 0 && c.Slower <= 100):
		return starling.Errorf(starling.Invalid, op, "slower %v: use 0-100", c.Slower)
	}
	return nil
}

// An Observation is what calls of one version used at one memory size.
type Observation struct {
	MemoryMiB   int
	Timeout     time.Duration
	Calls       uint64
	OutOfMemory uint64        // of Calls: ended because the memory was used up
	Run         time.Duration // mean
	RunP99      time.Duration
	CPU         time.Duration // mean over CPUCalls
	CPUCalls    uint64        // calls whose CPU was measured
	Demand      float64       // CPUs an instance used on average while it was called
	PeakP99     int64         // bytes; 0 when unknown
	PeakMax     int64         // bytes, at least PeakP99
}

// A Size is one memory size and what the observed calls would have cost there.
type Size struct {
	MemoryMiB  int           `json:"memoryMiB"`
	CPU        float64       `json:"cpu"` // CPUs that follow from the memory
	Fits       bool          `json:"fits"`
	Run        time.Duration `json:"runNanos"` // predicted mean
	RunP99     time.Duration `json:"runP99Nanos"`
	GiBSeconds float64       `json:"gibSeconds"` // over the observed calls
}

// A Verdict is the short form of an advice.
type Verdict string

// Verdicts.
const (
	Unknown Verdict = "unknown" // too little was seen; Reason says of what
	Keep    Verdict = "keep"
	Shrink  Verdict = "shrink"
	Grow    Verdict = "grow"
)

// An Advice is what to do with the memory of one version.
type Advice struct {
	Verdict    Verdict `json:"verdict"`
	Reason     string  `json:"reason"`
	Confidence string  `json:"confidence"` // none, low, fair or good: by the number of calls
	NeedMiB    int     `json:"needMiB"`    // the least that holds the peaks
	Now        Size    `json:"now"`
	Best       Size    `json:"best"`
	Saves      float64 `json:"savesGiBSeconds"` // over the observed calls; negative for memory that is lacking
	SavesShare float64 `json:"savesShare"`      // of what they cost now
	Sizes      []Size  `json:"sizes"`           // half, now, best, double and one whole CPU, by size
}

const (
	step     = 64   // MiB between the sizes that are tried
	worth    = 0.05 // a change that saves a smaller share is noise
	cpuMin   = 20   // calls with measured CPU below which a duration cannot be predicted
	mib      = 1 << 20
	oomGrows = 2 // memory that ran out is asked for so many times
)

// For returns the advice for an observation.
func For(o Observation, c Config) Advice {
	a := Advice{Verdict: Unknown, Confidence: confidence(o.Calls, c.CallMin)}
	switch {
	case o.Calls < c.CallMin:
		a.Reason = fmt.Sprintf("only %d calls were seen, %d are needed", o.Calls, c.CallMin)
	case o.Run <= 0 || o.PeakP99 <= 0:
		a.Reason = "the peak of memory is not known on this host"
	case o.CPUCalls < cpuMin:
		a.Reason = fmt.Sprintf("the CPU of only %d calls is known, %d are needed", o.CPUCalls, cpuMin)
	}
	if a.Reason != "" {
		return a
	}
	m := modelOf(o)
	a.NeedMiB = need(o, c)
	a.Now = m.size(o.MemoryMiB, a.NeedMiB)
	a.Best = best(m, a.Now, a.NeedMiB, c)
	a.Saves = a.Now.GiBSeconds - a.Best.GiBSeconds
	a.SavesShare = a.Saves / a.Now.GiBSeconds
	a.Verdict, a.Reason = words(o, a)
	for _, mem := range []int{o.MemoryMiB / 2, o.MemoryMiB, a.Best.MemoryMiB, o.MemoryMiB * 2, starling.MemoryOfCPU} {
		mem = min(max(mem, starling.MemoryMinMiB), starling.MemoryMaxMiB)
		a.Sizes = append(a.Sizes, m.size(mem, a.NeedMiB))
	}
	slices.SortFunc(a.Sizes, func(x, y Size) int { return x.MemoryMiB - y.MemoryMiB })
	a.Sizes = slices.CompactFunc(a.Sizes, func(x, y Size) bool { return x.MemoryMiB == y.MemoryMiB })
	return a
}

func confidence(calls, least uint64) string {
	switch {
	case calls < least:
		return "none"
	case calls < 1000:
		return "low"
	case calls < 10_000:
		return "fair"
	}
	return "good"
}

// need returns the least memory that holds every peak that was seen and leaves headroom over their p99.
func need(o Observation, c Config) int {
	bytes := max(float64(o.PeakP99)*(1+c.Headroom), float64(o.PeakMax))
	n := int(math.Ceil(bytes/mib/step)) * step
	if o.OutOfMemory > 0 {
		n = max(n, oomGrows*o.MemoryMiB)
	}
	return min(max(n, starling.MemoryMinMiB), starling.MemoryMaxMiB)
}

// best returns the size with the fewest GiB-seconds among those that hold the peaks, are quick enough and end before
// the timeout. Memory that ran out is asked for whatever it costs; otherwise only a saving that is worth it changes the size.
func best(m model, now Size, need int, c Config) Size {
	if m.o.OutOfMemory > 0 {
		return m.size(need, need)
	}
	limit := time.Duration(float64(now.Run) * (1 + c.Slower))
	out := now
	for mem := need; mem <= starling.MemoryMaxMiB; mem += step {
		s := m.size(mem, need)
		if s.Run <= limit && (s.RunP99 < m.o.Timeout || s.RunP99 <= now.RunP99) && s.GiBSeconds < out.GiBSeconds {
			out = s
		}
	}
	if out.GiBSeconds > now.GiBSeconds*(1-worth) {
		return now
	}
	return out
}

func words(o Observation, a Advice) (Verdict, string) {
	peak := float64(o.PeakMax) / mib
	switch {
	case o.OutOfMemory > 0 && a.Best.MemoryMiB > o.MemoryMiB:
		return Grow, fmt.Sprintf("%d calls ran out of memory", o.OutOfMemory)
	case o.OutOfMemory > 0:
		return Keep, fmt.Sprintf("%d calls ran out of memory, and there is no more to give", o.OutOfMemory)
	case a.Best.MemoryMiB < o.MemoryMiB:
		return Shrink, fmt.Sprintf("at most %.0f MiB were used", peak)
	case a.Best.MemoryMiB > o.MemoryMiB:
		return Grow, "more memory brings more CPU, and the calls end so much sooner that they cost less"
	case a.NeedMiB > o.MemoryMiB:
		return Keep, fmt.Sprintf("%.0f MiB were used, file cache included, and no call ran out", peak)
	case a.NeedMiB+step > o.MemoryMiB:
		return Keep, "the memory fits"
	}
	return Keep, "less memory brings less CPU: calls would become too slow, or cost as much"
}
