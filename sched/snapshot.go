package sched

import (
	"cmp"
	"slices"
	"time"

	"starling"
	"starling/sched/ledger"
	"starling/sched/scale"
)

// A Snapshot is the state of a scheduler that goes on elsewhere: at another node, in two halves, or joined with its neighbour.
// What the successor has itself is not in it: the configurations of versions are in its catalog. Times are spans, so that it
// holds on another machine. It shares nothing with the scheduler.
type Snapshot struct {
	Partition  starling.PartitionID // the life that ends
	Epoch      starling.Epoch
	Range      starling.Range
	Seq        uint64 // of the last instance, Borrow and ledger that the life has drawn; its successors draw above it
	Generation uint32 // of lease slots
	Number     uint64 // of the last change in a ledger that was forgotten
	Hosts      []HostState
	Accounts   []AccountState     // by id
	Books      []ledger.BookState // of the accounts whose key is in Range, by account
	Versions   []VersionState     // in use, by id
	Remembered []RememberedState  // versions not in use whose governor is kept, oldest first
	Instances  []InstanceState    // by host, in the order of their starts
	Leases     []LeaseState       // soonest end first
	Waiting    []WaitingState     // by version and frontend, in the order of their turns
	Settling   []SettleState      // spans that were cut lately
}

// A SettleState is what a part of a cut span observes until the leases from before the cut have ended.
type SettleState struct {
	Key      starling.Key64 // the first of the span
	Withheld int            // slots of our share that the other parts of the span may still use
	Left     time.Duration  // so long they are withheld, and leases above our share are not renewed
}

// A HostState is what is known of one host.
type HostState struct {
	Node     starling.NodeID
	Zone     starling.Zone
	Fenced   bool // obeys the life that ends
	Reported bool // the numbers below mean something
	Draining bool
	Full     bool
	FreeMiB  int // less what was started since the report; may be below 0
	TotalMiB int
	CPU      int                // busy share, in thousandths
	Others   int                // starts in flight, of all partitions
	Avoid    time.Duration      // not used for so long
	Pools    []starling.Runtime // of isolation process with ready sandboxes
	Gives    starling.Isolations
	Code     []starling.VersionID
}

// An AccountState is the purse of an account.
type AccountState struct {
	ID    starling.AccountID
	Max   int // its limit in slots, as far as is known
	Purse ledger.PurseState
}

// A VersionState is what is known of a version in use, beside its configuration.
type VersionState struct {
	ID      starling.VersionID
	Account starling.AccountID // empty while its lookup is not answered; then Key and Limit mean nothing
	Key     starling.Key64     // the first of the function's span
	Limit   int                // slots of the whole span
	Gone    bool               // deleted
	Floored bool               // its owner wants some instances at all times

	Homes                    [homesMax]starling.NodeID
	Failures, Troubles, Dead int           // in a row: own failures of starts, those of hosts, young deaths
	Hold                     time.Duration // no start for so long
	Reason, Text, Trouble    string        // why, and why the last start failed by a host's fault
	Retries                  float32
	Ahead                    uint32
	Want, Keep               int // instances, by the last plan
	IdleKeep                 time.Duration
	Again                    time.Duration // until the next plan; below 0 for none
	Learned                  scale.State
}

// A RememberedState is what is kept of a version that is not in use.
type RememberedState struct {
	ID      starling.VersionID
	Key     starling.Key64
	Homes   [homesMax]starling.NodeID
	Learned scale.State
}

// An InstancePhase is the part of its life an instance is in.
type InstancePhase uint8

// The phases of an instance; numbers are fixed for ever.
const (
	Starting InstancePhase = 0
	Ready    InstancePhase = 1
	Stopping InstancePhase = 2 // told to end
	Lost     InstancePhase = 3 // its host seems dead; slots of it may still be in use
)

// An InstanceState is one instance of a snapshot.
type InstanceState struct {
	ID      starling.InstanceID
	Host    starling.NodeID
	Key     starling.Key64
	Version starling.VersionID
	Phase   InstancePhase
	Age     time.Duration // since it was ready, or, before that, since the decision to start it
	Idle    time.Duration // 0 while in use
}

// A LeaseState is one live lease of a snapshot, under the name that its frontend knows.
type LeaseState struct {
	Partition starling.PartitionID // that granted it
	Epoch     starling.Epoch
	ID        starling.LeaseID
	Instance  starling.InstanceID
	Frontend  starling.NodeID // 0 for one taken over whose frontend did not speak yet
	Recalled  bool
	Left      time.Duration
}

// A WaitingState is one call in the queue.
type WaitingState struct {
	Call     uint64
	Frontend starling.NodeID
	Version  starling.VersionID
	Key      starling.Key64
	Age      time.Duration // since it came
	Left     time.Duration // until it is refused
}

// Snapshot copies the state of an active or frozen scheduler at the instant now, in one order for one state. Of an active one,
// what frontends reported since the last plans is missing.
func (s *Scheduler) Snapshot(now time.Time) Snapshot {
	at := max(s.now, now.Sub(s.base))
	out := Snapshot{Partition: s.id, Epoch: s.epoch, Range: s.keys, Seq: s.Seq(), Generation: s.life, Number: s.permits.number}
	for _, l := range s.leases {
		out.Generation = max(out.Generation, l.gen)
	}
	held := map[starling.AccountID]int{}
	for _, l := range s.memory.inherited {
		held[l.account] += l.permits
	}
	for id, a := range s.accounts {
		st := AccountState{ID: id, Max: a.max, Purse: a.purse.State(at)}
		st.Purse.Permits += held[id]
		out.Accounts = append(out.Accounts, st)
	}
	slices.SortFunc(out.Accounts, func(a, b AccountState) int { return cmp.Compare(a.ID, b.ID) })
	for _, b := range s.permits.shelf {
		out.Books = append(out.Books, b.State(at))
	}
	slices.SortFunc(out.Books, func(a, b ledger.BookState) int { return cmp.Compare(a.Account, b.Account) })
	out.Remembered = s.rememberedStates(at)
	for _, v := range s.inOrder() {
		s.snapVersion(&out, v, at)
	}
	for _, h := range s.order {
		s.snapHost(&out, h, at)
	}
	s.snapLeases(&out, at)
	s.snapSettles(&out, at)
	return out
}

// Seq returns the highest number that this life has drawn for anything. A scheduler that replaces this one in the same epoch
// begins above it.
func (s *Scheduler) Seq() uint64 { return max(s.seq, s.first, s.permits.seq) }

// InUse returns the versions that a successor needs the configuration of, by id.
func (s *Scheduler) InUse() []starling.VersionID {
	var ids []starling.VersionID
	for _, v := range s.inOrder() {
		if v.inUse() {
			ids = append(ids, v.id)
		}
	}
	return ids
}

// InUse returns the versions that the successor needs the configuration of, by id.
func (s *Snapshot) InUse() []starling.VersionID {
	ids := make([]starling.VersionID, len(s.Versions))
	for k := range s.Versions {
		ids[k] = s.Versions[k].ID
	}
	return ids
}

// inUse reports whether more is known of v than its governor.
func (v *version) inUse() bool {
	return !v.isEmpty() || v.gone || v.failures+v.troubles+v.deaths > 0
}

func (s *Scheduler) snapVersion(out *Snapshot, v *version, at instant) {
	st := VersionState{ID: v.id, Gone: v.gone, Floored: v.floored, Homes: v.homes, Failures: v.failures, Troubles: v.troubles, Dead: v.deaths,
		Hold: max(v.hold-at, 0), Reason: v.holdReason, Text: v.holdText, Trouble: v.trouble, Retries: v.retries, Ahead: v.ahead,
		Want: v.want, Keep: v.keep, IdleKeep: v.idleKeep, Again: -1, Learned: s.learnedOf(v, at)}
	if v.of != nil {
		st.Account, st.Key, st.Limit = v.account.id, spanOf(v.config.Key()), v.spanLimit()
	} else if l, ok := s.memory.inherited[v.id]; ok {
		st.Account, st.Key, st.Limit = l.account, l.key, l.limit
	}
	if v.slot >= 0 {
		st.Again = max(v.wakeAt-at, 0)
	}
	if v.inUse() {
		out.Versions = append(out.Versions, st)
	} else if v.of != nil && !st.Learned.Empty() {
		out.Remembered = append(out.Remembered, RememberedState{ID: v.id, Key: st.Key, Homes: v.homes, Learned: st.Learned})
	}
	for k := range v.holders {
		for w := v.holders[k].queue.front; w != nil; w = w.next {
			out.Waiting = append(out.Waiting, WaitingState{Call: w.call, Frontend: w.node, Version: v.id, Key: w.key, Age: at - w.since, Left: max(w.deadline-at, 0)})
		}
	}
}

// learnedOf returns what is known of the calls of v.
func (s *Scheduler) learnedOf(v *version, at instant) scale.State {
	if v.governor != nil {
		return scale.StateOf(v.governor, at)
	}
	if l, ok := s.memory.find(v.id); ok {
		return l.state(at)
	}
	return scale.State{}
}

func (s *Scheduler) snapHost(out *Snapshot, h *host, at instant) {
	out.Hosts = append(out.Hosts, HostState{Node: h.node, Zone: h.zone, Fenced: h.fenced, Reported: h.reported, Draining: h.draining, Full: h.full, FreeMiB: h.free,
		TotalMiB: h.total, CPU: h.cpu, Others: h.others, Avoid: max(h.avoid-at, 0), Pools: h.stocked(), Gives: h.gives, Code: slices.Clone(h.code)})
	for i := h.all.front; i != nil; i = i.in[byHost].next {
		out.Instances = append(out.Instances, i.snap(at))
	}
}

func (i *instance) snap(at instant) InstanceState {
	st := InstanceState{ID: i.id, Host: i.node, Key: i.key, Version: i.version.id}
	switch i.state {
	case isStarting:
		st.Phase, st.Age = Starting, at-i.began
	case isReady:
		st.Phase, st.Age = Ready, at-i.readyAt
		if i.used == 0 {
			st.Idle = max(at-i.idle, 0)
		}
	case isStopping:
		st.Phase = Stopping
	default:
		st.Phase = Lost
	}
	return st
}

// snapLeases copies the leases, and the lost instances that only they keep in the books.
func (s *Scheduler) snapLeases(out *Snapshot, at instant) {
	lost := map[*instance]bool{}
	for l := s.expiry.front; l != nil; l = l.in[byExpiry].next {
		k := s.nameOf(l)
		out.Leases = append(out.Leases, LeaseState{Partition: k.partition, Epoch: k.epoch, ID: k.id, Instance: l.instance.id, Frontend: l.node, Recalled: l.recalled, Left: l.ends - at})
		if i := l.instance; i.state == isLost && !lost[i] {
			lost[i] = true
			out.Instances = append(out.Instances, i.snap(at))
		}
	}
}

// spanOf returns the first key of the span that has k.
func spanOf(k starling.Key64) starling.Key64 { return k >> 32 << 32 }
