package rival

import (
	"math"
	"time"

	"starling/sched/scale"
)

// Threshold is the rule of KEDA over the Kubernetes Horizontal Pod Autoscaler (keda.sh, "Scaling Deployments";
// kubernetes.io, "Horizontal Pod Autoscaling"), of which OpenFaaS's and OpenWhisk-like rules are simpler forms: calls
// in flight for each instance above or below a target change the count in proportion, looked at now and then.
type Threshold struct {
	Target    float64       // wanted calls in flight of an instance, as a share of its slots
	Tolerance float64       // nothing changes while the ratio to Target is within 1 ± this
	Tick      time.Duration // between two looks
	UpFactor  float64       // most growth at one look, as a factor
	UpPods    int           // or by so many, whichever is more
	Settle    time.Duration // scale down only to the most that was wanted in this time
	Cooldown  time.Duration // the last instance goes when nothing was in flight for so long
}

// DefaultThreshold returns the documents' defaults; the target is Knative's, as KEDA has none.
func DefaultThreshold() Threshold {
	return Threshold{Target: 0.7, Tolerance: 0.1, Tick: 15 * time.Second, UpFactor: 2, UpPods: 4, Settle: 5 * time.Minute, Cooldown: 5 * time.Minute}
}

// New returns the scaler of one deployment.
func (t Threshold) New(v scale.Facts) scale.Governor {
	return &threshold{cfg: t, each: t.Target * float64(max(v.Slots, 1))}
}

// A wish is a recommendation and when it was made.
type wish struct {
	at time.Duration
	n  int
}

type threshold struct {
	cfg    Threshold
	each   float64
	flight flight
	sum    float64 // calls in flight × seconds since the last look
	looked time.Duration
	active time.Duration // when something was in flight last
	want   int
	wishes []wish // of the last Settle, falling: only a maximum can still matter
}

// Note adds up calls in flight.
func (g *threshold) Note(now time.Duration, d scale.Demand) {
	g.sum += g.flight.note(now, d)
	if d.Arrivals > 0 || g.flight.calls > 0 {
		g.active = now
	}
}

// Plan looks at every tick. From nothing to one KEDA goes by itself; that this takes its polling interval of 30 s is
// not held against it.
func (g *threshold) Plan(now time.Duration, l scale.Load) scale.Plan {
	if l.Ready+l.Starting == 0 {
		if l.Waiting+l.Busy == 0 {
			g.want, g.wishes = 0, g.wishes[:0]
			return scale.Plan{}
		}
		g.want, g.sum, g.looked = 1, 0, now
	}
	if now >= g.looked+g.cfg.Tick {
		g.look(now, l.Ready+l.Starting)
	}
	if now-g.active >= g.cfg.Cooldown {
		g.want = 0
	}
	return scale.Plan{Want: g.want, Keep: g.want, Again: min(g.looked+g.cfg.Tick, max(g.active+g.cfg.Cooldown, now+time.Millisecond)) - now}
}

func (g *threshold) look(now time.Duration, there int) {
	ratio := g.sum / (now - g.looked).Seconds() / g.each / float64(there)
	g.sum, g.looked = 0, now
	n := there
	if math.Abs(ratio-1) > g.cfg.Tolerance {
		n = int(math.Ceil(float64(there) * ratio))
	}
	n = min(max(n, 1), max(int(float64(there)*g.cfg.UpFactor), there+g.cfg.UpPods))
	for len(g.wishes) > 0 && g.wishes[len(g.wishes)-1].n <= n {
		g.wishes = g.wishes[:len(g.wishes)-1]
	}
	g.wishes = append(g.wishes, wish{now, n})
	for now-g.wishes[0].at > g.cfg.Settle {
		g.wishes = g.wishes[1:]
	}
	g.want = max(n, min(g.wishes[0].n, there))
}
