// Package profile gathers what the calls of each version use: run time, CPU and the peak of memory. An instance keeps
// a [Tally], a host a [Book] of one [Profile] for each version, and profiles of several hosts merge without loss.
package profile

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/DataDog/sketches-go/ddsketch"
)

const (
	accuracy = 0.02 // relative error of a quantile
	binsMax  = 512  // of one sketch: at most 4 KiB; beyond, the lowest bins become one, so high quantiles stay exact
	countMax = 1e15 // of one bin
)

// A Sketch holds the distribution of a positive number: any quantile within 2 %, in bounded memory (DDSketch: Masson,
// Rim and Lee, VLDB 2019). In JSON it is a list of [value, count], which the next reader puts into the same bins. The
// zero Sketch is empty and ready. Not for concurrent use.
type Sketch struct{ dd *ddsketch.DDSketch }

// Add counts a value so many times. What is not a positive, finite number is left out.
func (s *Sketch) Add(value, times float64) {
	if !(value > 0 && times > 0) || math.IsInf(value, 0) || math.IsInf(times, 0) {
		return
	}
	if s.dd == nil {
		dd, err := ddsketch.LogCollapsingLowestDenseDDSketch(accuracy, binsMax)
		if err != nil {
			panic(fmt.Sprintf("the constants make no sketch: %v", err))
		}
		s.dd = dd
	}
	_ = s.dd.AddWithCount(value, times) // refuses only what is beyond 1e±300
}

// Quantile returns the value that a share q in [0, 1] of all values does not exceed, 0 without values.
func (s *Sketch) Quantile(q float64) float64 {
	if s.dd == nil {
		return 0
	}
	v, err := s.dd.GetValueAtQuantile(q)
	if err != nil {
		return 0
	}
	return v
}

// Merge adds every value of other, which stays as it is.
func (s *Sketch) Merge(other *Sketch) {
	switch {
	case other.dd == nil:
	case s.dd == nil:
		s.dd = other.dd.Copy()
	default:
		_ = s.dd.MergeWith(other.dd) // refuses only another accuracy
	}
}

// bins returns the values of the filled bins with their counts.
func (s *Sketch) bins() [][2]float64 {
	out := [][2]float64{}
	if s.dd != nil {
		s.dd.ForEach(func(value, count float64) bool { out = append(out, [2]float64{value, count}); return false })
	}
	return out
}

// MarshalJSON writes the bins.
func (s Sketch) MarshalJSON() ([]byte, error) { return json.Marshal(s.bins()) }

// UnmarshalJSON reads bins and refuses what no sketch writes.
func (s *Sketch) UnmarshalJSON(text []byte) error {
	var bins [][2]float64
	if err := json.Unmarshal(text, &bins); err != nil {
		return fmt.Errorf("read sketch: %w", err)
	}
	if len(bins) > binsMax {
		return fmt.Errorf("read sketch: %d bins, at most %d", len(bins), binsMax)
	}
	*s = Sketch{}
	for _, b := range bins {
		if !(b[0] >= 1e-12 && b[0] <= 1e15 && b[1] > 0 && b[1] <= countMax) {
			return fmt.Errorf("read sketch: no bin holds %g %g times", b[0], b[1])
		}
		s.Add(b[0], b[1])
	}
	return nil
}
