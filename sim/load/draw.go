package load

import (
	"math"
	"math/rand/v2"
	"time"
)

// A draw turns the 16 bytes of state of one function into random numbers. A generator of its own for each function
// keeps a function's calls the same whatever other functions there are; one rand.Rand over them all keeps that cheap.
type draw struct {
	*rand.Rand
	of *rand.PCG
}

func newDraw() *draw {
	d := &draw{}
	d.Rand = rand.New(d)
	return d
}

// Uint64 makes draw a rand.Source.
func (d *draw) Uint64() uint64 { return d.of.Uint64() }

// from continues with the state of one function.
func (d *draw) from(s *rand.PCG) *draw {
	d.of = s
	return d
}

// wait draws the time to the next of events that come at perSecond on average, independent of each other.
func (d *draw) wait(perSecond float64) time.Duration {
	return seconds(d.ExpFloat64() / perSecond)
}

// lognormal draws from the log-normal distribution with this median; sigma is of the logarithm.
func (d *draw) lognormal(median time.Duration, sigma float64) time.Duration {
	return time.Duration(min(float64(median)*math.Exp(sigma*d.NormFloat64()), float64(forever)))
}

// forever is later than every call of a load, and far enough from overflow to be added to.
const forever = time.Duration(1) << 61

// seconds is a duration of at least one nanosecond, so that time always advances, and at most forever.
func seconds(s float64) time.Duration {
	return time.Duration(max(1, min(s*float64(time.Second), float64(forever))))
}

// curve is a piecewise linear function of x in [0, 1] through points with rising x.
type curve [][2]float64

func (c curve) at(x float64) float64 {
	for i := 1; i < len(c); i++ {
		if a, b := c[i-1], c[i]; x <= b[0] {
			return a[1] + (b[1]-a[1])*(x-a[0])/(b[0]-a[0])
		}
	}
	return c[len(c)-1][1]
}
