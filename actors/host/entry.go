package host

import (
	"context"
	"sync"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/vmpool"
)

// An entry is one instance of this host, from the Start that asked for it to its end.
type entry struct {
	id      starling.InstanceID
	key     starling.Key64
	version starling.VersionID
	cancel  context.CancelFunc // ends its start
	done    chan struct{}      // closed when it is removed
	told    chan struct{}      // closed when its Started was sent

	mu        sync.Mutex // guards what follows; a leaf
	partition starling.PartitionID
	epoch     starling.Epoch
	owner     starling.NodeID
	instance  *vmpool.Instance // nil while it starts
	stopping  bool
	memoryMiB int    // claimed
	release   func() // of the code; nil before it is there
	leases    []use
}

// use is a lease as this host knows it: learned when it is first shown.
type use struct {
	lease starling.Lease
	busy  uint16
	last  time.Time // when a call of it last began or ended
}

// alive reports whether a lease that nobody renews here still holds: it was used within its TTL.
func (u *use) alive(now time.Time) bool {
	ttl := u.lease.TTL
	if ttl <= 0 || ttl > starling.LeaseTTL {
		ttl = starling.LeaseTTL
	}
	return u.busy > 0 || now.Sub(u.last) < ttl
}

var (
	errNoInstance = starling.Errorf(starling.Moved, "invoke", "the host does not run this instance: ask for another").With("NoInstance")
	errOldEpoch   = starling.Errorf(starling.Moved, "invoke", "the lease is of a past epoch: ask the partition's new owner").With("OldEpoch")
	errLeaseBusy  = starling.Errorf(starling.Overloaded, "invoke", "every slot of the lease is at work").With("SlotsBusy")
)

// Invoke runs one call under a lease on the caller's goroutine. An error means that the function surely did not start: Moved
// for an unknown instance or a lease of a past epoch, Overloaded when the lease's or the instance's slots are all at work.
func (h *Host) Invoke(_ context.Context, lease *starling.Lease, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error) {
	e := h.find(lease.Instance)
	if e == nil {
		h.meters.moved.Inc()
		return starling.Outcome{}, errNoInstance
	}
	now := time.Now()
	h.inflight.Add(1)
	defer h.inflight.Add(-1)
	i, err := e.enter(lease, inv.Version, now)
	if err != nil {
		h.meters.refused(err)
		return starling.Outcome{}, err
	}
	out, err := i.Invoke(inv, sink)
	e.leave(lease)
	if err != nil {
		h.meters.refused(err)
		return out, err
	}
	h.meters.ended(out, now)
	return out, nil
}

// enter checks the lease and takes one of its slots.
func (e *entry) enter(l *starling.Lease, v starling.VersionID, now time.Time) (*vmpool.Instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.instance == nil || l.Version != e.version || v != e.version {
		return nil, errNoInstance
	}
	u := e.use(l)
	if l.Epoch != e.epoch || l.Partition != e.partition {
		if u == nil || !u.alive(now) {
			return nil, errOldEpoch
		}
	} else if u == nil {
		u = e.learn(l, now)
	}
	if u.busy >= l.Slots {
		return nil, errLeaseBusy
	}
	u.busy++
	u.last = now
	return e.instance, nil
}

func (e *entry) use(l *starling.Lease) *use {
	for i := range e.leases {
		if u := &e.leases[i]; u.lease.ID == l.ID && u.lease.Epoch == l.Epoch && u.lease.Partition == l.Partition {
			return u
		}
	}
	return nil
}

// learn remembers a lease, in the place of one that ended where there is one.
func (e *entry) learn(l *starling.Lease, now time.Time) *use {
	for i := range e.leases {
		if !e.leases[i].alive(now) {
			e.leases[i] = use{lease: *l}
			return &e.leases[i]
		}
	}
	e.leases = append(e.leases, use{lease: *l})
	return &e.leases[len(e.leases)-1]
}

// leave gives the slot back.
func (e *entry) leave(l *starling.Lease) {
	now := time.Now()
	e.mu.Lock()
	if u := e.use(l); u != nil && u.busy > 0 {
		u.busy--
		u.last = now
	}
	e.mu.Unlock()
}

// adopt gives the instance to the partition of a fence and reports it.
func (e *entry) adopt(from starling.NodeID, m *wire.Fence, now time.Time) wire.InstanceReport {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.partition, e.epoch, e.owner = m.Partition, m.Epoch, from
	r := wire.InstanceReport{Instance: e.id, Key: e.key, Version: e.version, Ready: e.instance != nil && !e.stopping}
	if e.instance != nil {
		busy, idle := e.instance.Use(now)
		r.Busy, r.Idle = uint16(busy), idle
	}
	for i := range e.leases {
		if u := &e.leases[i]; u.alive(now) {
			r.Leases = append(r.Leases, u.lease)
		}
	}
	return r
}

// address is where news of the instance goes.
func (e *entry) address() wire.Address {
	e.mu.Lock()
	defer e.mu.Unlock()
	return wire.Address{Node: e.owner, Partition: e.partition}
}

// stop ends the instance, also one that is still starting.
func (e *entry) stop(now bool) {
	e.mu.Lock()
	i := e.instance
	e.stopping = true
	e.mu.Unlock()
	if i != nil {
		i.Stop(now)
	} else {
		e.cancel()
	}
}

// wait returns when the instance is gone.
func (e *entry) wait() { <-e.done }
