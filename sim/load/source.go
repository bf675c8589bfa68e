package load

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"time"
)

// A Shape is how the calls of one function come.
type Shape uint8

// Shapes of arrival. A source's Rate is the long-run average of all but Once.
const (
	Periodic Shape = iota // every 1/Rate, as a timer
	Poisson               // independent of each other, more by day than by night when Day is set
	Bursty                // bursts at independent times, of Burst calls on average, Gap apart on average
	Once                  // Burst calls evenly over Gap, at First, and never again
)

// A Source is one function and how it is called. It is 1M times in memory in the large runs: keep it small.
type Source struct {
	Function
	Shape Shape
	Day   float32       // how far the rate of Poisson and Bursty swings around its average over 24 h, in [0, 1)
	Rate  float64       // calls a second, above 0
	First time.Duration // of Periodic and Once
	Burst int32         // calls, at least 1
	Gap   time.Duration // between the calls of a burst on average; of Once: all of its calls are inside
	Exec  time.Duration // median run time of one call
	Sigma float64       // spread of run times: standard deviation of their logarithm, 0 for none
	Max   time.Duration // longest run time, 0 for none
}

// state is what of a source changes.
type state struct {
	next time.Duration
	left int32 // calls of this burst after the next one
	rng  rand.PCG
}

// generator draws the calls of many sources in the order of their times, without holding any: it keeps the next
// arrival of each source in a heap.
type generator struct {
	sources []Source
	states  []state
	order   []int32 // a heap by states[].next
	draw    *draw
	end     time.Duration
}

// Generate returns the calls of all sources before end. A source's calls depend on seed and its place in sources only.
func Generate(sources []Source, seed uint64, end time.Duration) Load {
	g := &generator{sources: sources, states: make([]state, len(sources)), order: make([]int32, 0, len(sources)), draw: newDraw(), end: end}
	for i := range sources {
		s := &g.states[i]
		s.rng.Seed(seed, uint64(i))
		g.first(i)
		if s.next < end {
			g.order = append(g.order, int32(i))
		}
	}
	heap.Init(g)
	return g
}

// Functions returns the functions of the sources, in their order.
func (g *generator) Functions() []Function {
	fs := make([]Function, len(g.sources))
	for i := range fs {
		fs[i] = g.sources[i].Function
	}
	return fs
}

// Next draws the run time of the earliest call and the arrival after it.
func (g *generator) Next() (Call, bool) {
	if len(g.order) == 0 {
		return Call{}, false
	}
	i := int(g.order[0])
	src, s := &g.sources[i], &g.states[i]
	c := Call{At: s.next, Function: int32(i), Exec: src.Exec}
	d := g.draw.from(&s.rng)
	if src.Sigma > 0 {
		c.Exec = d.lognormal(src.Exec, src.Sigma)
	}
	if src.Max > 0 {
		c.Exec = min(c.Exec, src.Max)
	}
	g.advance(src, s, d)
	if s.next < g.end {
		heap.Fix(g, 0)
	} else {
		heap.Pop(g)
	}
	return c, true
}

// first draws when the first call of a source comes.
func (g *generator) first(i int) {
	src, s := &g.sources[i], &g.states[i]
	d := g.draw.from(&s.rng)
	switch src.Shape {
	case Periodic:
		s.next = src.First
	case Once:
		s.next, s.left = src.First, src.Burst-1
	case Bursty:
		g.burst(src, s, d)
	default:
		s.next = thin(d, src.Rate, src.Day, 0)
	}
}

// advance draws when the call after the one at s.next comes.
func (g *generator) advance(src *Source, s *state, d *draw) {
	switch {
	case src.Shape == Periodic:
		s.next += seconds(1 / src.Rate)
	case src.Shape == Poisson:
		s.next = thin(d, src.Rate, src.Day, s.next)
	case s.left > 0 && src.Shape == Once:
		s.left--
		s.next += src.Gap / time.Duration(src.Burst)
	case src.Shape == Once:
		s.next = forever
	case s.left > 0:
		s.left--
		s.next += seconds(d.ExpFloat64() * src.Gap.Seconds())
	default:
		g.burst(src, s, d)
	}
}

// burst draws the next burst: its time, and its size from the geometric distribution with mean Burst.
func (g *generator) burst(src *Source, s *state, d *draw) {
	s.next = thin(d, src.Rate/float64(src.Burst), src.Day, s.next)
	if src.Burst > 1 {
		s.left = int32(min(math.Log(1-d.Float64())/math.Log(1-1/float64(src.Burst)), 1e6))
	}
}

// thin draws the next event after t of a Poisson process whose rate swings over the day, by thinning (Lewis and
// Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", 1979): candidates come at the highest rate,
// and each is kept with the share that its own instant's rate has of it.
func thin(d *draw, rate float64, day float32, t time.Duration) time.Duration {
	if day == 0 {
		return t + d.wait(rate)
	}
	swing := float64(day)
	for t < forever {
		t += d.wait(rate * (1 + swing))
		if d.Float64()*(1+swing) < Day(t, swing) {
			return t
		}
	}
	return forever
}

// Day is the factor of a rate at t after midnight: 1 on average, 1-swing at 3 in the night, 1+swing at 15.
func Day(t time.Duration, swing float64) float64 {
	return 1 - swing*math.Cos(2*math.Pi*(t-3*time.Hour).Hours()/24)
}

// Len, Less, Swap, Push and Pop make generator a heap.Interface over order.
func (g *generator) Len() int           { return len(g.order) }
func (g *generator) Less(i, j int) bool { return g.earlier(g.order[i], g.order[j]) }
func (g *generator) Swap(i, j int)      { g.order[i], g.order[j] = g.order[j], g.order[i] }
func (g *generator) Push(x any)         { g.order = append(g.order, x.(int32)) }

// Pop removes the last of order.
func (g *generator) Pop() any {
	last := g.order[len(g.order)-1]
	g.order = g.order[:len(g.order)-1]
	return last
}

// earlier breaks ties by number, so that equal seeds give equal orders.
func (g *generator) earlier(a, b int32) bool {
	if x, y := g.states[a].next, g.states[b].next; x != y {
		return x < y
	}
	return a < b
}
