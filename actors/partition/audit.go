package partition

import (
	"time"

	"starling/actors/wire"
	"starling/internal/audit"
)

// note writes down until when the actor may grant, if that has changed and there is an audit.
func (a *actor) note(now time.Time) {
	l := a.keeper.cfg.Audit
	if l == nil {
		return
	}
	until := a.sched.GrantsUntil()
	if until.Equal(a.noted) {
		return
	}
	a.noted = until
	r := audit.Record{Kind: audit.Stop, At: l.Instant(now), Partition: a.entry.ID, Epoch: a.entry.Epoch, Range: a.entry.Range}
	if !until.IsZero() {
		r.Kind, r.Until = audit.May, l.Instant(until)
	}
	l.Write(r)
}

// noteGrant writes a grant down before it is sent. The step that made it may be the one that made the actor active.
func (a *actor) noteGrant(now time.Time, m wire.Message) {
	l := a.keeper.cfg.Audit
	if g, ok := m.(*wire.Grant); ok && l != nil {
		a.note(now)
		l.Write(l.Leased(audit.Grant, now, &g.Lease, 0))
	}
}
