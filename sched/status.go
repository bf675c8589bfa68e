package sched

import (
	"fmt"
	"slices"
	"time"

	"starling"
)

// Counts are sums since the scheduler was made.
type Counts struct {
	Acquires, Grants, Cold, Cancelled             uint64
	Releases, Expired, Recalls                    uint64
	Starts, StartsFailed, Stops, Exits, Evictions uint64
	Prewarmed, RetriesSpared                      uint64 // starts that no call waited for; starts put off by the retry budget
	QueueFull, QueueTimeout, NoHost, Failed       uint64 // refusals by reason
	FunctionLimit, AccountLimit                   uint64
	Moved, Other                                  uint64
	Relocated                                     uint64 // instances that were started again elsewhere to empty a host
}

func (c *Counts) refused(k starling.Kind, reason string) {
	switch {
	case k == starling.Moved:
		c.Moved++
	case k == starling.Failed:
		c.Failed++
	case reason == ReasonQueueFull:
		c.QueueFull++
	case reason == ReasonQueueTimeout:
		c.QueueTimeout++
	case reason == ReasonFunction:
		c.FunctionLimit++
	case reason == ReasonAccount:
		c.AccountLimit++
	case reason == ReasonNoHost:
		c.NoHost++
	default:
		c.Other++
	}
}

// Refused returns the sum of all refusals.
func (c *Counts) Refused() uint64 {
	return c.QueueFull + c.QueueTimeout + c.NoHost + c.Failed + c.Moved + c.Other + c.FunctionLimit + c.AccountLimit
}

// A Status is the state of one partition in numbers.
type Status struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	Phase     Phase
	Granting  bool
	Hosts     int // fenced
	Functions int
	Versions  int
	Instances int // starting, ready and stopping
	Starting  int
	Wanted    int // instances, by the plans of all versions
	Leased    int // slots
	Waiting   int // calls
	Permits   int // that this partition holds of its accounts' limits
	Lent      int // permits of accounts whose ledger is here, at most, in all partitions
	Lacking   int // permits wanted of these ledgers beyond what is lent
	Counts    Counts
}

// Status returns the state in numbers. It walks hosts and accounts: it is for every beat, not for every batch.
func (s *Scheduler) Status() Status {
	st := Status{Partition: s.id, Epoch: s.epoch, Range: s.keys, Phase: s.phase, Granting: s.granting(), Functions: len(s.functions),
		Versions: s.versions.n, Instances: len(s.instances), Starting: int(s.starting.n), Wanted: s.wanted, Leased: s.leased, Waiting: len(s.waiters), Counts: s.counts}
	for _, h := range s.order {
		if h.fenced {
			st.Hosts++
		}
	}
	for _, a := range s.permits.purses {
		st.Permits += a.purse.Held(a.leased)
	}
	for _, b := range s.permits.shelf {
		lent, lacking := b.Lent()
		st.Lent, st.Lacking = st.Lent+lent, st.Lacking+lacking
	}
	return st
}

// A VersionStatus is the state of one version in numbers.
type VersionStatus struct {
	Version   starling.VersionID
	Function  starling.FunctionRef // empty until known
	Isolation starling.Isolation   // the same
	Ready     int
	Starting  int
	Leased    int // slots
	Waiting   int // calls
	HeldUntil time.Duration
	Reason    string // of the hold
	Arrivals  uint64 // calls, those under a lease included
	Done      uint64
	Busy      time.Duration
	Wanted    int // instances, by the last plan
	Kept      int // of these, however long they idle
	Floor     int // of these, by the owner's word
	Cold      uint64
	Refused   uint64
}

// ColdRatio returns the share of calls that waited for a start, 0 without calls.
func (v *VersionStatus) ColdRatio() float64 {
	if v.Arrivals == 0 {
		return 0
	}
	return float64(v.Cold) / float64(v.Arrivals)
}

func (s *Scheduler) statusOf(v *version) VersionStatus {
	st := VersionStatus{Version: v.id, Ready: v.ready, Starting: v.starting, Leased: int(v.leased), Waiting: int(v.waiting),
		Arrivals: v.arrivals + uint64(v.given-v.untold), Done: v.done, Busy: v.busy, Wanted: v.want, Kept: v.keep, Floor: v.floor, Cold: v.cold, Refused: v.refused}
	if v.of != nil {
		st.Function, st.Isolation = v.of.ref, v.config.Isolation()
	}
	if s.held(v) {
		st.HeldUntil, st.Reason = v.hold-s.now, v.holdReason
	}
	return st
}

// Busiest returns the state of up to n versions: those with the longest queues first, then those with most slots at
// work, then those that were called most. It looks at every version once, for people who ask.
func (s *Scheduler) Busiest(n int) []VersionStatus {
	var top []*version
	for _, x := range s.versions.slots {
		if x.v == nil || n <= 0 || len(top) == n && !x.v.busierThan(top[n-1]) {
			continue
		}
		at, _ := slices.BinarySearchFunc(top, x.v, func(a, b *version) int {
			if a.busierThan(b) {
				return -1
			}
			return 1
		})
		if top = slices.Insert(top, at, x.v); len(top) > n {
			top = top[:n]
		}
	}
	out := make([]VersionStatus, 0, len(top))
	for _, v := range top {
		out = append(out, s.statusOf(v))
	}
	return out
}

// busierThan is an order of all versions.
func (v *version) busierThan(o *version) bool {
	switch {
	case v.waiting != o.waiting:
		return v.waiting > o.waiting
	case v.leased != o.leased:
		return v.leased > o.leased
	case v.arrivals != o.arrivals:
		return v.arrivals > o.arrivals
	}
	return v.id < o.id
}

// inOrder returns the versions by id: what leaves this package is in order.
func (s *Scheduler) inOrder() []*version {
	vs := make([]*version, 0, s.versions.n)
	for _, x := range s.versions.slots {
		if x.v != nil {
			vs = append(vs, x.v)
		}
	}
	slices.SortFunc(vs, func(a, b *version) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return vs
}

// Check reports the first of the scheduler's invariants that does not hold: every sum is the sum of its parts, no
// slot is given twice, no limit is passed. It walks everything; it is for tests and the simulator.
func (s *Scheduler) Check() error {
	type sums struct{ instances, starting, leased, waiting int }
	functions, accounts := map[*function]*sums{}, map[*account]*sums{}
	for _, f := range s.functions {
		functions[f] = &sums{}
		if accounts[f.account] == nil {
			accounts[f.account] = &sums{}
		}
	}
	total, wanted, outside := 0, 0, map[*version]int32{}
	for l := s.expiry.front; l != nil; l = l.in[byExpiry].next {
		if l.instance.state >= isStopping {
			outside[l.instance.version]++
		}
	}
	for _, v := range s.inOrder() {
		if err := s.checkVersion(v, outside[v]); err != nil {
			return err
		}
		wanted += v.want
		total += int(v.waiting)
		if v.of == nil {
			continue
		}
		f, a := functions[v.of], accounts[v.of.account]
		if f == nil || a == nil {
			return fmt.Errorf("version %d: its function is forgotten", v.id)
		}
		f.instances, f.starting, f.leased, f.waiting = f.instances+int(v.all.n), f.starting+v.starting, f.leased+int(v.leased), f.waiting+int(v.waiting)
		a.leased, a.starting = a.leased+int(v.leased), a.starting+v.starting*int(v.slots)
	}
	for f, n := range functions {
		if *n != (sums{f.instances, f.starting, f.inUse(), f.waiting}) {
			return fmt.Errorf("function %s: books say %+v, its versions sum to %+v", f.ref, *f, *n)
		}
	}
	for a, n := range accounts {
		if n.leased != a.leased || n.starting != a.starting {
			return fmt.Errorf("account %s: books say %d leased %d starting, versions sum to %+v", a.id, a.leased, a.starting, *n)
		}
	}
	if err := s.permits.check(); err != nil {
		return err
	}
	if wanted != s.wanted {
		return fmt.Errorf("versions want %d instances, counted %d", wanted, s.wanted)
	}
	if total != len(s.waiters) || total != len(s.deadlines) {
		return fmt.Errorf("%d calls wait by version, %d by call, %d by deadline", total, len(s.waiters), len(s.deadlines))
	}
	return s.checkInstances()
}

// checkVersion sums up v; outside counts its leases of instances that serve no more.
func (s *Scheduler) checkVersion(v *version, outside int32) error {
	held, waiting := int32(0), int32(0)
	for _, h := range v.holders {
		held += h.held
		waiting += h.waiting
	}
	used, ready, starting, free := outside, 0, 0, 0
	for i := v.all.front; i != nil; i = i.in[byVersion].next {
		used += i.used
		switch i.state {
		case isReady:
			ready++
		case isStarting:
			starting++
		default:
			return fmt.Errorf("instance %s: gone, yet counted", i.id)
		}
		if i.isFree {
			free++
		}
		if canTake := i.state == isReady && i.used < v.slots && !v.gone && !i.moved; canTake != i.isFree {
			return fmt.Errorf("instance %s: %d of %d slots used, free is %t", i.id, i.used, v.slots, i.isFree)
		}
	}
	switch {
	case held != v.leased || used != v.leased:
		return fmt.Errorf("version %d: %d leased, %d by frontend, %d by instance", v.id, v.leased, held, used)
	case v.of != nil && (v.alone != (len(v.of.members) == 1) || v.account != v.of.account):
		return fmt.Errorf("version %d: alone is %t among %d", v.id, v.alone, len(v.of.members))
	case waiting != v.waiting || (v.waiting > 0) != (v.hungryAt >= 0):
		return fmt.Errorf("version %d: %d wait, %d by frontend, hungry at %d", v.id, v.waiting, waiting, v.hungryAt)
	case ready != v.ready || starting != v.starting || ready+starting != int(v.all.n) || free != int(v.free.n):
		return fmt.Errorf("version %d: %d ready, %d starting, %d free; counted %d, %d, %d", v.id, v.ready, v.starting, v.free.n, ready, starting, free)
	}
	return nil
}

func (s *Scheduler) checkInstances() error {
	onHosts, gates := 0, 0
	for _, h := range s.order {
		starting, ready := 0, 0
		for i := h.all.front; i != nil; i = i.in[byHost].next {
			onHosts++
			if s.instances[i.id] != i || i.host != h {
				return fmt.Errorf("instance %s: host %s lists it, the books do not", i.id, h.node)
			}
			if i.state == isStarting {
				starting++
			}
			if i.state == isReady {
				ready++
			}
			if (i.state == isReady) != (i.heapAt >= 0) {
				return fmt.Errorf("instance %s: state %d, place %d among the idle", i.id, i.state, i.heapAt)
			}
		}
		if starting != h.starting || ready != h.ready {
			return fmt.Errorf("host %s: %d starting, %d ready, counted %d, %d", h.node, h.starting, h.ready, starting, ready)
		}
		if h.gate {
			gates++
		}
	}
	for _, f := range s.census.fronts {
		if f.gate {
			gates--
		}
	}
	leased := 0
	for l := s.expiry.front; l != nil; l = l.in[byExpiry].next {
		leased++
		if n := l.in[byExpiry].next; n != nil && n.ends < l.ends {
			return fmt.Errorf("lease %d ends after the next one", l.id)
		}
	}
	switch {
	case onHosts != len(s.instances):
		return fmt.Errorf("%d instances on hosts, %d in the books", onHosts, len(s.instances))
	case leased != s.leased || leased+len(s.spare) != len(s.leases):
		return fmt.Errorf("%d leases by end, %d counted, %d spare of %d", leased, s.leased, len(s.spare), len(s.leases))
	case gates != s.gates-s.census.open:
		return fmt.Errorf("%d hosts and %d frontends gate the activation, counted otherwise", s.gates, s.census.open)
	}
	return nil
}

// Leased returns how many slots are leased of the function that v belongs to.
func (s *Scheduler) Leased(v starling.VersionID) int {
	if o := s.versions.find(v); o != nil && o.of != nil {
		return o.of.inUse()
	}
	return 0
}

// Permits returns how many permits of an account this partition holds, how many of them slots need that are leased,
// waited for or being started, and, where the account's ledger is here, how many that has lent at most.
func (s *Scheduler) Permits(id starling.AccountID) (held, needed, lent int) {
	if a := s.accounts[id]; a != nil {
		held, needed = a.purse.Held(a.leased), a.need()
	}
	if b := s.permits.books[id]; b != nil {
		lent, _ = b.Lent()
	}
	return held, needed, lent
}
