// Package sched is the brain of one partition: which call gets which slot of which instance, when an instance is
// started and when it is retired. It is pure: Step is a function of the events so far, the instant given and the
// random numbers given, so a transcript, a simulation and production decide alike.
//
// The messages of actors/wire are the events that come from other nodes and the effects that go to them.
package sched

import (
	"math/rand/v2"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/flow"
	"starling/sched/place"
	"starling/sched/scale"
)

// Config is what an operator may tune.
type Config struct {
	Bounds       flow.Bounds   // of waiting
	LeaseTTL     time.Duration // what a grant and a renewal give
	LeaseGrace   time.Duration // a slot is free only so long after its lease ended here: the frontend heard of it later
	Guard        time.Duration // nothing is granted so long before the node lease ends
	Policy       scale.Policy  // how many instances a version has; nil for scale.Default
	EvictIdle    time.Duration // where hosts are full, one idle for so long is stopped for the sake of others
	FunctionMax  int           // starts in flight of one function
	HostMax      int           // starts in flight at one host
	StartAgain   time.Duration // a start without an answer is sent again
	StartMax     time.Duration // a start without an answer for so long is given up
	BackoffFirst time.Duration // pause after the first failed start of a version
	BackoffMax   time.Duration // longest pause
	DeathMax     int           // instances of a version that died young in a row before its starts pause
	DeathYoung   time.Duration // age below which a death counts
	FenceAgain   time.Duration // a fence without an answer is sent again
	Audit        time.Duration // how often a host with our instances is asked what really runs there
	RecallPause  time.Duration // between two recalls for one version
	LookupAgain  time.Duration // a lookup without an answer is made again
	Forget       time.Duration // a version without instance and call is forgotten after this
	Remember     int           // forgotten versions whose governor is kept with what it learned
	Weights      place.Weights
}

// DefaultConfig returns the limits of DESIGN.
func DefaultConfig() Config {
	return Config{
		Bounds:   flow.Bounds{Function: starling.QueueMax, Total: 20 * starling.QueueMax, Age: starling.QueueAgeMax},
		LeaseTTL: starling.LeaseTTL, LeaseGrace: 100 * time.Millisecond, Guard: starling.NodeLeaseGuard,
		EvictIdle:   100 * time.Millisecond,
		FunctionMax: 128, HostMax: 32, StartAgain: 2 * time.Second, StartMax: 30 * time.Second,
		BackoffFirst: 100 * time.Millisecond, BackoffMax: 30 * time.Second, DeathMax: 5, DeathYoung: time.Second,
		FenceAgain: 100 * time.Millisecond, Audit: 10 * time.Second, RecallPause: 5 * time.Millisecond,
		LookupAgain: time.Second, Forget: 10 * time.Minute, Remember: 1 << 16, Weights: place.DefaultWeights(),
	}
}

// Validate reports the first setting that cannot work, by its name.
func (c Config) Validate() error {
	positive := []struct {
		name string
		v    int64
	}{{"Bounds.Function", int64(c.Bounds.Function)}, {"Bounds.Total", int64(c.Bounds.Total)}, {"Bounds.Age", int64(c.Bounds.Age)},
		{"LeaseTTL", int64(c.LeaseTTL)}, {"FunctionMax", int64(c.FunctionMax)}, {"HostMax", int64(c.HostMax)},
		{"StartAgain", int64(c.StartAgain)}, {"StartMax", int64(c.StartMax)}, {"BackoffFirst", int64(c.BackoffFirst)},
		{"FenceAgain", int64(c.FenceAgain)}, {"Audit", int64(c.Audit)}, {"LookupAgain", int64(c.LookupAgain)}, {"Forget", int64(c.Forget)},
		{"DeathMax", int64(c.DeathMax)}}
	for _, p := range positive {
		if p.v <= 0 {
			return starling.Errorf(starling.Invalid, "check scheduler settings", "%s is %d: use more than 0", p.name, p.v)
		}
	}
	if p, ok := c.Policy.(interface{ Validate() error }); ok {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	if c.BackoffMax < c.BackoffFirst {
		return starling.Errorf(starling.Invalid, "check scheduler settings", "BackoffMax %v is below BackoffFirst %v", c.BackoffMax, c.BackoffFirst)
	}
	return nil
}

// A Phase is the part of its life a scheduler is in.
type Phase uint8

const (
	Fresh      Phase = iota // knows nothing; every call is told Moved
	Activating              // hosts are being fenced; calls wait
	Active                  // grants
	Ended                   // deactivated; every call is told Moved
	Frozen                  // decides nothing; its state may be handed over
)

// String returns the word people see.
func (p Phase) String() string {
	return [...]string{"fresh", "activating", "active", "ended", "frozen"}[p]
}

// An instant is the time since the scheduler's first event.
type instant = time.Duration

const never = instant(1<<63 - 1)

// A Scheduler decides for one partition in one epoch. It has one caller at a time and no locks.
type Scheduler struct {
	cfg  Config
	rng  *rand.Rand
	base time.Time // of the first event; instants count from it
	now  instant
	out  outbox

	id    starling.PartitionID
	epoch starling.Epoch
	since starling.Epoch // of the last recovery
	keys  starling.Range
	phase Phase
	until instant // grants end here
	seq   uint64  // of the last instance drawn
	first uint64  // Seq of the activation: tells the lives of one epoch apart
	life  uint32  // first generation of every lease slot

	versions  index
	functions map[starling.FunctionRef]*function
	accounts  map[starling.AccountID]*account
	hosts     map[starling.NodeID]*host
	order     []*host // hosts by node
	instances map[starling.InstanceID]*instance

	leases  []*lease // by slot of the id
	spare   []*lease // free ones
	expiry  leaseList
	adopted map[leaseKey]*lease // of lives before, still in use
	leased  int
	lost    []*instance // of dead hosts, while a snapshot is read

	waiters   map[callKey]*waiter
	deadlines heap[*waiter]
	unused    []*waiter
	hungry    []*version // with waiters
	turn      int        // of moreRoom, into hungry
	unknown   []*version // whose lookup is not answered
	empty     []*version // may be forgotten, oldest first

	idle      heap[*instance] // ready instances, see instance.before
	wheel     wheel           // versions by their next plan
	wanted    int             // instances, summed over versions
	floors    []*version      // whose owner wants some instances at all times
	memory    memory          // of forgotten versions
	starting  instanceList    // by next look
	fenceAt   instant         // not before this is a gate due to be fenced again
	gates     int             // hosts that activation still waits for, or that a restored scheduler has not heard of
	settles   []settle        // spans that were cut lately: two at most, but for what was joined
	begun     instant         // of a restored one
	quiet     instant         // activation waits for this, too
	census    census
	cursor    int                              // of the audit, into order
	strange   bool                             // some host had instances of our keys that are not in the books
	starved   [starling.IsolationCount]int     // MiB that no host of an isolation had room for since the last news of room; 0 when none
	missing   [starling.IsolationCount]instant // since when no host gives an isolation that calls wait for; 0 when one does
	starvedAt instant                          // since when; it is forgotten after a while, because a host may be of use again without news
	cands     []place.Candidate
	lacking   bool    // a start found room nowhere since the last defragmentation
	defragAt  instant // not before
	permits   permits
	counts    Counts
	seen      int32 // what Expect read: the compiler must not leave the reading out
}

// New returns a scheduler that owns nothing; give it Activate first. rng breaks ties in placement and spreads
// pauses, and only that.
func New(cfg Config, rng *rand.Rand) *Scheduler {
	if cfg.Policy == nil {
		cfg.Policy = scale.Default()
	}
	return &Scheduler{
		cfg: cfg, rng: rng,
		memory:    memory{most: cfg.Remember, learned: map[starling.VersionID]learned{}, inherited: map[starling.VersionID]learned{}, kin: map[spanRef]int{}},
		functions: map[starling.FunctionRef]*function{},
		accounts:  map[starling.AccountID]*account{},
		hosts:     map[starling.NodeID]*host{},
		instances: map[starling.InstanceID]*instance{},
		adopted:   map[leaseKey]*lease{},
		waiters:   map[callKey]*waiter{},
		expiry:    leaseList{which: byExpiry},
		starting:  instanceList{which: byCheck},
		permits:   permits{books: map[starling.AccountID]*book{}},
	}
}

// Step applies ev at the instant now and returns what the caller must do, in order. It reads no clock, starts no
// goroutine and never blocks. The effects are valid until the next Step; in steady state none costs an allocation.
func (s *Scheduler) Step(now time.Time, ev Event) []Effect {
	if s.base.IsZero() {
		s.base = now
	}
	s.now = max(s.now, now.Sub(s.base)) // a clock that steps back stands still
	s.out.reset()
	if s.phase == Frozen && !heardFrozen(ev) {
		return s.out.effects
	}
	switch ev := ev.(type) {
	case Message:
		s.receive(ev.From, ev.Body)
	case Tick:
		s.tick()
	case VersionKnown:
		s.versionKnown(ev.Version, ev.ConcurrencyMax)
	case VersionGone:
		s.versionGone(ev.Version)
	case Provisioned:
		s.provisioned(ev.Versions)
	case LeaseUntil:
		s.leaseUntil(ev.Until)
	case AccountKnown:
		s.accountKnown(ev)
	case NodeDown:
		s.nodeDown(ev.Node)
	case Activate:
		s.activate(ev)
	case Restore:
		s.restore(ev)
	case Freeze:
		s.freeze()
	case Thaw:
		s.thaw()
	case Deactivate:
		s.deactivate()
	}
	if len(s.permits.audits) > 0 {
		s.answerAudits()
	}
	if len(s.permits.fed) > 0 {
		s.serveFed()
	}
	return s.out.effects
}

func (s *Scheduler) receive(from starling.NodeID, m wire.Message) {
	switch m := m.(type) {
	case *wire.Acquire:
		s.acquire(from, m)
	case *wire.Release:
		s.release(from, m)
	case *wire.Renew:
		s.renew(from, m)
	case *wire.Cancel:
		s.cancel(from, m.Call)
	case *wire.HostReport:
		s.hostReport(from, m)
	case *wire.Started:
		s.started(from, m.Instance, m.Start, m.Init)
	case *wire.StartFailed:
		s.startFailed(from, m)
	case *wire.Exited:
		s.exited(from, m)
	case *wire.Fenced:
		s.fenced(from, m)
	case *wire.AtWork:
		s.atWork(from, m)
	case *wire.Borrow:
		s.borrowed(from, m)
	case *wire.Lend:
		s.lent(m)
	case *wire.Audit:
		s.audited(from, m)
	}
}

// granting reports whether this owner may give out slots and start instances now.
func (s *Scheduler) granting() bool { return s.phase == Active && s.now < s.until }

func (s *Scheduler) leaseUntil(t time.Time) {
	was := s.granting()
	if u := t.Sub(s.base) - s.cfg.Guard; u > s.until {
		s.until = u
	}
	if !was && s.granting() {
		s.pumpHungry()
	}
}

// tick does what is due: ends of leases and waits, idle instances, questions to repeat.
func (s *Scheduler) tick() {
	if s.phase != Activating && s.phase != Active {
		return
	}
	s.expireLeases()
	s.expireWaiters()
	s.mayBecomeActive()
	s.lookAtStarts()
	s.settle()
	s.wheel.turn(s.now, s.plan)
	s.drainHosts()
	s.defragment()
	s.lookupAgain()
	s.fenceAgain()
	s.lookAfterPermits()
	s.forget()
	if s.isStarved() && s.now-s.starvedAt >= starvedAgain {
		s.feed()
	}
	s.rejectHopeless()
	s.pumpHungry()
}

// starvedAgain is how long the scheduler believes that no host has room without asking again.
const starvedAgain = 500 * time.Millisecond

// NextTick returns when the next Tick is due, or the zero time when nothing is. Between now and then only the
// arrival of an event changes anything.
func (s *Scheduler) NextTick() time.Time {
	if s.phase != Activating && s.phase != Active {
		return time.Time{}
	}
	next := never
	if l := s.expiry.front; l != nil {
		next = min(next, l.ends)
	}
	if len(s.deadlines) > 0 {
		next = min(next, s.deadlines[0].deadline)
	}
	if i := s.starting.front; i != nil {
		next = min(next, i.look)
	}
	next = min(next, s.wheel.nextTurn())
	if s.phase == Activating && s.quiet > s.now {
		next = min(next, s.quiet)
	}
	if s.gates > 0 {
		next = min(next, s.fenceAt)
	}
	if len(s.empty) > 0 {
		next = min(next, s.empty[0].emptyAt+s.cfg.Forget)
	}
	if len(s.hungry) > 0 || len(s.unknown) > 0 || s.phase == Activating || s.gates > 0 || len(s.settles) > 0 || len(s.permits.asking.all) > 0 || len(s.permits.lending.all) > 0 {
		next = min(next, s.now+100*time.Millisecond)
	} else if len(s.instances) > 0 || s.strange || len(s.permits.shelf) > 0 {
		next = min(next, s.now+s.cfg.Audit/10)
	}
	if next == never {
		return time.Time{}
	}
	return s.base.Add(max(next, s.now+time.Millisecond))
}
