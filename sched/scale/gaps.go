package scale

import "math"

// The bins of idle time: four to an octave from one second up to eighteen hours.
const (
	gapBins   = 64
	perOctave = 4
	gapsMax   = 128 // samples; then all are halved, so that a function may change its habits
	oddsMax   = 3   // gaps in a row beside the period, then a new one is tried
)

// prior is the weight of what is believed of a function that was never seen: every bin, and sixteen beyond the last,
// is as likely as every other. Half of all functions of a public cloud are called less than once an hour, and a few
// all the time (Shahrad et al., Serverless in the Wild, ATC 2020): over eight orders of magnitude the logarithm of
// the gap is about evenly spread.
const prior = 1.0 / (gapBins + 16)

var (
	edges   [gapBins + 1]float64 // where bins begin, seconds
	kernel  = [13]float64{1. / 49, 2. / 49, 3. / 49, 4. / 49, 5. / 49, 6. / 49, 7. / 49, 6. / 49, 5. / 49, 4. / 49, 3. / 49, 2. / 49, 1. / 49}
	nothing = math.Inf(1)
)

func init() {
	for k := range edges {
		edges[k] = math.Exp2(float64(k) / perOctave)
	}
}

// gaps is what a version learned of the time from one arrival to the next: a histogram, and beside it one period with
// its deviation, because the calls of a timer come in a window a hundred times narrower than a bin. 80 bytes.
type gaps struct {
	bins   [gapBins]uint8
	beyond uint8   // longer than the last bin
	near   uint8   // at the period
	odds   uint8   // in a row that were not at the period
	total  uint8   // of all above but odds
	period float32 // seconds; 0 before the first gap
	spread float32 // mean distance from period, seconds
}

func binOf(t float64) int { return int(perOctave * math.Log2(t)) }

// add learns a gap of t seconds, at least 1.
func (g *gaps) add(t float64) {
	if g.total >= gapsMax {
		g.halve()
	}
	g.total++
	p := float64(g.period)
	if off := math.Abs(t - p); p > 0 && off <= p/16+0.5 {
		g.near++
		g.odds = 0
		g.period += float32(t-p) / 4
		g.spread += (float32(off) - g.spread) / 4
		return
	}
	g.put(t, 1)
	if g.odds++; p == 0 || g.near == 0 || g.odds >= oddsMax {
		if p > 0 {
			g.put(p, g.near)
		}
		g.near, g.odds = 0, 0
		g.period, g.spread = float32(t), float32(t/32)
	}
}

func (g *gaps) put(t float64, n uint8) {
	if k := binOf(t); k < gapBins {
		g.bins[k] += n // total bounds it
	} else {
		g.beyond += n
	}
}

func (g *gaps) halve() {
	g.near /= 2
	g.beyond /= 2
	g.total = g.near + g.beyond
	for k := range g.bins {
		g.bins[k] /= 2
		g.total += g.bins[k]
	}
}

// window returns when after the last call the period lets the next one come, from and to in seconds. Both are
// infinite when there is no period worth a wait.
func (g *gaps) window(worth float64) (from, to float64) {
	if g.near < 1 {
		return nothing, nothing
	}
	half := 3*float64(g.spread) + 0.25
	longer := float64(g.beyond)
	for k := min(binOf(float64(g.period))+1, gapBins); k < gapBins; k++ {
		longer += float64(g.bins[k])
	}
	if n := float64(g.near); n*worth < (n/2+longer+float64(g.odds))*2*half {
		return nothing, nothing
	}
	return float64(g.period) - half, float64(g.period) + half
}

// hold reports whether an instance is worth keeping t seconds after the last call, and up to which second that stays
// so; infinite when it does for ever. worth is how many seconds of idling one spared cold start is worth.
//
// Keeping through a span pays when P(the next call comes in it) × worth ≥ the idling expected in it. That is a bound
// on the hazard rate of the gap, the same for all functions: no other division of the same memory among functions
// spares more cold starts. Percentiles per function (the hybrid histogram) hold the popular and the rare alike.
func (g *gaps) hold(t, worth float64) (keep bool, until float64) {
	from, to := g.window(worth)
	if t >= from && t < to {
		return true, to
	}
	t = max(t, 1)
	k := binOf(t)
	left, rest := g.after(k)
	for first := k; k < gapBins; k++ {
		width := edges[k+1] - edges[k]
		hits := prior + g.smooth(k)
		left -= float64(g.bins[k])
		rest -= prior
		idling := (left + rest + hits/2) * width
		if from > edges[k] {
			idling += float64(g.near) * width
		}
		switch now := hits*worth >= idling; {
		case k == first:
			keep = now
		case now != keep:
			return g.cut(keep, t, edges[k], from)
		}
	}
	return g.cut(keep, t, nothing, from)
}

// cut ends a span of releasing where the period begins.
func (g *gaps) cut(keep bool, t, until, from float64) (bool, float64) {
	if !keep && from > t && from < until {
		until = from
	}
	return keep && t < edges[gapBins], until
}

// after returns how many samples, and how much of the prior, lie in bin k and beyond.
func (g *gaps) after(k int) (left, rest float64) {
	left = float64(g.beyond)
	for j := k; j < gapBins; j++ {
		left += float64(g.bins[j])
	}
	return left, prior * float64(gapBins+16-k)
}

// smooth returns the samples of bin k spread over its neighbours: few samples leave holes that mean nothing.
func (g *gaps) smooth(k int) float64 {
	sum := 0.0
	for j, w := range kernel {
		if b := k + j - len(kernel)/2; b >= 0 && b < gapBins {
			sum += w * float64(g.bins[b])
		}
	}
	return sum
}
