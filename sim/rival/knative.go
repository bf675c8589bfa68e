package rival

import (
	"math"
	"time"

	"starling/sched/scale"
)

// Knative is the rule of the Knative Pod Autoscaler, as its documents state it (knative.dev, "Configuring the
// autoscaler" and the serving repository's docs/scaling/SYSTEM.md): instances follow the calls in flight averaged over
// a stable window; when the average over a panic window needs twice what is there, the panic window rules and nothing
// is scaled down until a stable window has passed without that.
type Knative struct {
	Stable, Panic    time.Duration // windows; Stable is at most 60 s
	Target           float64       // wanted calls in flight of an instance, as a share of its slots
	PanicAt          float64       // panic when the panic window needs so many times what is ready
	UpRate, DownRate float64       // most growth and shrinking between two decisions, as factors
	Tick             time.Duration // between two decisions
	ZeroGrace        time.Duration // the last instance goes so long after the decision
}

// DefaultKnative returns the published defaults. The grace is an upper bound in the documents and taken in full.
func DefaultKnative() Knative {
	return Knative{Stable: 60 * time.Second, Panic: 6 * time.Second, Target: 0.7, PanicAt: 2, UpRate: 1000, DownRate: 2,
		Tick: 2 * time.Second, ZeroGrace: 30 * time.Second}
}

// New returns the autoscaler of one revision.
func (k Knative) New(v scale.Facts) scale.Governor {
	return &knative{cfg: k, each: k.Target * float64(max(v.Slots, 1))}
}

const buckets = 64 // seconds of history, above the stable window

type knative struct {
	cfg     Knative
	each    float64 // wanted calls in flight of one instance
	flight  flight
	history [buckets]float64 // calls in flight × seconds, by second
	second  int64            // the newest in history
	want    int
	next    time.Duration // decision
	panic   time.Duration // since when the last reason to panic; 0 for none
	most    int           // wanted during the panic
	zero    time.Duration // since when nothing is wanted; 0 while something is
}

// Note adds to the second that is now.
func (g *knative) Note(now time.Duration, d scale.Demand) {
	before := g.flight.at
	g.forward(int64(now / time.Second))
	integral := g.flight.note(now, d)
	if span := now - before; span > time.Second { // nothing was told for longer: it is spread over that time
		n := min(int64(span/time.Second), buckets-1)
		for i := range n {
			g.history[(g.second-i)%buckets] += integral / float64(n)
		}
		return
	}
	g.history[g.second%buckets] += integral
}

// forward empties the seconds that come into the window.
func (g *knative) forward(second int64) {
	for s := max(g.second+1, second-buckets+1); s <= second; s++ {
		g.history[s%buckets] = 0
	}
	g.second = max(g.second, second)
}

// average returns the calls in flight over the last window.
func (g *knative) average(window time.Duration) float64 {
	n := min(int64(window/time.Second), g.second+1)
	sum := 0.0
	for i := range n {
		sum += g.history[(g.second-i)%buckets]
	}
	return sum / float64(n)
}

// Plan decides at every tick, and at once from nothing: the activator asks when a call comes and no instance is there.
func (g *knative) Plan(now time.Duration, l scale.Load) scale.Plan {
	if now >= g.next {
		g.decide(now, l.Ready)
		g.next = now + g.cfg.Tick
	}
	if l.Waiting > 0 && l.Ready+l.Starting == 0 {
		g.want, g.zero = max(g.want, 1), 0
	}
	if g.want == 0 && l.Ready+l.Starting > 0 {
		if g.zero == 0 {
			g.zero = now
		}
		if now-g.zero < g.cfg.ZeroGrace {
			return scale.Plan{Want: 1, Keep: 1, Again: g.next - now}
		}
	}
	if g.want == 0 && l.Ready+l.Starting+l.Busy+l.Waiting == 0 {
		return scale.Plan{}
	}
	return scale.Plan{Want: g.want, Keep: g.want, Again: g.next - now}
}

func (g *knative) decide(now time.Duration, ready int) {
	there := float64(max(ready, 1))
	bound := func(window time.Duration) float64 {
		n := math.Ceil(g.average(window) / g.each)
		return min(max(n, math.Floor(float64(ready)/g.cfg.DownRate)), math.Ceil(there*g.cfg.UpRate))
	}
	stable, panicked := bound(g.cfg.Stable), bound(g.cfg.Panic)
	switch {
	case panicked >= g.cfg.PanicAt*there:
		if g.panic == 0 {
			g.most = 0
		}
		g.panic = now
	case g.panic > 0 && now-g.panic > g.cfg.Stable:
		g.panic = 0
	}
	g.want = int(stable)
	if g.panic > 0 {
		g.most = max(g.most, int(panicked), ready)
		g.want = g.most
	}
	if g.want > 0 {
		g.zero = 0
	}
}
