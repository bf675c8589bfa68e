package rival

import (
	"math"
	"time"

	"starling/sched/scale"
)

// Hybrid is the hybrid histogram policy (Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 4): a
// histogram of a function's idle times says when to unload it, when to load it before the next call and how long to
// keep it then. Where the histogram does not represent the function, a long keep-alive rules.
//
// Two things differ from the paper. Idle times beyond the histogram's range go to an ARIMA forecast there and to the
// keep-alive here: in the paper that concerns the rarest functions, whose calls are cold either way. And functions are
// managed alone, not as part of their application, as ours are.
type Hybrid struct {
	Bin        time.Duration // width of a bin
	Bins       int           // at most 240
	Head, Tail float64       // percentiles that bound the next call, as shares
	Margin     float64       // load so much earlier and keep so much longer, as a share
	Variation  float64       // least coefficient of variation of the bins' counts; below, all idle times are alike
	Samples    int           // idle times before the histogram counts at all
	Outside    float64       // at most this share of idle times is beyond the range
}

// DefaultHybrid returns the paper's settings: 4 h in bins of one minute, 5th and 99th percentile, margin 10 %,
// variation 2. It gives no number for Samples and Outside; ours are the smallest that mean something.
func DefaultHybrid() Hybrid {
	return Hybrid{Bin: time.Minute, Bins: 240, Head: 0.05, Tail: 0.99, Margin: 0.1, Variation: 2, Samples: 5, Outside: 0.5}
}

// New returns the histogram of one function.
func (h Hybrid) New(scale.Facts) scale.Governor {
	return &hybrid{cfg: h, counts: make([]uint32, h.Bins), last: -1}
}

type hybrid struct {
	cfg     Hybrid
	counts  []uint32
	total   int
	squares float64 // of the counts, summed
	outside int     // idle times beyond the range
	flight  flight
	last    time.Duration // since when nothing is in flight; below 0 before the first call
}

// Note learns an idle time from the call that ends it.
func (g *hybrid) Note(now time.Duration, d scale.Demand) {
	idle := g.flight.calls == 0
	g.flight.note(now, d)
	if d.Arrivals > 0 && idle && g.last >= 0 {
		g.learn(now - g.last)
	}
	if !idle || d.Arrivals > 0 {
		g.last = now
	}
}

func (g *hybrid) learn(idle time.Duration) {
	b := int(idle / g.cfg.Bin)
	if b >= len(g.counts) {
		g.outside++
		return
	}
	g.squares += float64(2*g.counts[b] + 1)
	g.counts[b]++
	g.total++
}

// Plan keeps what works, and once nothing does, what the windows say.
func (g *hybrid) Plan(now time.Duration, l scale.Load) scale.Plan {
	load, keep := g.windows()
	if l.Waiting+l.Busy+g.flight.calls > 0 {
		// How long they will be idle is asked when they are: within a moment, so that they are unloaded in time.
		return scale.Plan{Want: onDemand(l), Keep: l.Ready + l.Starting, Again: 900 * time.Millisecond}
	}
	there := l.Ready + l.Starting
	switch idle := now - g.last; {
	case g.last < 0 || idle >= load+keep:
		return scale.Plan{}
	case idle < load:
		return scale.Plan{Again: load - idle}
	default:
		return scale.Plan{Want: max(there, 1), Keep: max(there, 1), Again: load + keep - idle}
	}
}

// windows returns how long after the last call to load the function, 0 for not to unload it, and how long to keep
// it from then on.
func (g *hybrid) windows() (load, keep time.Duration) {
	all := g.total + g.outside
	if all < g.cfg.Samples || float64(g.outside) > g.cfg.Outside*float64(all) || g.variation() < g.cfg.Variation {
		return 0, g.cfg.Bin * time.Duration(len(g.counts))
	}
	head, tail := g.percentile(g.cfg.Head), g.percentile(g.cfg.Tail)+1 // head down, tail up to the edge of its bin
	load = time.Duration(float64(g.cfg.Bin) * float64(head) * (1 - g.cfg.Margin))
	return load, time.Duration(float64(g.cfg.Bin)*float64(tail)*(1+g.cfg.Margin)) - load
}

// variation is the standard deviation of the bins' counts over their mean.
func (g *hybrid) variation() float64 {
	n := float64(len(g.counts))
	mean := float64(g.total) / n
	if mean == 0 {
		return 0
	}
	return math.Sqrt(g.squares/n-mean*mean) / mean
}

// percentile returns the bin in which a share of the idle times is reached.
func (g *hybrid) percentile(share float64) int {
	need := max(uint32(math.Ceil(share*float64(g.total))), 1)
	sum := uint32(0)
	for b, c := range g.counts {
		if sum += c; sum >= need {
			return b
		}
	}
	return len(g.counts) - 1
}
