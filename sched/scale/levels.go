package scale

import (
	"math"
	"math/bits"
	"time"
)

const (
	ages       = 12                     // bins of idle time of a level: octaves from 2 s, the last from 4096 s on
	groups     = 6                      // of levels: 2, 3-4, 5-8, 9-16, 17-32 and those above
	steps      = 7                      // of a skyline; then the two that are most alike become one
	tick       = 100 * time.Millisecond // in which a skyline counts
	levelAge   = 2 << (ages - 1)        // seconds; a level that was not used for longer is forgotten
	levelMax   = 128                    // samples of a group; then all are halved
	levelPrior = 0.05                   // of a group never seen: the weight of each bin, and of eight beyond the last
	aheadShare = 0.2                    // of activities that grow on: starts go ahead of them
	levelAdd   = 16                     // levels that count at once: a burst is one event, however wide
)

// levels is what a version learned of its instances beside the first. Level k is in use while k instances or more
// are. The least recently used instance goes first, so each level is a place of its own in a cache: idle from when
// fewer are needed until so many are again. Levels above the one in use are idle for the longer the higher they are,
// so a few steps say since when each of a thousand is; how long such idling lasts is a histogram for each octave of levels.
type levels struct {
	at    [steps]uint32 // ticks; the steps, highest level first
	top   [steps]uint16
	hits  [groups][ages]uint8 // idle times that ended in use
	peaks [groups + 1]uint8   // activities by the group of their highest level, from level 1
	n     uint8               // steps
}

func groupOf(level int) int { return min(bits.Len(uint(level-1)), groups) - 1 }

// peakOf returns the place of an activity's highest level in peaks.
func peakOf(n int) int { return min(bits.Len(uint(max(n, 1)-1)), groups) }

// lastOf returns the highest level of a group.
func lastOf(group int) int {
	if group == groups-1 {
		return math.MaxInt
	}
	return 2 << group
}

func ageOf(seconds float64) int {
	return min(max(int(math.Log2(max(seconds, 1)))-1, 0), ages-1)
}

// see notes that n instances are in use at now, and learns how long those that were not were idle.
func (s *levels) see(now time.Duration, n int) {
	if n < 1 {
		return
	}
	n = min(n, math.MaxUint16)
	at := uint32(now / tick)
	for s.n > 0 && s.age(0, at) >= levelAge { // never again, as far as we could see
		below := 1
		if s.n > 1 {
			below = int(s.top[1])
		}
		s.learn(below, int(s.top[0]), levelAge)
		s.remove(0)
	}
	below := 1
	for s.n > 0 {
		last := int(s.n) - 1
		top := int(s.top[last])
		s.learn(below, min(top, n), s.age(last, at))
		below = max(below, min(top, n))
		if top > n {
			break
		}
		s.n--
	}
	if s.n == steps {
		s.merge(at)
	}
	s.at[s.n], s.top[s.n] = at, uint16(n)
	s.n++
}

// ended learns that an activity used n instances at once.
func (s *levels) ended(n int) {
	g := peakOf(n)
	if s.peaks[g]++; s.peaks[g] == 64 {
		for k := range s.peaks {
			s.peaks[k] /= 2
		}
	}
}

// ahead returns how many instances an activity that has used n may well use: the end of the highest octave that at
// least aheadShare of those as large as it reached. One more that stopped here is counted, so that one alone proves little.
func (s *levels) ahead(n int) int {
	g := peakOf(n)
	all := 0
	for k := g; k <= groups; k++ {
		all += int(s.peaks[k])
	}
	left := all
	for k := g; k < groups; k++ {
		left -= int(s.peaks[k])
		if float64(left) < aheadShare*(float64(all)+1) {
			break
		}
		n = 2 << k
	}
	return n
}

// age returns since when the levels of step k are idle, seconds.
func (s *levels) age(k int, at uint32) float64 { return float64(at-s.at[k]) * tick.Seconds() }

func (s *levels) remove(k int) {
	copy(s.at[k:], s.at[k+1:])
	copy(s.top[k:], s.top[k+1:])
	s.n--
}

// merge makes one of the two neighbours whose ages differ by the smallest factor: the higher levels pass for as young as the lower.
func (s *levels) merge(at uint32) {
	best, least := 0, math.Inf(1)
	for k := range steps - 1 {
		if f := (s.age(k, at) + 2) / (s.age(k+1, at) + 2); f < least {
			best, least = k, f
		}
	}
	s.top[best+1] = s.top[best]
	s.remove(best)
}

// learn notes that the levels above below, up to top, were idle for so many seconds.
func (s *levels) learn(below, top int, seconds float64) {
	if seconds < 2 {
		return
	}
	for below < top {
		g := groupOf(below + 1)
		end := min(top, lastOf(g))
		h := &s.hits[g]
		h[ageOf(seconds)] += uint8(min(end-below, levelAdd))
		below = end
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		if sum > levelMax {
			for k := range h {
				h[k] /= 2
			}
		}
	}
}

// held returns how many instances are worth keeping, at least 1, and after how many seconds at the latest that may change.
func (s *levels) held(now time.Duration, worth float64) (n int, again float64) {
	at := uint32(now / tick)
	n, again = 1, nothing
	for k := int(s.n) - 1; k >= 0; k-- {
		age := s.age(k, at)
		for top := int(s.top[k]); n < top; {
			g := groupOf(n + 1)
			until := s.until(g, age, worth)
			if until <= age {
				return n, again
			}
			n, again = min(top, lastOf(g)), min(again, until-age)
		}
	}
	return n, again
}

// until returns up to which age a level of a group is worth keeping that is idle for age seconds; below age when it
// is not. It is the rule of gaps.hold, but a span that does not pay is bridged where what follows pays for it: there are
// too few samples for a finer one.
func (s *levels) until(group int, age, worth float64) float64 {
	h := &s.hits[group]
	first := ageOf(age)
	left := float64(h[ages-1]) + levelPrior*8
	gain := 0.0
	end := 0.0
	for b := ages - 2; b >= first; b-- {
		hits := float64(h[b]) + levelPrior
		width := float64(int(2) << b)
		idling := (left + hits/2) * width
		left += hits
		if gain = max(gain, 0) + hits*worth - idling; gain <= 0 {
			end = 0
		} else if end == 0 {
			end = 2 * width
		}
	}
	return end
}
