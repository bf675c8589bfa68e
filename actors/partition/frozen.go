package partition

import (
	"time"

	"starling"
	"starling/sched"
)

// freeze stops the scheduler and tells its state.
func (a *actor) freeze(now time.Time, m freeze) {
	if phase := a.sched.Phase(); phase != sched.Active {
		m.to <- frozen{err: starling.Errorf(starling.Unavailable, "freeze partition", "%s is %s: its hosts are still being asked", a.entry.ID, phase)}
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
