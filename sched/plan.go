package sched

import (
	"math"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/flow"
	"starling/sched/scale"
)

// A scaling is what a version's governor decided, and what it has not heard yet.
type scaling struct {
	governor scale.Governor // nil until the lookup is answered
	news     scale.Demand   // since the last plan
	given    uint16         // what untold began at
	stale    bool           // instances came or went since the last plan
	floored  bool           // its owner's floor holds for it, see Provisioned
	slot     int32          // in the wheel; -1 when not there
	ahead    uint32         // calls counted by their acquire that no frontend has reported yet
	want     int            // instances
	keep     int            // of these, however long they idle
	floor    int            // of these, by the owner's word
	queued   int32          // calls that waited at the last plan
	retries  float32        // starts after a failed one that the version may still ask for at once
	idleKeep time.Duration  // of an instance above keep
	planned  instant        // last
	wakeAt   instant        // next, if in the wheel
	prev     *version       // in the slot of the wheel
	next     *version
	cold     uint64 // calls that waited for a start
	refused  uint64 // calls
	arrivals uint64
	done     uint64
	busy     time.Duration
}

const (
	tellMax    = math.MaxUint16         // arrivals that are summed at most
	replanRest = time.Millisecond       // between plans of a queue that grows by little
	retryShare = 0.1                    // of its calls that a version may spend on starts after a failed one
	retryMax   = 10                     // such starts that a version may have saved up
	floorAgain = 250 * time.Millisecond // when a floor could not be reached
)

// untell folds the arrivals of the warm path into the news.
func (v *version) untell() {
	n := v.given - v.untold
	v.given = v.untold
	v.news.Arrivals += int(n)
	v.arrivals += uint64(n)
	v.ahead += uint32(n)
	v.retries = min(v.retries+retryShare*float32(n), retryMax)
}

// count notes a call. Its version's governor hears of it in a sum, or at once when it rests.
func (s *Scheduler) count(v *version) {
	if v.untold--; v.untold == 0 {
		s.tell(v)
	}
}

// tell gives the governor the arrival it rests for.
func (s *Scheduler) tell(v *version) {
	if v.governor == nil {
		v.untell()
		v.untold, v.given = tellMax, tellMax
		return
	}
	s.plan(v)
}

// report takes a frontend's demand of one version. A call reaches us by its acquire, by the report, or by both: what
// acquires have counted ahead is taken off the report. What is ahead of all reports either waits or holds a slot, so
// a report that was lost, or a call that was placed twice, cannot hide arrivals for long.
func (s *Scheduler) report(d *wire.Demand) {
	v := s.versions.find(d.Version)
	if v == nil {
		return
	}
	v.untell()
	more := d.Arrivals - min(d.Arrivals, v.ahead)
	v.ahead = min(v.ahead-(d.Arrivals-more), uint32(v.waiting+v.leased))
	v.news.Arrivals += int(more)
	v.arrivals += uint64(more)
	v.done += uint64(d.Done)
	v.busy += d.Busy
	v.news.Done += int(d.Done)
	v.news.Busy += d.Busy
	v.news.Peak = max(v.news.Peak, int(d.InFlight))
	if more > 0 && v.slot < 0 && v.governor != nil {
		s.wheel.arm(v, s.now)
	}
}

// load describes v to its governor.
func (s *Scheduler) load(v *version) scale.Load {
	a, each := v.of.account, int(v.slots)
	slots := int(v.limit) - v.of.inUse() - v.starting*each
	if v.waiting > 0 && slots > 0 { // instances that are to idle need no permits: their calls will
		if a.leased+a.starting >= a.purse.Permits {
			s.morePermits(a)
		}
		slots = min(slots, a.purse.Permits-a.leased-a.starting)
	}
	return scale.Load{Waiting: int(v.waiting), Starting: v.starting, Ready: v.ready, Busy: int(v.leased), Ramp: s.ramp(), Slots: each,
		Left: (slots + each - 1) / each, StartsLeft: s.cfg.FunctionMax - v.of.starting, OnProbation: v.failures+v.troubles > 0}
}

// plan asks the governor of v, starts what is missing, stops what is too much, and plans the next plan.
func (s *Scheduler) plan(v *version) {
	if v.governor == nil || v.gone {
		return
	}
	v.untell()
	v.news.Peak = max(v.news.Peak, int(v.peak), int(v.leased))
	v.governor.Note(s.now, v.news)
	v.news, v.peak = scale.Demand{}, v.leased
	l := s.load(v)
	p := v.governor.Plan(s.now, l)
	v.planned, v.queued, v.stale = s.now, v.waiting, false
	v.floor = s.floorOf(v)
	s.wanted -= v.want
	v.want, v.keep, v.idleKeep = max(p.Want, v.floor), max(p.Keep, v.floor), p.IdleKeep
	s.wanted += v.want
	v.untold = 1
	if p.Again > 0 && p.Again < scale.Lively {
		v.untold = tellMax
	}
	v.given = v.untold
	s.launch(v, l)
	s.wakeUp(v, p.Again, s.retireSurplus(v))
}

// wakeUp arms the wheel for what comes first: the governor's wish, an instance that may go, a floor to be reached or
// to be looked up.
func (s *Scheduler) wakeUp(v *version, again time.Duration, surplus instant) {
	at := surplus
	if again > 0 {
		at = min(at, s.now+again)
	}
	if v.floored {
		at = min(at, s.now+time.Minute)
		if int(v.all.n) < v.floor {
			at = min(at, s.now+floorAgain)
		}
	}
	if at == never {
		s.wheel.disarm(v)
		s.mayForget(v)
		return
	}
	s.wheel.arm(v, at)
}

// startFor starts what the queue of v lacks. The governor is asked again when the picture has changed: instances, or an
// eighth of the queue, or the time.
func (s *Scheduler) startFor(v *version) {
	if !v.known() {
		return
	}
	if v.stale || v.waiting > v.queued+v.queued/8 || s.now-v.planned >= replanRest || v.untold == 0 {
		s.plan(v)
		return
	}
	if int(v.all.n) < v.want {
		s.launch(v, s.load(v))
	}
}

// launch starts what is wanted and not there, within the limits.
func (s *Scheduler) launch(v *version, l scale.Load) {
	if !s.granting() || s.held(v) {
		return
	}
	n, left := l.Bound(v.want-v.ready-v.starting), v.most-v.of.instances
	if s.halfOpen(v) {
		n = min(n, 1-int(v.all.n))
	}
	if n > left {
		if v.waiting > 0 {
			s.makeWay(v, n-left)
		}
		n = left
	}
	if n > 0 && v.waiting == 0 {
		s.counts.Prewarmed += uint64(n)
	}
	for ; n > 0 && s.startOne(v, s.now); n-- {
	}
}

// floorOf returns how many instances the owner of v wants at least: of the span's share that is ours.
func (s *Scheduler) floorOf(v *version) int {
	if !v.floored || v.gone {
		return 0
	}
	n := v.config.Config.ProvisionedAt(s.base.Add(s.now))
	return min(flow.Share(n, v.config.Key(), s.keys), v.most)
}

// provisioned takes the list of all versions with a floor: those it does not name have none any more.
func (s *Scheduler) provisioned(list []VersionKnown) {
	if s.phase != Activating && s.phase != Active {
		return
	}
	for _, v := range s.floors {
		v.floored = false
	}
	old := s.floors
	s.floors = nil
	for _, k := range list {
		if flow.Share(starling.ConcurrencyMax, k.Version.Key(), s.keys) == 0 {
			continue // another partition's
		}
		v := s.addVersion(k.Version.ID)
		v.floored = true
		s.floors = append(s.floors, v)
		s.versionKnown(k.Version, k.ConcurrencyMax)
		s.plan(v)
	}
	for _, v := range old {
		if !v.floored {
			s.plan(v)
		}
	}
}

// remembered returns the governor of a version that is known from now on: the old one, if it was here before.
func (s *Scheduler) remembered(v *version) scale.Governor {
	c := &v.config.Config
	facts := scale.Facts{Slots: int(v.slots), MemoryMiB: c.MemoryMiB, Provisioned: c.Provisioned}
	l, ok := s.memory.take(v.id)
	if !ok {
		return s.cfg.Policy.New(facts)
	}
	v.homes = l.homes
	v.account.purse.Permits += l.permits
	if l.governor != nil {
		return l.governor
	}
	return scale.Revive(s.cfg.Policy, facts, s.now, l.state(s.now))
}

// A memory keeps the governors and homes of the versions forgotten last: a call a day is worth a forecast, but not the books of
// a version.
type memory struct {
	most      int
	learned   map[starling.VersionID]learned
	inherited map[starling.VersionID]learned // of versions in use whose configuration a restored scheduler does not know yet
	kin       map[spanRef]int                // of these, by function
	order     []forgotten                    // oldest first; an entry whose turn is not that of learned is void
	turn      uint64
}

type learned struct {
	governor scale.Governor     // nil for one that was handed over
	handed   *scale.State       // what it knew
	at       instant            // when handed was true
	key      starling.Key64     // of the function's span
	account  starling.AccountID // of the function, while the version's configuration is not known
	limit    int                // the same, of the span
	permits  int                // the same, taken from the purse for its leases until the account counts them
	homes    homes
	turn     uint64
}

// state returns what is known at the instant given.
func (l *learned) state(at instant) scale.State {
	if l.handed != nil {
		return l.handed.Aged(at - l.at)
	}
	return scale.StateOf(l.governor, at)
}

type forgotten struct {
	version starling.VersionID
	turn    uint64
}

// find returns what is kept of a version.
func (m *memory) find(id starling.VersionID) (l learned, ok bool) {
	if l, ok = m.inherited[id]; !ok {
		l, ok = m.learned[id]
	}
	return l, ok
}

func (m *memory) take(id starling.VersionID) (l learned, ok bool) {
	l, ok = m.find(id)
	if o, ok := m.inherited[id]; ok {
		m.kin[spanRef{o.account, o.key}]--
		delete(m.inherited, id)
	}
	delete(m.learned, id)
	return l, ok
}

func (m *memory) put(v *version) {
	m.keep(v.id, learned{governor: v.governor, key: spanOf(v.config.Key()), homes: v.homes})
}

func (m *memory) keep(id starling.VersionID, l learned) {
	m.turn++
	l.turn = m.turn
	m.learned[id] = l
	m.order = append(m.order, forgotten{id, m.turn})
	for len(m.order) > m.most {
		if f := m.order[0]; m.learned[f.version].turn == f.turn {
			delete(m.learned, f.version)
		}
		m.order = m.order[1:]
	}
}

// rememberedStates copies what is kept of versions that are not in the books, oldest first.
func (s *Scheduler) rememberedStates(at instant) (out []RememberedState) {
	for _, f := range s.memory.order {
		l, ok := s.memory.learned[f.version]
		if !ok || l.turn != f.turn || s.versions.find(f.version) != nil {
			continue
		}
		if st := l.state(at); !st.Empty() {
			out = append(out, RememberedState{ID: f.version, Key: l.key, Homes: l.homes, Learned: st})
		}
	}
	return out
}
