package load

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"starling"
	"starling/store/trace"
)

// RecordedConfig says how a trace becomes a load.
type RecordedConfig struct {
	CallsMax    int           // at most so many calls; 24 bytes each
	Start, Init time.Duration // of functions that the trace shows no cold start of
}

// Recorded returns the calls of a trace as a load: next is a reader's, that returns io.EOF at the end. Each version of
// a function is a function of the load. Their order is that of their beginnings, the first one at 0. A call that did
// not run is taken to run for as long as others of its function did on average: it came, and another policy would have
// served it. A trace of more than CallsMax calls is refused with kind TooLarge, an empty one with NotFound.
func Recorded(cfg RecordedConfig, next func() (trace.Call, error)) (Load, error) {
	const op = "replay trace"
	r := &recorded{}
	known := map[identity]int32{}
	var sums []sum
	for {
		c, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(r.calls) == cfg.CallsMax {
			return nil, starling.Errorf(starling.TooLarge, op, "more than %d calls: replay fewer of its files", cfg.CallsMax)
		}
		id := identity{c.Account, c.Function, c.Version}
		f, ok := known[id]
		if !ok {
			f = int32(len(sums))
			known[id] = f
			sums = append(sums, sum{})
			r.functions = append(r.functions, Function{Account: c.Account, Name: fmt.Sprintf("%s@%d", c.Function, c.Version),
				MemoryMiB: max(int(c.MemoryMiB), 1), Slots: max(int(c.Slots), 1)})
		}
		sums[f].add(c)
		exec := time.Duration(c.Run) * time.Microsecond
		if c.Run <= 0 {
			exec = -1
		}
		r.calls = append(r.calls, Call{At: time.Duration(c.Start) * time.Microsecond, Function: f, Exec: exec})
	}
	if len(r.calls) == 0 {
		return nil, starling.Errorf(starling.NotFound, op, "no call is in it")
	}
	for f := range sums {
		r.functions[f].Start, r.functions[f].Init = sums[f].start(cfg)
	}
	slices.SortStableFunc(r.calls, func(a, b Call) int { return cmp.Compare(a.At, b.At) })
	first := r.calls[0].At
	for i := range r.calls {
		c := &r.calls[i]
		c.At -= first
		if c.Exec < 0 {
			c.Exec = sums[c.Function].exec()
		}
	}
	return r, nil
}

type identity struct {
	account, function string
	version           uint64
}

// A sum is what is learned of one function, µs.
type sum struct{ ran, run, cold, begin, init int64 }

func (s *sum) add(c trace.Call) {
	if c.Run > 0 {
		s.ran++
		s.run += c.Run
	}
	if c.Cold {
		s.cold++
		s.begin += c.Begin
		s.init += c.Init
	}
}

func (s *sum) exec() time.Duration {
	return time.Duration(s.run/max(s.ran, 1)) * time.Microsecond
}

func (s *sum) start(cfg RecordedConfig) (start, init time.Duration) {
	if s.cold == 0 {
		return cfg.Start, cfg.Init
	}
	return time.Duration(s.begin/s.cold) * time.Microsecond, time.Duration(s.init/s.cold) * time.Microsecond
}

type recorded struct {
	functions []Function
	calls     []Call
}

// Functions returns the versions in the order of their first rows.
func (r *recorded) Functions() []Function { return r.functions }

// Next takes the first of the calls that are left.
func (r *recorded) Next() (Call, bool) {
	if len(r.calls) == 0 {
		return Call{}, false
	}
	c := r.calls[0]
	r.calls = r.calls[1:]
	return c, true
}
