package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"starling"
	"starling/sched"
	"starling/sched/flow"
	"starling/sim/load"
)

// Fair is the scenario of one loud tenant among quiet ones on machines that cannot serve them all. Zero numbers mean the
// defaults in parentheses.
type Fair struct {
	Machines int           // each with a frontend and a host (1)
	Cores    float64       // of one machine (2)
	Quiet    int           // tenants (4)
	Rate     float64       // calls a second of one quiet tenant (100)
	Times    float64       // so many times that of the loud one (50)
	Work     time.Duration // that a call needs of a processor on average, exponentially spread (1 ms)
	Door     time.Duration // that a frontend needs for a call, a refused one too (20 µs)
	Warm     time.Duration // only quiet calls, not measured (10 s)
	Length   time.Duration // measured (60 s)
	Settle   time.Duration // of Length: told apart, because it holds what came before anybody was refused (2 s)
	OneDoor  bool          // each tenant calls through one frontend; otherwise all call through all in turn
	Open     bool          // nobody is refused by his share: to see what that is worth
}

func (f Fair) withDefaults() Fair {
	set := func(p *time.Duration, d time.Duration) { *p = orDefault(*p, d) }
	number := func(p *float64, n float64) {
		if *p == 0 {
			*p = n
		}
	}
	f.Machines, f.Quiet = max(f.Machines, 1), max(f.Quiet, 0)
	if f.Quiet == 0 {
		f.Quiet = 4
	}
	number(&f.Cores, 2)
	number(&f.Rate, 100)
	number(&f.Times, 50)
	set(&f.Work, time.Millisecond)
	set(&f.Door, 20*time.Microsecond)
	set(&f.Warm, 10*time.Second)
	set(&f.Length, time.Minute)
	set(&f.Settle, 2*time.Second)
	return f
}

// Validate reports the first number that cannot be, by its name.
func (f Fair) Validate() error {
	f = f.withDefaults()
	const op = "check the scenario"
	switch {
	case f.Machines > 64 || f.Quiet > accountsMax-1:
		return starling.Errorf(starling.Invalid, op, "%d machines, %d quiet tenants: use up to 64 and %d", f.Machines, f.Quiet, accountsMax-1)
	case !(f.Cores > 0 && f.Cores <= 1024 && f.Rate > 0 && f.Times > 0 && f.Rate*(f.Times+float64(f.Quiet)) <= 1e6):
		return starling.Errorf(starling.Invalid, op, "%g cores, %g calls a second, %g times: use more than 0, and up to a million calls a second in all", f.Cores, f.Rate, f.Times)
	case f.Work < 0 || f.Door < 0 || f.Warm < 0 || f.Settle < 0 || f.Length < 0 || f.Settle >= f.Length || f.Length+f.Warm > 24*time.Hour:
		return starling.Errorf(starling.Invalid, op, "%v of work, %v at the door, %v warm, %v of which %v are left out: use times of up to a day in all", f.Work, f.Door, f.Warm, f.Length, f.Settle)
	}
	return nil
}

// FairReport says what became of the quiet tenants.
type FairReport struct {
	Seed     uint64        `json:"seed"`
	Offered  float64       `json:"offeredCores"` // that all calls together would need
	Cores    float64       `json:"cores"`
	Tenants  []FairTenant  `json:"tenants"`         // the loud one last
	Worst    float64       `json:"worstRatio"`      // of the quiet tenants, once it has settled
	Whole    float64       `json:"worstWholeRatio"` // the same with the time of settling
	Refusals uint64        `json:"quietRefusals"`   // while settling, too
	Jain     float64       `json:"jain"`            // of what the quiet ones were served, by what they asked
	JainAll  float64       `json:"jainShare"`       // of what all were served, by their max-min share of all that was served
	Measured time.Duration `json:"measuredNanoseconds"`
}

// A FairTenant is one tenant without the loud one, and beside it.
type FairTenant struct {
	Name   string  `json:"name"`
	Alone  Account `json:"alone"`  // empty for the loud one
	Beside Account `json:"beside"` // the loud one
	Ratio  float64 `json:"ratio"`  // of the p99 from the call to its answer
	Whole  float64 `json:"wholeRatio"`
	Share  float64 `json:"share"` // what was served, by the max-min share of all that was served
}

// RunFair runs the world of a seed twice, without the loud tenant and with it: the quiet calls are the same.
func RunFair(f Fair, seed uint64) (*FairReport, error) {
	if err := f.Validate(); err != nil {
		return nil, err
	}
	f = f.withDefaults()
	alone, err := f.run(seed, false)
	if err != nil {
		return nil, err
	}
	beside, err := f.run(seed, true)
	if err != nil {
		return nil, err
	}
	r := &FairReport{Seed: seed, Cores: f.Cores * float64(f.Machines), Measured: f.Length - f.Settle}
	r.Offered = f.Rate * ((f.Work+f.Door).Seconds()*float64(f.Quiet) + (f.Work+f.Door).Seconds()*f.Times)
	wants, shares, total := make([]int, len(beside)), make([]int, len(beside)), 0
	for i, a := range beside {
		wants[i] = int(a.Calls)
		total += int(a.Answered)
	}
	flow.Fair(total, wants, shares)
	var served, parts []float64
	for i, a := range beside {
		t := FairTenant{Name: a.Name, Beside: a.Account, Share: float64(a.Answered) / float64(max(shares[i], 1))}
		parts = append(parts, t.Share)
		if i < len(alone) {
			t.Alone = alone[i].Account
			t.Ratio = float64(a.LatencyP99) / float64(max(t.Alone.LatencyP99, time.Microsecond))
			t.Whole = float64(a.whole) / float64(max(alone[i].whole, time.Microsecond))
			r.Worst, r.Whole = max(r.Worst, t.Ratio), max(r.Whole, t.Whole)
			r.Refusals += a.Refused + a.early
			served = append(served, float64(a.Answered)/float64(max(a.Calls, 1)))
		}
		r.Tenants = append(r.Tenants, t)
	}
	r.Jain, r.JainAll = flow.Jain(served), flow.Jain(parts)
	return r, nil
}

// A share is what became of one tenant.
type share struct {
	Account               // once it has settled
	whole   time.Duration // p99 with the time of settling
	early   uint64        // refused while settling
}

// run returns what became of each tenant, the loud one last.
func (f Fair) run(seed uint64, loud bool) ([]share, error) {
	c := Config{Managers: f.Machines, Hosts: f.Machines, Partitions: 4, Static: true, Report: 500 * time.Millisecond, Load: newLoudAndQuiet(f, seed, loud),
		CPU: CPU{Cores: f.Cores, Door: f.Door, Shed: !f.Open, Fixed: f.OneDoor}, Check: Check{Answers: true, Starved: true, Slots: true, Limits: true}}
	c.Sched = sched.DefaultConfig()
	w := New(c, seed)
	var last, early *Result
	for _, until := range []time.Duration{f.Warm, f.Warm + f.Settle, f.Warm + f.Length} {
		early, w.result = last, newResult()
		var err error
		if last, err = w.Run(until); err != nil {
			return nil, fmt.Errorf("seed %d: %w", seed, err)
		}
	}
	var out []share
	for _, a := range last.Accounts {
		s := share{Account: a}
		if e := early.accounts[a.Name]; e != nil && e.times != nil {
			e.times.Merge(a.times)
			s.whole, s.early = at(e.times, 99), e.Refused
		}
		out = append(out, s)
	}
	return out, nil
}

// A loudAndQuiet is a Poisson stream for each tenant, from random numbers of its own: the quiet ones call at the same
// instants whether there is a loud one or not.
type loudAndQuiet struct {
	work    time.Duration
	end     time.Duration
	streams []stream // by function
}

type stream struct {
	rng  *rand.Rand
	f    load.Function
	gap  time.Duration // on average
	next time.Duration
}

func newLoudAndQuiet(f Fair, seed uint64, loud bool) *loudAndQuiet {
	l := &loudAndQuiet{work: f.Work, end: f.Warm + f.Length}
	gap := time.Duration(float64(time.Second) / f.Rate)
	for i := range f.Quiet {
		l.add(fmt.Sprintf("quiet-%02d", i+1), seed, gap, 0)
	}
	if loud {
		l.add("~loud", seed, time.Duration(float64(gap)/f.Times), f.Warm) // by its name the last of the accounts
	}
	return l
}

func (l *loudAndQuiet) add(name string, seed uint64, gap, from time.Duration) {
	s := stream{rng: rand.New(rand.NewPCG(seed, uint64(len(l.streams))+0xfa1)), gap: gap, next: from,
		f: load.Function{Account: name, Name: "echo", MemoryMiB: 128, Slots: 1, Start: 20 * time.Millisecond, Init: 30 * time.Millisecond}}
	s.advance()
	l.streams = append(l.streams, s)
}

func (s *stream) advance() { s.next += time.Duration(s.rng.ExpFloat64() * float64(s.gap)) }

// Functions returns one function for each tenant.
func (l *loudAndQuiet) Functions() []load.Function {
	var fs []load.Function
	for _, s := range l.streams {
		fs = append(fs, s.f)
	}
	return fs
}

// Next returns the call that comes next of all tenants.
func (l *loudAndQuiet) Next() (load.Call, bool) {
	first := 0
	for i := range l.streams {
		if l.streams[i].next < l.streams[first].next {
			first = i
		}
	}
	s := &l.streams[first]
	c := load.Call{At: s.next, Function: int32(first), Exec: time.Duration(s.rng.ExpFloat64() * float64(l.work))}
	s.advance()
	return c, c.At <= l.end
}
