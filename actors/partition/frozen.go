package partition

import (
	"time"

	"starling"
	"starling/cluster/partmap"
	"starling/sched"
)

// standStill notes that nothing may be granted in the epoch of p until goOn. It is the epoch that stands still, not the actor:
// one that fails while its state is handed over is not made anew, for it would grant what the next owner does not know of.
// It reports false when a change before has noted it and did not call goOn: only that one's outcome tells what may be done.
func (k *Keeper) standStill(p partmap.Partition) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if e, ok := k.still[p.ID]; ok && e == p.Epoch {
		return false
	}
	k.still[p.ID] = p.Epoch
	return true
}

// goOn ends what standStill began: the epoch is not over, for certain.
func (k *Keeper) goOn(id starling.PartitionID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.still, id)
}

// standsStill reports whether nothing may be granted in the epoch of p.
func (k *Keeper) standsStill(p partmap.Partition) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.still[p.ID]
	return ok && e == p.Epoch
}

// forgetStill drops the epochs that are over in m: no actor begins in them any more.
func (k *Keeper) forgetStill(m *partmap.Map) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, e := range k.still {
		if p, ok := m.ByID(id); !ok || p.Epoch > e {
			delete(k.still, id)
		}
	}
}

// freeze stops the scheduler and tells its state.
func (a *actor) freeze(now time.Time, m freeze) {
	if phase := a.sched.Phase(); phase != sched.Active {
		m.to <- frozen{err: starling.Errorf(starling.Unavailable, "freeze partition", "%s is %s: its hosts are still being asked", a.entry.ID, phase)}
		return
	}
	if m.cut && !a.sched.Divisible() {
		m.to <- frozen{err: starling.Errorf(starling.Unavailable, "freeze partition", "the ledgers do not know yet what %s holds", a.entry.ID)}
		return
	}
	a.step(now, sched.Freeze{})
	a.frozen = true
	a.note(now)
	state := a.sched.Snapshot(now)
	m.to <- frozen{state: &state}
}

// whileFrozen keeps what comes for later and reports whether msg is to be handled now. Ticks and questions of operators
// come again.
func (a *actor) whileFrozen(now time.Time, msg any) bool {
	if b, ok := msg.(*batch); ok && a.left {
		a.keeper.ReceiveFor(a.entry.ID, b.from, b.msgs)
	}
	if a.left {
		return false
	}
	switch m := msg.(type) {
	case thaw:
		a.thaw(now)
	case end:
		a.endFrozen(now)
	case freeze:
		m.to <- frozen{err: starling.Errorf(starling.Conflict, "freeze partition", "%s is being changed", a.entry.ID)}
	case tick:
		a.ticking.Store(false)
	case inUse:
		m.to <- nil
	case cut:
		m.to <- false
	case show:
		m.to <- nil
	case *batch:
		if a.events+len(m.msgs) > a.keeper.cfg.MailboxMax {
			a.keeper.refuse(a.entry.ID, m.from, m.msgs, starling.Overloaded, "MailboxFull", "the scheduler is overloaded: retry later")
			return false
		}
		a.events += len(m.msgs)
		a.kept = append(a.kept, m)
	case sched.Event:
		a.kept = append(a.kept, m)
	}
	return false
}

// thaw goes on where freeze stopped.
func (a *actor) thaw(now time.Time) {
	a.frozen = false
	a.step(now, sched.Thaw{})
	kept := a.kept
	a.kept, a.events = nil, 0
	for _, m := range kept {
		a.handle(m)
	}
	a.plan()
}

// endFrozen ends an actor whose partition lives elsewhere now, and hands on what was kept. Calls that wait are in the state, or
// are asked again when their frontends see the map.
func (a *actor) endFrozen(now time.Time) {
	a.left = true
	a.step(now, sched.Deactivate{})
	a.publish(now)
	for _, m := range a.kept {
		if b, ok := m.(*batch); ok {
			a.keeper.ReceiveFor(a.entry.ID, b.from, b.msgs)
		}
	}
	a.ref.Stop()
}
