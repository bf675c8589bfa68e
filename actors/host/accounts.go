package host

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/metrics"
	"starling/metrics/profile"
	"starling/sched/flow"
)

// startWait is how long a start waits for its account to be within its bound; then it waits for other starts and their rests only.
const startWait = 10 * time.Second

// errShare refuses a call of an account that has as much at work on a crowded host as each may have.
var errShare = starling.Errorf(starling.Overloaded, "invoke function",
	"the host is overloaded and this account has its fair share of it at work: retry after a pause").With(flow.ReasonOverload).RetryAfter(time.Second)

// An account is a tenant with instances on this host. A call adds itself and looks at the bound: no lock, no memory.
type account struct {
	id       starling.AccountID
	running  atomic.Int64 // calls at work
	starting atomic.Int64 // instances
	bound    atomic.Int64 // of both together; flow.NoBound mostly
	starts   atomic.Int64 // instances that may start at once; flow.NoBound where nobody else calls
	rested   atomic.Int64 // from when on the next instance may start, in ns since 1970
	refused  atomic.Int64 // since the last look

	entries int // guarded by accounts.mu, as what follows
	tenant  flow.Tenant
	cpu     float64 // seconds that calls computed lately
	run     float64 // seconds that they took
}

// enter takes a place for a call, if the account has one left.
func (a *account) enter() bool {
	n := a.running.Add(1)
	if b := a.bound.Load(); b == flow.NoBound || n+a.starting.Load() <= b {
		return true
	}
	a.running.Add(-1)
	a.refused.Add(1)
	return false
}

func (a *account) leave() { a.running.Add(-1) }

// start takes a place for a start. It waits while the account has as many starts at work as it may or rests, which is bounded, and for
// startWait at most while it has no place left for a call or start.
func (s *accounts) start(ctx context.Context, a *account) {
	for until := time.Now().Add(startWait); ; {
		n, now := a.starting.Add(1), time.Now()
		if n <= a.starts.Load() && now.UnixNano() >= a.rested.Load() && (n+a.running.Load() <= a.bound.Load() || now.After(until)) {
			return
		}
		a.starting.Add(-1)
		t := time.NewTimer(flow.LookTime)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			a.starting.Add(1)
			return
		}
	}
}

// started gives back the place of a start that took so long, with a sandbox of such a cost.
func (s *accounts) started(a *account, took, sandbox time.Duration) {
	s.mu.Lock()
	rest := s.level.Rest(&a.tenant, took, sandbox)
	s.mu.Unlock()
	if rest > 0 {
		a.rested.Store(time.Now().Add(rest).UnixNano())
	}
	a.starting.Add(-1)
}

// accounts are the tenants of a host and the level that bounds them while it is crowded.
type accounts struct {
	processors int // of the machine

	mu    sync.Mutex // guards what follows; a leaf
	byID  map[starling.AccountID]*account
	level flow.Level
	all   []*flow.Tenant       // of the look under way
	door  []starling.AccountID // who calls at the door of this node; replaced whole, never edited
}

// join counts one more entry of an account.
func (s *accounts) join(id starling.AccountID) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.byID[id]
	if a == nil {
		a = &account{id: id, tenant: flow.Tenant{Part: 1, Beside: s.beside(id), Bound: flow.NoBound}}
		a.bound.Store(flow.NoBound)
		a.starts.Store(s.level.Starts(&a.tenant, s.processors))
		s.byID[id] = a
	}
	a.entries++
	return a
}

// beside reports whether an account other than id calls at the door. The caller holds s.mu.
func (s *accounts) beside(id starling.AccountID) bool {
	return slices.ContainsFunc(s.door, func(o starling.AccountID) bool { return o != id })
}

// part counts one entry less.
func (s *accounts) part(a *account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.entries--; a.entries == 0 {
		delete(s.byID, a.id)
	}
}

// used counts what calls of an account took between two beats. What it did before counts half.
func (s *accounts) used(id starling.AccountID, t *profile.Tally) {
	if t.CPU <= 0 || t.CPUCalls == 0 || t.Run <= 0 {
		return
	}
	cpu := t.CPU.Seconds() / float64(t.CPUCalls) * float64(t.Calls)
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.byID[id]; a != nil {
		a.cpu, a.run = a.cpu/2+cpu, a.run/2+t.Run.Seconds()
		a.tenant.Part = min(max(a.cpu/a.run, leastPart), 1)
	}
}

// leastPart is the least that a call at work is taken to want of a processor.
const leastPart = 1e-3

// look sets the bounds by how many threads want to run for each processor now, and reports whether the pools are to leave
// those to calls: they are queued for, or an account has just begun to start instances beside others and rests.
func (s *accounts) look(crowd float64) (spare bool) {
	now := time.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = s.all[:0]
	for _, a := range s.byID {
		a.tenant.Running, a.tenant.Refused, a.tenant.Beside = int(a.running.Load()), int(a.refused.Swap(0)), s.beside(a.id)
		s.all = append(s.all, &a.tenant)
	}
	s.level.Look(crowd, s.all)
	spare = s.level.Crowded()
	for _, a := range s.byID {
		a.bound.Store(a.tenant.Bound)
		a.starts.Store(s.level.Starts(&a.tenant, s.processors))
		spare = spare || now < a.rested.Load()
	}
	return spare
}

// standing returns the crowd and the level.
func (s *accounts) standing() (crowd, level float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.level.Crowd(), s.level.Height()
}

// watchLoop looks at the machine while the host is open.
func (h *Host) watchLoop(ctx context.Context) {
	crowd := h.cfg.Crowd
	if crowd == nil {
		r := metrics.OpenRunnable()
		defer r.Close()
		crowd = r.PerCPU
	}
	t := time.NewTicker(flow.LookTime)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			spare := h.accounts.look(crowd())
			for _, p := range h.cfg.Pools {
				p.Crowded(spare)
			}
		}
	}
}
