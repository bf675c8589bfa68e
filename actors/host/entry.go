package host

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/actors/host/guard"
	"starling/actors/wire"
	"starling/internal/audit"
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
	visits  atomic.Int64       // calls that frontends of other nodes sent since Visits last looked

	mu        sync.Mutex // guards what follows; a leaf
	tenure    guard.Tenure
	owner     starling.NodeID
	instance  *vmpool.Instance // nil while it starts
	account   *account         // nil until the version is known
	stopping  bool
	memoryMiB int    // claimed
	release   func() // of the code; nil before it is there
}

// Invoke runs one call under a lease on the caller's goroutine. An error means that the function surely did not start: Moved
// for an unknown instance or a lease of a past epoch, Overloaded when the lease's or the instance's slots are all at work.
func (h *Host) Invoke(_ context.Context, lease *starling.Lease, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, error) {
	e := h.find(lease.Instance)
	if e == nil {
		h.meters.moved.Inc()
		return starling.Outcome{}, guard.ErrNoInstance
	}
	now := time.Now()
	h.inflight.Add(1)
	defer h.inflight.Add(-1)
	i, err := e.enter(lease, inv.Version, now)
	if err != nil {
		h.meters.refused(err)
		return starling.Outcome{}, err
	}
	h.audit(audit.Enter, e, lease, now)
	out, err := i.Invoke(inv, sink)
	e.leave(lease)
	if err != nil {
		h.audit(audit.Refuse, e, lease, time.Now())
		h.meters.refused(err)
		return out, err
	}
	h.audit(audit.Leave, e, lease, time.Now())
	h.meters.ended(out, now)
	if out.Status == starling.Unhandled {
		h.note(i, time.Now()) // its instance ends, and its last tally may be in the book already
	}
	return out, nil
}

// audit writes down that the lease was accepted, or that its call has ended, when there is an audit.
func (h *Host) audit(k audit.Kind, e *entry, l *starling.Lease, at time.Time) {
	if h.cfg.Audit == nil {
		return
	}
	r := h.cfg.Audit.Leased(k, at, l, e.slots())
	r.Key = e.key
	h.cfg.Audit.Write(r)
}

// slots returns how many calls the instance takes at once.
func (e *entry) slots() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tenure.Slots
}

// enter checks the lease and takes one of its slots.
func (e *entry) enter(l *starling.Lease, v starling.VersionID, now time.Time) (*vmpool.Instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.instance == nil || l.Version != e.version || v != e.version {
		return nil, guard.ErrNoInstance
	}
	if !e.account.enter() {
		return nil, errShare
	}
	if err := e.tenure.Enter(l, now); err != nil {
		e.account.leave()
		return nil, err
	}
	return e.instance, nil
}

// leave gives the slot back.
func (e *entry) leave(l *starling.Lease) {
	now := time.Now()
	e.mu.Lock()
	e.tenure.Leave(l, now)
	e.account.leave()
	e.mu.Unlock()
}

// adopt gives the instance to the partition of a fence and reports it.
func (e *entry) adopt(from starling.NodeID, m *wire.Fence, now time.Time) wire.InstanceReport {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.owner = from
	r := wire.InstanceReport{Instance: e.id, Key: e.key, Version: e.version, Ready: e.instance != nil && !e.stopping, Leases: e.tenure.Adopt(m, now)}
	if e.instance != nil {
		busy, idle := e.instance.Use(now)
		r.Busy, r.Idle = uint16(busy), idle
	}
	return r
}

// address is where news of the instance goes.
func (e *entry) address() wire.Address {
	e.mu.Lock()
	defer e.mu.Unlock()
	return wire.Address{Node: e.owner, Partition: e.tenure.Partition}
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
