package compare

import (
	"cmp"
	"slices"
	"strings"

	"starling"
	"starling/sched/scale"
	"starling/sim/rival"
)

// A Candidate is one policy to run.
type Candidate struct {
	Name   string
	Policy scale.Policy
	Params map[string]string // what was changed in the default policy; nil for a rival
}

// PointsMax is the most candidates of one sweep.
const PointsMax = 1000

// A Knob is one setting of the default policy and the values to try.
type Knob struct {
	Name   string
	Values []string
}

// Rivals returns every rival as a candidate.
func Rivals() (cs []Candidate) {
	for _, r := range rival.All() {
		cs = append(cs, Candidate{Name: r.Name, Policy: r.Policy})
	}
	return cs
}

// Sweep returns base with every combination of the knobs' values. A value that cannot work, and more than PointsMax
// combinations, are refused with kind Invalid.
func Sweep(base scale.Adaptive, knobs []Knob) ([]Candidate, error) {
	n := 1
	for _, k := range knobs {
		if n *= len(k.Values); n > PointsMax || n == 0 {
			return nil, starling.Errorf(starling.Invalid, "sweep settings", "the values combine to %d runs: use 1 to %d", n, PointsMax)
		}
	}
	cs := make([]Candidate, 0, n)
	for i := range n {
		a, params, name := base, map[string]string{}, []string{}
		for _, k := range knobs {
			v := k.Values[i%len(k.Values)]
			i /= len(k.Values)
			if err := a.Set(k.Name, v); err != nil {
				return nil, err
			}
			params[k.Name] = v
			name = append(name, k.Name+"="+v)
		}
		if err := a.Validate(); err != nil {
			return nil, err
		}
		cs = append(cs, Candidate{Name: strings.Join(name, " "), Policy: &a, Params: params})
	}
	return cs, nil
}

// Front returns the results that no other beats in both cold starts and instance-seconds, the cheapest first.
func Front(results []*Result) []*Result {
	sorted := slices.Clone(results)
	slices.SortStableFunc(sorted, func(a, b *Result) int {
		return cmp.Or(cmp.Compare(a.InstanceSeconds, b.InstanceSeconds), cmp.Compare(a.Cold, b.Cold))
	})
	var front []*Result
	for _, r := range sorted {
		if len(front) == 0 || r.Cold < front[len(front)-1].Cold {
			front = append(front, r)
		}
	}
	return front
}

// Best returns the result with the fewest cold starts, then the shortest p99 wait, then the lowest cost, that costs at most so many
// instance-seconds and refuses no more calls than refused; nil when none does.
func Best(results []*Result, instanceSeconds float64, refused int64) (best *Result) {
	for _, r := range results {
		if r.InstanceSeconds > instanceSeconds || r.Refused > refused {
			continue
		}
		if best == nil || cmp.Or(cmp.Compare(r.Cold, best.Cold), cmp.Compare(r.WaitP99, best.WaitP99), cmp.Compare(r.InstanceSeconds, best.InstanceSeconds)) < 0 {
			best = r
		}
	}
	return best
}
