package sched

import (
	"math/rand/v2"
	"time"

	"starling"
)

// A Snapshot is what a scheduler knows that cannot be asked for again at once. Calls that wait are not in it: their
// frontends hold them and ask again. Neither is the hosts' room, which they report twice a second. Times are spans,
// so that it holds on another machine.
type Snapshot struct {
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	Seq       uint64 // of the last instance drawn
	Hosts     []starling.NodeID
	Versions  []VersionKnown // those whose lookup was answered
	Instances []InstanceState
	Leases    []LeaseState
}

// An InstanceState is one instance of a snapshot.
type InstanceState struct {
	ID      starling.InstanceID
	Host    starling.NodeID
	Key     starling.Key64
	Version starling.VersionID
	Ready   bool
	Idle    time.Duration // 0 while in use
}

// A LeaseState is one live lease of a snapshot.
type LeaseState struct {
	ID       starling.LeaseID
	Epoch    starling.Epoch // that granted it
	Instance starling.InstanceID
	Frontend starling.NodeID // 0 for one taken over whose frontend did not speak yet
	Left     time.Duration
}

// Snapshot copies the state of an active scheduler at the instant now, in one order for one state.
func (s *Scheduler) Snapshot(now time.Time) Snapshot {
	at := max(s.now, now.Sub(s.base))
	out := Snapshot{Partition: s.id, Epoch: s.epoch, Range: s.keys, Seq: s.seq}
	for _, v := range s.inOrder() {
		if v.of != nil && !v.gone {
			out.Versions = append(out.Versions, VersionKnown{v.config, v.of.account.max})
		}
	}
	for _, h := range s.order {
		if h.fenced {
			out.Hosts = append(out.Hosts, h.node)
		}
		for i := h.all.front; i != nil; i = i.in[byHost].next {
			if i.state == isStopping {
				continue
			}
			st := InstanceState{ID: i.id, Host: h.node, Key: i.key, Version: i.version.id, Ready: i.state == isReady}
			if i.used == 0 && st.Ready {
				st.Idle = at - i.idle
			}
			out.Instances = append(out.Instances, st)
		}
	}
	for l := s.expiry.front; l != nil; l = l.in[byExpiry].next {
		st := LeaseState{ID: l.id, Epoch: s.epoch, Instance: l.instance.id, Frontend: l.node, Left: l.ends - at}
		if l.key != (leaseKey{}) {
			st.ID, st.Epoch = l.key.id, l.key.epoch
		}
		out.Leases = append(out.Leases, st)
	}
	return out
}

// Restore returns an active scheduler that continues from a snapshot at the instant now. It grants from the next
// LeaseUntil on and starts instances as soon as hosts report their room.
func Restore(cfg Config, rng *rand.Rand, now time.Time, from Snapshot) *Scheduler {
	s := New(cfg, rng)
	s.base, s.phase = now, Active
	s.id, s.epoch, s.keys, s.seq = from.Partition, from.Epoch, from.Range, from.Seq
	s.first, s.permits.seq = from.Seq+1, from.Seq+1 // a ledger and a borrower of their own
	for _, l := range from.Leases {
		s.life = max(s.life, uint32(l.ID>>32)) // new leases get ids that were not given yet
	}
	for _, n := range from.Hosts {
		s.addHost(n).fenced = true
	}
	for _, st := range from.Instances {
		i := &instance{id: st.ID, version: s.addVersion(st.Version), host: s.addHost(st.Host), key: st.Key, state: isReady,
			leases: leaseList{which: byInstance}, instanceRest: &instanceRest{look: cfg.StartAgain, heapAt: -1}}
		if !st.Ready {
			i.state = isStarting
		}
		s.enter(i)
		if st.Ready {
			s.becomeReady(i, -st.Idle)
		}
	}
	for _, st := range from.Leases {
		s.restoreLease(st)
	}
	for _, v := range from.Versions {
		s.addVersion(v.Version.ID)
		s.versionKnown(v.Version, v.ConcurrencyMax)
	}
	return s
}

// restoreLease books a lease under the name its frontend knows. A snapshot lists them by their end.
func (s *Scheduler) restoreLease(st LeaseState) {
	i, k := s.instances[st.Instance], leaseKey{st.Epoch, st.ID}
	if i == nil || i.state != isReady || s.adopted[k] != nil {
		return
	}
	l := s.newLease()
	l.key = k
	s.adopted[k] = l
	s.bind(l, i, st.Frontend)
	l.ends = min(max(st.Left, 0), s.cfg.LeaseTTL+s.cfg.LeaseGrace)
}
