package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"starling/sched"
	"starling/sched/scale"
	"starling/sim/load"
)

// ForSeed returns the world of a seed: its size, its limits, its callers and what goes wrong in it are all drawn. Every
// eighth world is free of faults.
func ForSeed(seed uint64) Config {
	r := rand.New(rand.NewPCG(seed, 0xc0de))
	c := Config{Managers: 1 + 2*r.IntN(2), Fronts: r.IntN(2), Hosts: 1 + r.IntN(4), Zones: 1 + r.IntN(2), Partitions: 1 + r.IntN(5),
		HostMiB: 256 << r.IntN(4), StartMax: 1 + r.IntN(8), QueueAge: time.Second + time.Duration(r.IntN(3000))*time.Millisecond,
		Accounts: 2 + r.IntN(40), Instances: r.IntN(6), Spread: 0.4, Check: All()}
	c.Sched = sched.DefaultConfig()
	c.Sched.Bounds.Function, c.Sched.Bounds.Age = 5+r.IntN(50), c.QueueAge
	if keep := time.Duration(200+r.IntN(3000)) * time.Millisecond; r.IntN(2) == 0 { // the others have the default policy
		c.Sched.Policy = scale.Fixed{KeepAlive: keep}
	}
	c.Sched.Audit = time.Second
	c.Sched.Forget = time.Duration(1+r.IntN(10)) * time.Second
	c.Net = Net{Delay: time.Duration(100+r.IntN(900)) * time.Microsecond, Jitter: time.Duration(1+r.IntN(3000)) * time.Microsecond, Codec: true}
	c.Load = newChatter(r)
	if c.Faults.Orders = 10 * max(0, r.Float64()*2-1); seed%8 == 0 {
		return c
	}
	orders := c.Faults.Orders
	rare := func(most float64) float64 { return most * max(0, r.Float64()*2-1) } // half of the worlds are spared
	c.Net.Slow = 0.1
	c.Net.Loss, c.Net.Duplicate, c.Net.Reorder = rare(0.05), rare(0.02), rare(0.02)
	c.Faults = Faults{Crash: rare(1), Down: time.Duration(1+r.IntN(1500)) * time.Millisecond, Pause: rare(1), Stopped: time.Duration(1+r.IntN(1000)) * time.Millisecond,
		Cut: rare(1), Healed: time.Duration(1+r.IntN(1500)) * time.Millisecond, ClockStep: rare(1), Exit: rare(2), ActorFails: rare(1), StartFails: rare(0.3), CallFails: rare(0.1), Orders: orders}
	return c
}

// A chatter is the load of a seed: some functions of some accounts, called in bursts and pauses.
type chatter struct {
	rng       *rand.Rand
	functions []load.Function
	now       time.Duration
	gap       time.Duration // between two calls on average
	left      int           // calls until the pace changes
	favourite int32
	exec      time.Duration
}

func newChatter(r *rand.Rand) *chatter {
	c := &chatter{rng: rand.New(rand.NewPCG(r.Uint64(), r.Uint64())), exec: time.Duration(1+r.IntN(100)) * time.Millisecond}
	accounts := 1 + r.IntN(3)
	for i := range 1 + r.IntN(7) {
		c.functions = append(c.functions, load.Function{Account: fmt.Sprintf("a%d", i%accounts), Name: fmt.Sprintf("f%d", i), MemoryMiB: 128 << r.IntN(2),
			Slots: 1 + r.IntN(3)*r.IntN(2), Start: time.Duration(5+r.IntN(100)) * time.Millisecond, Init: time.Duration(r.IntN(200)) * time.Millisecond})
	}
	return c
}

// Functions returns what the chatter calls.
func (c *chatter) Functions() []load.Function { return c.functions }

// Next returns the next call; there is always one.
func (c *chatter) Next() (load.Call, bool) {
	r := c.rng
	if c.left--; c.left < 0 {
		c.left = 1 + r.IntN(60)
		c.gap = time.Duration(r.ExpFloat64() * float64(20*time.Millisecond))
		c.favourite = int32(r.IntN(len(c.functions)))
	}
	c.now += time.Duration(r.ExpFloat64() * float64(c.gap))
	call := load.Call{At: c.now, Function: c.favourite, Exec: time.Duration(r.ExpFloat64() * float64(c.exec))}
	if r.IntN(3) == 0 {
		call.Function = int32(r.IntN(len(c.functions)))
	}
	if r.IntN(100) == 0 {
		call.Exec = time.Duration(r.IntN(2000)) * time.Millisecond
	}
	return call, true
}

// RunSeed runs the world of a seed for so many events and then lets it settle. It returns the first violation.
func RunSeed(seed uint64, events int, trace io.Writer) (*World, error) {
	c := ForSeed(seed)
	c.Trace = trace
	return run(c, seed, events)
}

func run(c Config, seed uint64, events int) (*World, error) {
	w := New(c, seed)
	for range events {
		if !w.Step() {
			break
		}
	}
	if w.err == nil {
		_ = w.Settle() // the first violation is kept
	}
	if w.err != nil {
		return w, fmt.Errorf("seed %d: %w", seed, w.err)
	}
	return w, nil
}

// Shrink finds a shorter beginning of a seed's world that fails too: fewer events with faults before it settles. It
// returns the number of events, and the violation.
func Shrink(seed uint64, events int) (int, error) {
	_, err := RunSeed(seed, events, nil)
	if err == nil {
		return events, nil
	}
	for step := events / 2; step > 0; {
		if _, shorter := RunSeed(seed, events-step, nil); shorter != nil && events > step {
			events, err = events-step, shorter
			step = min(step, events/2)
			continue
		}
		step /= 2
	}
	return events, err
}
