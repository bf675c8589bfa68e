package sim

import (
	"cmp"
	"math"
	"slices"
	"time"

	"starling"
	"starling/actors/host/guard"
	"starling/actors/wire"
)

// A host starts and runs instances. What it obeys is decided by actors/host/guard; the rest is a model of the machine.
type host struct {
	n        *node
	fences   guard.Fences
	all      map[starling.InstanceID]*instance
	order    []*instance // by start
	ended    map[starling.InstanceID]string
	queue    []*instance // wait for a place among those that start
	bringing int         // start at this moment
	starting int
	used     int // MiB
	versions []starling.VersionID
	reportAt time.Duration // of the report that is planned; 0 for none
	last     time.Duration // report
	m        *machine      // nil where CPU has no bound
}

// An instance is one running copy of a version.
type instance struct {
	h        *host
	id       starling.InstanceID
	key      starling.Key64
	f        *function
	owner    starling.NodeID
	tenure   guard.Tenure
	ready    bool
	stopping bool
	gone     bool
	memory   int // MiB claimed
	busy     int
	idle     time.Duration // since when
	took     time.Duration // start
	init     time.Duration
	born     time.Duration // when its memory was claimed
	asked    time.Duration // when it was asked for
	truth    tenancy
}

func newHost(n *node) *host {
	h := &host{n: n, all: map[starling.InstanceID]*instance{}, ended: map[starling.InstanceID]string{}}
	n.after(0, h.report)
	return h
}

func (h *host) receive(from starling.NodeID, m wire.Message) {
	switch m := m.(type) {
	case *wire.Start:
		h.start(from, m)
	case *wire.Stop:
		h.stop(from, m)
	case *wire.Fence:
		h.fence(from, m)
	}
}

func (h *host) reply(to starling.NodeID, p starling.PartitionID, m wire.Message) {
	h.n.send(wire.Address{Node: to, Partition: p}, m)
}

func (h *host) start(from starling.NodeID, m *wire.Start) {
	if i := h.all[m.Instance]; i != nil {
		if i.ready && i.tenure.Partition == m.Partition {
			h.reply(from, m.Partition, &wire.Started{Partition: m.Partition, Host: h.n.id, Instance: i.id, Start: i.took, Init: i.init})
		}
		return
	}
	if why, gone := h.ended[m.Instance]; gone {
		h.reply(from, m.Partition, &wire.Exited{Partition: m.Partition, Host: h.n.id, Instance: m.Instance, Reason: why})
		return
	}
	f := h.n.w.versions[m.Version]
	fail := &wire.StartFailed{Partition: m.Partition, Host: h.n.id, Instance: m.Instance, Fault: starling.Overloaded, Reason: "Full", Message: "the host has no room"}
	switch {
	case h.fences.Stale(m.Key, m.Partition, m.Epoch) && h.n.w.cfg.Plant != PlantNoFence:
		fail.Fault, fail.Reason, fail.Message = starling.Moved, "OldEpoch", "a later owner of the key was seen"
	case h.used >= h.n.w.cfg.HostMiB && h.n.w.cfg.Plant != PlantMemory:
	default:
		i := &instance{h: h, id: m.Instance, key: m.Key, f: f, owner: from, tenure: guard.Tenure{Partition: m.Partition, Epoch: m.Epoch, Since: m.Epoch, Slots: f.version.Config.Concurrency}, asked: h.n.w.now}
		h.n.w.checks.started(i, m)
		h.all[i.id] = i
		h.order = append(h.order, i)
		h.starting++
		h.queue = append(h.queue, i)
		h.bring()
		return
	}
	h.reply(from, m.Partition, fail)
}

// bring starts what waits, as many at once as the machine does.
func (h *host) bring() {
	w := h.n.w
	for len(h.queue) > 0 && h.bringing < w.cfg.StartMax {
		at := h.nextStart()
		if at < 0 {
			return
		}
		i := h.queue[at]
		h.queue = slices.Delete(h.queue, at, at+1)
		if i.gone {
			continue
		}
		if h.used+i.f.MemoryMiB > w.cfg.HostMiB && w.cfg.Plant != PlantMemory {
			h.failed(i, starling.Overloaded, "Full")
			continue
		}
		i.memory, i.born = i.f.MemoryMiB, w.now
		h.used += i.memory
		w.checks.memory(h)
		w.result.starts++
		h.bringing++
		i.took, i.init = w.stray(i.f.Start), w.stray(i.f.Init)
		if h.m != nil {
			h.m.tenant(i.f).starting++
			h.n.after(i.took, func() { h.m.add(i.init, do(func() { h.brought(i) })) })
			continue
		}
		h.n.after(i.took+i.init, func() { h.brought(i) })
	}
}

// startWait is how long a start waits for its account to be within its bound, as in actors/host.
const startWait = 10 * time.Second

// nextStart returns the place in the queue of the first start that may begin, -1 for none.
func (h *host) nextStart() int {
	for at, i := range h.queue {
		if h.m == nil || i.gone || h.m.mayStart(i.f, h.n.w.now-i.asked) {
			return at
		}
	}
	return -1
}

// stray draws a time around its median.
func (w *World) stray(median time.Duration) time.Duration {
	if w.cfg.Spread == 0 || median == 0 {
		return median
	}
	return time.Duration(float64(median) * math.Exp(w.cfg.Spread*w.rng.NormFloat64()))
}

func (h *host) brought(i *instance) {
	w := h.n.w
	h.bringing--
	if h.m != nil {
		h.m.started(i.f, w.now-i.born)
	}
	defer h.bring()
	if i.gone {
		return
	}
	if i.stopping {
		h.failed(i, starling.Unavailable, "stopped")
		return
	}
	if w.faulty() && w.rng.Float64() < w.cfg.Faults.StartFails {
		h.failed(i, starling.Failed, "Runtime.InitError")
		return
	}
	h.starting--
	i.ready, i.idle = true, w.now
	if !slices.Contains(h.versions, i.f.version.ID) {
		h.versions = slices.Insert(h.versions, 0, i.f.version.ID)
		h.versions = h.versions[:min(len(h.versions), 64)]
	}
	h.reply(i.owner, i.tenure.Partition, &wire.Started{Partition: i.tenure.Partition, Host: h.n.id, Instance: i.id, Start: i.took, Init: i.init})
	h.changed()
}

// failed ends an instance that never became ready.
func (h *host) failed(i *instance, fault starling.Kind, reason string) {
	h.starting--
	h.forget(i, "")
	h.reply(i.owner, i.tenure.Partition, &wire.StartFailed{Partition: i.tenure.Partition, Host: h.n.id, Instance: i.id, Fault: fault, Reason: reason, Message: reason})
	h.changed()
}

// endedKept is how many ended instances a host remembers.
const endedKept = 1024

// forget takes i off the books and counts what it cost.
func (h *host) forget(i *instance, reason string) {
	w := h.n.w
	i.gone = true
	delete(h.all, i.id)
	if at := slices.Index(h.order, i); at >= 0 {
		h.order = slices.Delete(h.order, at, at+1)
	}
	h.used -= i.memory
	if i.memory > 0 {
		w.result.lived(i, w.now-i.born)
	}
	if reason != "" && len(h.ended) < endedKept {
		h.ended[i.id] = reason
	}
}

// exit ends a ready instance.
func (h *host) exit(i *instance, reason string) {
	if h.n.w.cfg.Plant != PlantZombie {
		h.forget(i, reason)
	}
	h.reply(i.owner, i.tenure.Partition, &wire.Exited{Partition: i.tenure.Partition, Host: h.n.id, Instance: i.id, Reason: reason})
	h.changed()
}

func (h *host) stop(from starling.NodeID, m *wire.Stop) {
	i := h.all[m.Instance]
	if i == nil {
		why := h.ended[m.Instance]
		if why == "" {
			why = "stopped"
		}
		h.reply(from, m.Partition, &wire.Exited{Partition: m.Partition, Host: h.n.id, Instance: m.Instance, Reason: why})
		return
	}
	if m.Epoch >= i.tenure.Epoch {
		h.halt(i)
	}
}

// halt ends i as soon as its calls have ended.
func (h *host) halt(i *instance) {
	i.stopping = true
	if i.ready && i.busy == 0 {
		h.exit(i, "stopped")
	}
}

func (h *host) fence(from starling.NodeID, m *wire.Fence) {
	w := h.n.w
	deaf := w.cfg.Plant == PlantNoFence
	if !deaf && !h.fences.Raise(m) {
		return
	}
	answer := &wire.Fenced{Partition: m.Partition, Epoch: m.Epoch, Host: h.n.id}
	for _, i := range h.order {
		if !m.Range.Contains(i.key) {
			continue
		}
		r := wire.InstanceReport{Instance: i.id, Key: i.key, Version: i.f.version.ID, Ready: i.ready && !i.stopping}
		w.checks.fenced(&i.truth, m)
		i.owner = from
		if !deaf {
			r.Leases = i.tenure.Adopt(m, w.clock())
			if w.cfg.Plant == PlantHonour {
				i.tenure.Since = 0
			}
		}
		if r.Busy = uint16(i.busy); i.ready && i.busy == 0 {
			r.Idle = w.now - i.idle
		}
		answer.Instances = append(answer.Instances, r)
	}
	h.reply(from, m.Partition, answer)
}

// enter lets a call begin under its lease, or says why not.
func (h *host) enter(c *call) (*instance, error) {
	w := h.n.w
	i := h.all[c.lease.Instance]
	plant := w.cfg.Plant == PlantCorruptNet || w.cfg.Plant == PlantNoFence
	if i == nil || !i.ready || i.f != c.f && !plant {
		return nil, guard.ErrNoInstance
	}
	if h.m != nil && !h.m.tenant(c.f).takes() {
		return nil, errShare
	}
	if err := i.tenure.Enter(&c.lease.Lease, w.clock()); err != nil && !plant {
		return nil, err
	}
	if i.stopping || i.busy >= i.f.version.Config.Concurrency && w.cfg.Plant != PlantSlots {
		i.tenure.Leave(&c.lease.Lease, w.clock())
		if i.stopping {
			return nil, guard.ErrNoInstance
		}
		return nil, guard.ErrLeaseBusy
	}
	i.busy++
	if h.m != nil {
		h.m.tenant(c.f).Running++
	}
	c.f.running++
	w.checks.entered(i, c)
	return i, nil
}

// leave ends a call on i. broken says that the function failed in a way that ends the instance.
func (h *host) leave(i *instance, c *call, broken bool) {
	w := h.n.w
	c.f.running--
	i.tenure.Leave(&c.lease.Lease, w.clock())
	if h.m != nil {
		h.m.tenant(c.f).Running--
	}
	if i.busy--; i.busy == 0 {
		i.idle = w.now
	}
	switch {
	case i.gone:
	case broken:
		h.exit(i, "Runtime.ExitError")
	case i.stopping && i.busy == 0:
		h.exit(i, "stopped")
	}
}

// die ends everything at once: the machine is gone.
func (h *host) die() {
	for _, i := range h.order {
		i.gone = true
		if i.memory > 0 {
			h.n.w.result.lived(i, h.n.w.now-i.born)
		}
	}
	h.all, h.order = map[starling.InstanceID]*instance{}, nil
}

// reportSoon is how long changes are collected for one report.
const reportSoon = 20 * time.Millisecond

// changed asks for a report soon.
func (h *host) changed() {
	w := h.n.w
	h.planReport(max(h.last+reportSoon, w.now))
}

func (h *host) planReport(at time.Duration) {
	if h.reportAt != 0 && h.reportAt <= at {
		return
	}
	h.reportAt = at
	h.n.after(at-h.n.w.now, func() {
		if h.reportAt == at {
			h.reportAt = 0
			h.report()
		}
	})
}

// report tells every scheduler node the host's room.
func (h *host) report() {
	w := h.n.w
	h.last = w.now
	h.keepRoom()
	r := &wire.HostReport{Host: h.n.id, Zone: h.n.zone, FreeMiB: uint32(max(w.cfg.HostMiB-h.used, 0)), TotalMiB: uint32(w.cfg.HostMiB),
		Instances: uint32(len(h.all) - h.starting), Starting: uint32(h.starting), Versions: slices.Clone(h.versions)}
	for _, n := range w.fronts {
		h.n.send(wire.Address{Node: n.id}, r)
	}
	h.planReport(w.now + w.cfg.Report)
}

// keepRoom ends idle instances while less than the wanted room is free, as actors/host does: a partition can stop only
// its own.
func (h *host) keepRoom() {
	w := h.n.w
	need := h.used - w.cfg.HostMiB + min(512, w.cfg.HostMiB/4)
	if need <= 0 {
		return
	}
	var idle []*instance
	for _, i := range h.order {
		switch {
		case i.stopping:
			need -= i.memory
		case i.ready && i.busy == 0 && w.now-i.idle >= time.Second:
			idle = append(idle, i)
		}
	}
	slices.SortStableFunc(idle, func(a, b *instance) int { return cmp.Compare(a.idle, b.idle) })
	for _, i := range idle[:min(len(idle), 64)] {
		if need <= 0 {
			return
		}
		need -= i.memory
		h.halt(i)
	}
}
