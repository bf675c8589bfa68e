package flow

import (
	"math"
	"slices"
	"time"

	"starling"
)

// Window is how often a Shedder decides.
const Window = 100 * time.Millisecond

// How fast a Shedder follows: it gives way at once, and takes back slowly, so that it does not swing.
const (
	giveWay      = 0.9  // of what was served, when that was a little too much
	giveWayMost  = 0.7  // when it was far too much
	leastIn      = 0.1  // of what is asked is always let in: where others load the machine, refusing more helps nobody
	giveWayFirst = 0.4  // at first, where nothing was refused yet: what was let in is waiting already
	shrinks      = 0.85 // of the pressure before: a queue that is gone leaves far less of it in a window, noise does not
	takeBack     = 1.02 // of what is let in, when the node had time left
	takeBackMost = 1.1  // when it had most of its time left
	easy         = 0.75 // pressure below which it has; between this and 1 the right amount is found and kept
	slow         = 0.05 // weight of the newest window in the pressure that has to be easy: the mean of about two seconds
	patience     = 2    // windows with too much before anybody is refused
	loud         = 4    // times what the median account asks: who asks for less is never refused
	few          = 50   // calls of an account in a window that are never refused: some hundredths of what one processor passes on
	jump         = 2    // times its usual calls: an account that asks for more has begun to
	calmMax      = 20   // windows with room for everybody before it stops deciding
	smooth       = 0.3  // weight of the newest window in a demand
)

// A Demand is what one function asked of a node in the last Window.
type Demand struct {
	Function starling.FunctionRef
	Arrived  int     // calls
	Admitted int     // those let in
	Usual    float64 // calls in a window, of about the last second; Surge reads it
	rate     float64
}

// A Portion is how many calls of a function are let in during the next Window, and which part of what it asked that is, in [0, 1].
type Portion struct {
	Function starling.FunctionRef
	Calls    float64
	Admit    float64
}

// A Shedder decides which calls an overloaded node takes. What the node can do is found by trying: too much is followed
// by a tenth less than was served, the rest by slightly more. That capacity is divided max-min fair among accounts, and
// an account's part among its functions, by what each asks: whoever asks for less than his share gets all of it, and
// the excess of the others is refused, the heavier the likelier.
//
// Additive in the small, multiplicative in the large, as DAGOR does (Zhou et al., Overload Control for Scaling WeChat
// Microservices, SoCC 2018), with fair shares in place of its business priorities.
type Shedder struct {
	capacity float64 // calls in a window; 0 while everybody is let in
	hot      int     // windows in a row with too much
	calm     int     // windows in a row with room for everybody
	last     float64 // pressure of the window before
	lasting  float64 // pressure of about the last two seconds
	rates    map[starling.FunctionRef]float64
}

// less is the part of what was served that is taken as capacity at a pressure of 1 and more, most at least.
func less(pressure, most float64) float64 { return min(max(1/pressure, most), giveWay) }

// Active reports whether somebody may be refused.
func (s *Shedder) Active() bool { return s.capacity > 0 }

// Decide takes the last window: how loaded the node was (1 and more is too much) and what was asked, in any order, each
// function once. It returns the shares of functions that are not let in whole, ordered by function.
func (s *Shedder) Decide(pressure float64, ds []Demand) []Portion {
	arrived, admitted := 0.0, 0
	ds = inOrder(ds)
	rates := make(map[starling.FunctionRef]float64, len(ds))
	for i := range ds {
		d := &ds[i]
		d.rate = float64(d.Arrived)
		if was, ok := s.rates[d.Function]; ok {
			d.rate = smooth*d.rate + (1-smooth)*was
		}
		rates[d.Function] = d.rate
		arrived += d.rate
		admitted += d.Admitted
	}
	s.rates = rates
	if pressure >= 1 {
		s.hot++
	} else {
		s.hot = 0
	}
	accounts := byAccount(ds)
	least := max(leastIn*arrived, moderate(accounts), 1)
	switch {
	case pressure >= 1 && !s.Active() && s.hot < patience:
	case pressure >= 1 && !s.Active():
		s.capacity = max(less(pressure, giveWayFirst)*float64(admitted), least)
	case pressure >= 1 && pressure < shrinks*s.last:
		// A queue that shrinks is on its way: taking away more would starve the node once it is gone.
	case pressure >= 1:
		s.capacity = max(less(pressure, giveWayMost)*min(float64(admitted), s.capacity), least)
	case s.Active() && max(pressure, s.lasting) < easy/2:
		s.capacity = takeBackMost*s.capacity + 1
	case s.Active() && max(pressure, s.lasting) < easy:
		s.capacity = takeBack*s.capacity + 1
	}
	s.last = pressure
	s.lasting += slow * (pressure - s.lasting)
	if s.Active() {
		s.capacity = max(s.capacity, least)
	}
	if s.Active() && s.capacity >= arrived {
		if s.calm++; s.calm > calmMax {
			s.capacity, s.calm = 0, 0
		}
		return nil
	}
	s.calm = 0
	if !s.Active() {
		return nil
	}
	return divide(s.capacity, arrived, accounts, ds)
}

// Surge takes what was asked in a window that has not ended, at an instant when processors are queued for. Where an account has just
// begun to ask for far more than it used to, and than others do, it is held at once to what it may have at least, and the
// Shedder goes on from there: what such an account sends before windows have shown too much and a capacity is found is a
// queue in which everybody waits. Who asks for no more than usual is not held, nor is anybody while the Shedder is at work.
func (s *Shedder) Surge(ds []Demand) []Portion {
	if s.Active() {
		return nil
	}
	ds = inOrder(ds)
	arrived, rates := 0.0, make(map[starling.FunctionRef]float64, len(ds))
	for i := range ds {
		d := &ds[i]
		d.rate = max(float64(d.Arrived), d.Usual)
		rates[d.Function] = d.rate
		arrived += d.rate
	}
	accounts := byAccount(ds)
	most := mostOf(accounts)
	if len(accounts) < 2 || !slices.ContainsFunc(accounts, func(a asks) bool { return a.rate > most && a.rate > jump*a.usual }) {
		return nil
	}
	s.capacity, s.rates = max(moderate(accounts), 1), rates
	return divide(s.capacity, arrived, accounts, ds)
}

// inOrder returns ds ordered by function: sums of floats depend on the order.
func inOrder(ds []Demand) []Demand {
	ds = slices.Clone(ds)
	slices.SortFunc(ds, func(a, b Demand) int { return compareRefs(a.Function, b.Function) })
	return ds
}

// grain is the unit of division: shares are exact to a thousandth of a call.
const grain = 1000

// Sum adds the demands of b to those of a by function, so that each function is there once. It may change a.
func Sum(a, b []Demand) []Demand {
	if len(b) == 0 {
		return a
	}
	at := make(map[starling.FunctionRef]int, len(a))
	for i := range a {
		at[a[i].Function] = i
	}
	for _, d := range b {
		if i, ok := at[d.Function]; ok {
			a[i].Arrived += d.Arrived
			a[i].Admitted += d.Admitted
		} else {
			a = append(a, d)
		}
	}
	return a
}

// moderate returns what is asked, in calls of a window, without what single accounts ask beyond a few times the median, or few. Refusing
// protects accounts from one that is far louder. Among accounts of one size, and for one alone, it would only turn slow
// answers into none: their limits and the queues are what bounds them.
func moderate(accounts []asks) float64 {
	most, sum := mostOf(accounts), 0.0
	for _, a := range accounts {
		sum += min(a.rate, most)
	}
	return sum
}

// mostOf returns what an account may ask in a window without being a loud one.
func mostOf(accounts []asks) float64 {
	rates := make([]float64, 0, len(accounts))
	for _, a := range accounts {
		if a.rate > 0 {
			rates = append(rates, a.rate)
		}
	}
	if len(rates) == 0 {
		return few
	}
	slices.Sort(rates)
	return max(loud*rates[(len(rates)-1)/2], few)
}

// asks is what one account asks: the demands from one index up to another.
type asks struct {
	from, to int
	rate     float64
	usual    float64
}

// byAccount returns what each account asks; ds is in order.
func byAccount(ds []Demand) []asks {
	var out []asks
	for i := range ds {
		if i == 0 || ds[i].Function.Account != ds[i-1].Function.Account {
			out = append(out, asks{from: i})
		}
		a := &out[len(out)-1]
		a.to, a.rate, a.usual = i+1, a.rate+ds[i].rate, a.usual+ds[i].Usual
	}
	return out
}

// divide gives each account its fair part of capacity, and each function its fair part of that. Who asks for no more
// than the mean of all accounts, or for few, has all of it: a frontend that sees one tenant whole, and of the others only what
// they send to its machine, would take that one for a loud one when others load the machine.
func divide(capacity, arrived float64, accounts []asks, ds []Demand) []Portion {
	wants, parts := make([]int, len(accounts)), make([]int, len(accounts))
	for k, a := range accounts {
		wants[k] = units(a.rate)
	}
	Fair(units(capacity), wants, parts)
	var out []Portion
	for k, a := range accounts {
		if parts[k] >= wants[k] || a.rate <= max(arrived/float64(len(accounts)), few) {
			continue
		}
		asks, gets := make([]int, a.to-a.from), make([]int, a.to-a.from)
		for i := range asks {
			asks[i] = units(ds[a.from+i].rate)
		}
		Fair(parts[k], asks, gets)
		for i, n := range gets {
			if n < asks[i] {
				out = append(out, Portion{ds[a.from+i].Function, float64(n) / grain, float64(n) / float64(asks[i])})
			}
		}
	}
	return out
}

func units(calls float64) int { return int(math.Ceil(calls * grain)) }

func compareRefs(a, b starling.FunctionRef) int {
	switch {
	case a.Account < b.Account || a.Account == b.Account && a.Name < b.Name:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// Jain returns Jain's index of fairness of xs: 1 when all are equal, 1/n when one has everything (Jain, Chiu, Hawe,
// A Quantitative Measure of Fairness, 1984). It is 1 for nothing.
func Jain(xs []float64) float64 {
	sum, squares := 0.0, 0.0
	for _, x := range xs {
		sum += x
		squares += x * x
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (float64(len(xs)) * squares)
}
