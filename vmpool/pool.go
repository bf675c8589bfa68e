package vmpool

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/internal/run"
)

// PoolConfig is what an operator may tune.
type PoolConfig struct {
	Driver     Driver
	Sizes      map[starling.Runtime]int                                  // warm sandboxes kept of each runtime; a runtime not named is not served
	CloneMax   int                                                       // sandboxes cloned at once over all runtimes, for starts that wait and to refill each; 0 means 2
	ReadyTime  time.Duration                                             // longest start of an interpreter; 0 means 10 s
	BackoffMin time.Duration                                             // after the first failed clone; 0 means 100 ms
	BackoffMax time.Duration                                             // at most; 0 means 30 s
	Plug       func(ns *os.File) (Plug, error)                           // prepares the network of a sandbox that is Namespaced, and owns ns; nil for none
	PlugAhead  func() bool                                               // says whether warm sandboxes are prepared so; otherwise those that are given a network are. nil for never
	PlugGuest  func(say func(as, to netip.AddrPort, d []byte)) GuestPlug // makes the network of a sandbox that is Catching, which say sends datagrams to; nil for none
	LifeMax    time.Duration                                             // a warm sandbox older than this is replaced; 0 means 2 h
	Log        *slog.Logger
}

func (c PoolConfig) withDefaults() PoolConfig {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	set(&c.ReadyTime, 10*time.Second)
	set(&c.BackoffMin, 100*time.Millisecond)
	set(&c.BackoffMax, 30*time.Second)
	set(&c.LifeMax, lifeMax)
	if c.CloneMax == 0 {
		c.CloneMax = 2
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Pool keeps warm sandboxes of each runtime and turns them into instances. Create it with New, start it with Open,
// and Close it; Close waits for the filler of each runtime and the keeper, and destroys every sandbox and instance.
type Pool struct {
	cfg     PoolConfig
	shelves map[starling.Runtime]*shelf
	keeper  keeper
	meters  *meters
	group   *run.Group
	slots   chan struct{} // one token for each refill under way
	rush    chan struct{} // one token for each clone under way that a start waits for
	urgent  atomic.Int32  // starts that wait for a clone: fillers stand back
	begun   atomic.Int32  // starts under way: fillers stand back while there is stock
	quiet   atomic.Int64  // when they may go on after the last of these, in nanoseconds since made
	crowded atomic.Bool   // calls wait for processors: as during starts
	made    time.Time     // the pool itself
	resume  *time.Timer   // wakes the fillers then

	dropped atomic.Uint64 // lines of output cut by a limit

	starts sync.WaitGroup // calls of Start under way

	mu     sync.Mutex // guards live and closed; a leaf
	live   map[*Instance]struct{}
	closed bool
}

// NewPool returns a pool that does nothing yet.
func NewPool(cfg PoolConfig) *Pool {
	p := &Pool{cfg: cfg.withDefaults(), shelves: map[starling.Runtime]*shelf{}, live: map[*Instance]struct{}{}}
	p.slots, p.rush = make(chan struct{}, p.cfg.CloneMax), make(chan struct{}, p.cfg.CloneMax)
	for rt, size := range cfg.Sizes {
		p.shelves[rt] = newShelf(p, rt, size)
	}
	p.made = time.Now()
	p.resume = time.AfterFunc(0, p.nudge)
	p.resume.Stop()
	p.meters = newMeters(p)
	return p
}

// Open starts filling. Call it once, before Start. A runtime whose template cannot be built now is tried again, and refused with the reason meanwhile.
func (p *Pool) Open(ctx context.Context) error {
	p.group = run.New(context.WithoutCancel(ctx))
	for _, s := range p.shelves {
		p.group.Go(s.fill)
	}
	p.group.Go(p.keeper.run)
	return nil
}

// Close destroys every warm sandbox and every instance and waits for all goroutines. The driver stays open.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	if p.group != nil {
		p.group.Stop() // also ends the starts under way
	}
	p.starts.Wait()
	p.resume.Stop()
	p.mu.Lock()
	var all []*Instance
	for i := range p.live {
		all = append(all, i)
	}
	p.mu.Unlock()
	for _, i := range all {
		i.Stop(true)
	}
	for _, i := range all {
		i.wg.Wait()
	}
	var first error
	for _, s := range p.shelves {
		if err := s.close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// Resize sets how many sandboxes of a runtime are kept warm, from now on.
func (p *Pool) Resize(rt starling.Runtime, size int) error {
	s, ok := p.shelves[rt]
	if !ok {
		return starling.Errorf(starling.NotFound, "resize pool", "this host does not serve %s", rt)
	}
	s.resize(size)
	return nil
}

// Cost returns what a sandbox of a runtime lately took of a processor until it was warm; 0 while none was made.
func (p *Pool) Cost(rt starling.Runtime) time.Duration {
	if s := p.shelves[rt]; s != nil {
		return time.Duration(s.cost.Load())
	}
	return 0
}

// Stock returns how many sandboxes of each runtime are warm now.
func (p *Pool) Stock() map[starling.Runtime]int {
	out := map[starling.Runtime]int{}
	for rt, s := range p.shelves {
		out[rt] = s.ready()
	}
	return out
}

// refillPause is how long after a start the fillers leave the machine to the first call, which the start was made for: a
// clone is tens of milliseconds of forks and mounts.
const refillPause = 20 * time.Millisecond

// calm ends a start; a moment after the last of several the fillers make good what they took.
func (p *Pool) calm() {
	if p.begun.Add(-1) == 0 {
		p.quiet.Store(int64(time.Since(p.made) + refillPause))
		p.resume.Reset(refillPause)
	}
}

// isCalm reports whether no start is under way, the first calls of those before had their time, and processors are to be had.
func (p *Pool) isCalm() bool {
	return p.begun.Load() == 0 && int64(time.Since(p.made)) >= p.quiet.Load() && !p.crowded.Load()
}

// Crowded says whether the machine is to be left to calls, because processors are queued for or would be: then the fillers stand back
// while half of the stock is left. It may be called from anywhere, as often as one likes.
func (p *Pool) Crowded(is bool) {
	if p.crowded.Swap(is) && !is {
		p.nudge()
	}
}

// nudge wakes every filler.
func (p *Pool) nudge() {
	for _, s := range p.shelves {
		s.nudge()
	}
}

// enter counts a start under way, so that Close can wait for it.
func (p *Pool) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.group == nil {
		return false
	}
	p.starts.Add(1)
	return true
}

func (p *Pool) admit(i *Instance) {
	p.mu.Lock()
	p.live[i] = struct{}{}
	p.mu.Unlock()
	p.keeper.add(i)
}

// gone forgets an instance whose sandbox is closed and tells its owner.
func (p *Pool) gone(i *Instance) {
	p.mu.Lock()
	delete(p.live, i)
	p.mu.Unlock()
	p.keeper.remove(i)
	i.mu.Lock()
	reason, served := i.reason, i.served
	i.mu.Unlock()
	if i.cfg.Ended != nil && served {
		i.cfg.Ended(i, reason)
	}
}

// backoff returns the pause after n failures in a row: doubling, jittered by a half, bounded.
func (p *Pool) backoff(n int) time.Duration {
	d := p.cfg.BackoffMin << min(n-1, 20)
	if d <= 0 || d > p.cfg.BackoffMax {
		d = p.cfg.BackoffMax
	}
	return d/2 + rand.N(d/2+1)
}
