package host

import (
	"context"
	"errors"
	"slices"
	"time"

	"starling"
	"starling/actors/host/guard"
	"starling/actors/wire"
	"starling/vmpool"
)

// start begins an instance, or answers what became of one that was asked for before.
func (h *Host) start(from starling.NodeID, m *wire.Start) {
	to := wire.Address{Node: from, Partition: m.Partition}
	h.mu.Lock()
	if e := h.find(m.Instance); e != nil {
		h.mu.Unlock()
		h.again(e, to)
		return
	}
	if why, gone := h.ended[m.Instance]; gone {
		h.mu.Unlock()
		h.cfg.Post.Send(to, &wire.Exited{Partition: m.Partition, Host: h.cfg.Node, Instance: m.Instance, Reason: why})
		return
	}
	if refusal := h.refusal(m); refusal != nil {
		h.mu.Unlock()
		h.cfg.Post.Send(to, refusal)
		return
	}
	ctx, cancel := context.WithTimeout(h.group.Context(), h.cfg.StartTime)
	e := &entry{id: m.Instance, key: m.Key, version: m.Version, cancel: cancel, done: make(chan struct{}), told: make(chan struct{}),
		tenure: guard.Tenure{Partition: m.Partition, Epoch: m.Epoch, Since: m.Epoch}, owner: from}
	s := h.shard(m.Instance)
	s.mu.Lock()
	s.entries[m.Instance] = e
	s.mu.Unlock()
	h.count++
	h.starting++
	g := h.group
	h.mu.Unlock()
	h.cfg.Rouse()
	if !g.Go(func(context.Context) { h.bring(ctx, e) }) {
		h.failed(e, closing("start instance"))
	}
}

func closing(op string) error {
	return starling.Errorf(starling.Unavailable, op, "the host is closing").With("Full")
}

// refusal says why a start is not even tried; nil when it is. The caller holds h.mu.
func (h *Host) refusal(m *wire.Start) *wire.StartFailed {
	f := &wire.StartFailed{Partition: m.Partition, Host: h.cfg.Node, Instance: m.Instance}
	switch {
	case h.fences.Stale(m.Key, m.Partition, m.Epoch):
		f.Fault, f.Reason, f.Message = starling.Moved, "OldEpoch", "a later owner of the key was seen"
	case h.group == nil || h.draining.Load():
		f.Fault, f.Reason, f.Message = starling.Unavailable, "Full", "the host takes no more instances"
	case h.count >= h.cfg.InstanceMax || h.used >= h.cfg.MemoryMiB:
		f.Fault, f.Reason, f.Message = starling.Overloaded, "Full", "the host has no room"
	default:
		return nil
	}
	return f
}

// again answers a Start that was received before: its first answer may be lost.
func (h *Host) again(e *entry, to wire.Address) {
	e.mu.Lock()
	i, p := e.instance, e.tenure.Partition
	e.mu.Unlock()
	if i != nil && p == to.Partition {
		took, init := i.Phases()
		h.cfg.Post.Send(to, &wire.Started{Partition: p, Host: h.cfg.Node, Instance: e.id, Start: took, Init: init})
	}
}

// bring makes the instance ready on a goroutine of its own.
func (h *Host) bring(ctx context.Context, e *entry) {
	defer e.cancel()
	v, pool, err := h.stock(ctx, e.version)
	if err != nil {
		h.failed(e, err)
		return
	}
	a := h.join(e, v)
	h.accounts.start(ctx, a)
	begun := time.Now()
	defer func() { h.accounts.started(a, time.Since(begun), pool.Cost(v.Config.Runtime)) }()
	select {
	case h.starts <- struct{}{}:
		defer func() { <-h.starts }()
	case <-ctx.Done():
		h.failed(e, closing("start instance"))
		return
	}
	if !h.claim(e, v) {
		h.failed(e, starling.Errorf(starling.Overloaded, "start instance", "%d MiB do not fit", v.Config.MemoryMiB).With("Full"))
		return
	}
	at, release, err := h.cfg.Code.Take(ctx, v)
	if err != nil {
		h.failed(e, err)
		return
	}
	e.mu.Lock()
	e.release = release
	e.mu.Unlock()
	var layers []vmpool.Layer
	for _, l := range at.Layers {
		layers = append(layers, vmpool.Layer(l))
	}
	i, err := pool.Start(ctx, vmpool.InstanceConfig{ID: e.id, Version: v, Dir: at.Dir, Mount: at.Mount, Disk: (*vmpool.Disk)(at.Disk), Layers: layers, Lost: at.Lost, Region: h.cfg.Region, Logs: h.cfg.Logs,
		InitTimeout: h.cfg.InitTimeout, LifeMax: h.cfg.LifeMax, Log: h.cfg.Log,
		Ended: func(_ *vmpool.Instance, reason string) { h.exited(e, reason) }})
	if err != nil {
		h.failed(e, err)
		return
	}
	h.ready(e, i, v)
}

// stock returns a version and the pool that its sandboxes come from.
func (h *Host) stock(ctx context.Context, id starling.VersionID) (*starling.Version, *vmpool.Pool, error) {
	v, err := h.cfg.Catalog.Version(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	pool := h.cfg.Pools[v.Isolation()]
	if pool == nil { // a scheduler of an older release does not ask what we give
		return nil, nil, starling.Errorf(starling.Unavailable, "start instance", "this host gives no isolation %s", v.Isolation()).With("NoIsolation")
	}
	return v, pool, nil
}

// join counts the instance among those of its account.
func (h *Host) join(e *entry, v *starling.Version) *account {
	a := h.accounts.join(v.Function.Account)
	e.mu.Lock()
	e.account = a
	e.mu.Unlock()
	return a
}

// claim takes the memory of the instance out of the host's room.
func (h *Host) claim(e *entry, v *starling.Version) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.used+v.Config.MemoryMiB > h.cfg.MemoryMiB {
		return false
	}
	h.used += v.Config.MemoryMiB
	e.mu.Lock()
	e.memoryMiB = v.Config.MemoryMiB
	e.mu.Unlock()
	return true
}

// ready publishes a started instance.
func (h *Host) ready(e *entry, i *vmpool.Instance, v *starling.Version) {
	defer close(e.told)
	h.mu.Lock()
	h.starting--
	h.versions = slices.DeleteFunc(h.versions, func(id starling.VersionID) bool { return id == v.ID })
	h.versions = slices.Insert(h.versions, 0, v.ID)
	h.versions = h.versions[:min(len(h.versions), versionsKept)]
	h.mu.Unlock()
	e.mu.Lock()
	e.tenure.Slots = v.Config.Concurrency
	e.instance = i
	stopping := e.stopping
	e.mu.Unlock()
	if stopping {
		i.Stop(true) // its end is told by exited
		return
	}
	h.cfg.Rouse() // the first call is on its way
	took, init := i.Phases()
	to := e.address()
	h.cfg.Post.Send(to, &wire.Started{Partition: to.Partition, Host: h.cfg.Node, Instance: e.id, Start: took, Init: init})
	h.changed()
}

// failed ends an entry that never became ready.
func (h *Host) failed(e *entry, err error) {
	h.mu.Lock()
	h.starting--
	h.mu.Unlock()
	e.mu.Lock()
	stopped := e.stopping
	e.mu.Unlock()
	h.forget(e, "")
	to := e.address() // which no fence changes any more
	kind, reason := starling.KindOf(err), starling.ReasonOf(err)
	if kind == starling.Internal {
		kind = starling.Unavailable
	}
	if reason == "" {
		reason = starling.ErrSandboxFailure
	}
	if stopped {
		kind, reason = starling.Unavailable, "stopped"
	}
	if kind != starling.Failed && reason != "Full" && !stopped {
		h.cfg.Log.Warn("start instance", "instance", e.id, "version", e.version, "error", err)
	}
	message := err.Error()
	if typed := (*starling.Error)(nil); kind == starling.Failed && errors.As(err, &typed) {
		message = typed.Message // the function's own words: its caller reads them beside the error type
	}
	h.cfg.Post.Send(to, &wire.StartFailed{Partition: to.Partition, Host: h.cfg.Node, Instance: e.id, Fault: kind, Reason: reason, Message: message})
	h.meters.startFailed.Inc()
}

// exited runs when a ready instance is gone.
func (h *Host) exited(e *entry, reason string) {
	<-e.told // no Exited overtakes its Started
	e.mu.Lock()
	i := e.instance
	e.mu.Unlock()
	h.note(i, time.Now())
	h.forget(e, reason)
	to := e.address() // which no fence changes any more
	h.cfg.Post.Send(to, &wire.Exited{Partition: to.Partition, Host: h.cfg.Node, Instance: e.id, Reason: reason})
	h.meters.exited.Inc()
	h.changed()
}

// forget gives back what an entry held and then removes it, so that Close waits for those that have not given everything back
// and a repeated message finds the entry or its reason, which is remembered.
func (h *Host) forget(e *entry, reason string) {
	e.mu.Lock()
	memory, release, a := e.memoryMiB, e.release, e.account
	e.memoryMiB, e.release = 0, nil
	e.mu.Unlock()
	h.mu.Lock()
	h.used -= memory
	h.count--
	if reason != "" {
		h.remember(e.id, reason)
	}
	h.mu.Unlock()
	if release != nil {
		release()
	}
	if a != nil {
		h.accounts.part(a)
	}
	s := h.shard(e.id)
	s.mu.Lock()
	delete(s.entries, e.id)
	s.mu.Unlock()
	close(e.done)
}

// remember keeps why an instance ended; the oldest word makes room. The caller holds h.mu.
func (h *Host) remember(id starling.InstanceID, reason string) {
	if len(h.endedAt) < endedKept {
		h.endedAt = append(h.endedAt, id)
	} else {
		delete(h.ended, h.endedAt[h.endedPos])
		h.endedAt[h.endedPos] = id
		h.endedPos = (h.endedPos + 1) % endedKept
	}
	h.ended[id] = reason
}

// stop ends an instance for its partition.
func (h *Host) stop(from starling.NodeID, m *wire.Stop) {
	e := h.find(m.Instance)
	if e == nil {
		h.mu.Lock()
		why := h.ended[m.Instance]
		h.mu.Unlock()
		if why == "" {
			why = "stopped"
		}
		h.cfg.Post.Send(wire.Address{Node: from, Partition: m.Partition}, &wire.Exited{Partition: m.Partition, Host: h.cfg.Node, Instance: m.Instance, Reason: why})
		return
	}
	e.mu.Lock()
	old := m.Epoch < e.tenure.Epoch
	e.mu.Unlock()
	if !old {
		e.stop(m.Now)
	}
}
