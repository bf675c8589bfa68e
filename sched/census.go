package sched

import (
	"slices"

	"starling"
	"starling/actors/wire"
)

// A census asks the frontends which calls they have at work on hosts that cannot be asked: those that died with the owner before, or while it
// is being replaced. Such a host may only be cut off, and go on for frontends that reach it. A frontend that answers has heard of the new owner
// and begins nothing under older leases any more, so what it names is all there is. One that is counted dead begins nothing either: its node
// lease is over.
type census struct {
	missing []starling.NodeID // the hosts
	fronts  []*front
	open    int     // fronts that activation still waits for
	until   instant // when all leases from before have ended, whatever anybody says
}

type front struct {
	node  starling.NodeID
	gate  bool
	asked instant
}

// beginCensus notes whom to ask, and asks if there is anything to ask about.
func (s *Scheduler) beginCensus(ev *Activate) {
	for _, n := range ev.Fronts {
		s.census.fronts = append(s.census.fronts, &front{node: n})
	}
	s.census.missing = slices.Clone(ev.Missing)
	if len(s.census.missing) > 0 {
		s.askFronts()
	}
}

// miss adds a host that died before it told what runs there.
func (s *Scheduler) miss(host starling.NodeID) {
	s.census.missing = append(s.census.missing, host)
	s.askFronts()
}

func (s *Scheduler) askFronts() {
	c := &s.census
	c.until = s.now + s.cfg.LeaseTTL + s.cfg.LeaseGrace
	for _, f := range c.fronts {
		if !f.gate {
			f.gate = true
			c.open++
		}
		s.askFront(f)
	}
}

func (s *Scheduler) askFront(f *front) {
	f.asked = s.now
	s.out.send(f.node, &wire.Census{Partition: s.id, Epoch: s.epoch, Range: s.keys, Hosts: slices.Clone(s.census.missing)})
}

// censusAgain repeats questions without an answer, and gives up when there is nothing to ask about any more.
func (s *Scheduler) censusAgain() {
	c := &s.census
	for _, f := range c.fronts {
		switch {
		case !f.gate:
		case s.now >= c.until:
			s.letPass(f)
		case s.now-f.asked >= s.cfg.FenceAgain:
			s.askFront(f)
		}
	}
}

// letPass notes that activation need not wait for f any more.
func (s *Scheduler) letPass(f *front) {
	if f.gate {
		f.gate = false
		s.census.open--
	}
}

// frontDown forgets a frontend: it begins no call any more.
func (s *Scheduler) frontDown(node starling.NodeID) {
	c := &s.census
	for k, f := range c.fronts {
		if f.node == node {
			s.letPass(f)
			c.fronts = slices.Delete(c.fronts, k, k+1)
			return
		}
	}
}

// atWork takes a frontend's answer: its calls hold their slots until they end or the time of their leases is over.
func (s *Scheduler) atWork(from starling.NodeID, m *wire.AtWork) {
	if m.Partition != s.id || m.Epoch != s.epoch || s.phase != Activating {
		return
	}
	k := slices.IndexFunc(s.census.fronts, func(f *front) bool { return f.node == from })
	if k < 0 || !s.census.fronts[k].gate {
		return
	}
	for _, h := range s.census.missing {
		if !slices.Contains(m.Hosts, h) {
			return // it answers a question from before that one was missed
		}
	}
	lost := map[starling.InstanceID]*instance{}
	for _, l := range s.adopted {
		if l.instance.state == isLost {
			lost[l.instance.id] = l.instance
		}
	}
	for k := range m.Leases {
		s.bookLost(from, &m.Leases[k], lost)
	}
	if m.More {
		s.quiet = max(s.quiet, s.census.until)
	}
	s.letPass(s.census.fronts[k])
	s.mayBecomeActive()
}

// bookLost books a lease of a host that cannot be asked under an instance that is lost with it.
func (s *Scheduler) bookLost(from starling.NodeID, r *starling.Lease, lost map[starling.InstanceID]*instance) {
	name := leaseKey{r.Partition, r.Epoch, r.ID}
	if !s.keys.Contains(r.Key) || r.Epoch >= s.epoch || s.booked(name) != nil || s.instances[r.Instance] != nil {
		return
	}
	i := lost[r.Instance]
	if i == nil {
		i = &instance{id: r.Instance, version: s.addVersion(r.Version), node: r.Host, key: r.Key, state: isLost, leases: leaseList{which: byInstance}, host: &host{node: r.Host},
			idle: s.now, instanceRest: &instanceRest{began: s.now, sent: s.now, readyAt: s.now, heapAt: -1, seen: true}}
		lost[r.Instance] = i
	}
	l := s.newLease()
	l.key = &name
	s.adopted[name] = l
	s.bind(l, i, from)
	if a := i.version.account; a != nil {
		s.wake(a)
	}
}
