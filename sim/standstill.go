package sim

import (
	"time"

	"starling/actors/partition/handover"
	"starling/cluster/partmap"
	"starling/sched"
)

// awaitDivisible freezes a partition that is to be split as soon as it may be cut.
func (c *change) awaitDivisible(end time.Duration) {
	w, turn := c.k.n.w, c.waits
	p := c.parts[0]
	switch {
	case c.divisible():
		c.freeze()
	case p.ended || w.now >= end:
		c.step(handover.Refused)
	default:
		c.k.n.after(askPause, func() {
			if c.waits == turn {
				c.awaitDivisible(end)
			}
		})
	}
}

// divisible reports whether the partition may be cut, if the order is to cut it.
func (c *change) divisible() bool {
	return c.order.Kind != partmap.Split || c.parts[0].sched.Divisible()
}

// freeze stops the schedulers and takes their states.
func (c *change) freeze() {
	w, n := c.k.n.w, c.k.n
	answer := c.await(0, 0)
	n.after(w.upTo(time.Millisecond), func() { // what is in the mailbox first
		c.frozen = w.now
		for _, p := range c.parts {
			if !c.k.standStill(p.entry) {
				answer(handover.Refused)
				return
			}
			c.stopped = append(c.stopped, p)
			if p.ended || p.frozen || p.sched.Phase() != sched.Active || !c.divisible() {
				answer(handover.Refused)
				return
			}
			p.apply(sched.Freeze{})
			p.frozen = true
			state := p.sched.Snapshot(w.clock())
			c.states = append(c.states, &state)
		}
		answer(handover.Frozen)
	})
}

// thaw has the schedulers go on that this change froze.
func (c *change) thaw() {
	k := c.k
	for _, p := range c.stopped {
		if !k.shows(p.entry.ID, p.entry.Epoch) && k.n.w.cfg.Plant != PlantThaw {
			continue
		}
		delete(k.still, p.entry.ID)
		switch {
		case p.ended:
			k.n.after(k.n.w.upTo(50*time.Millisecond), k.follow) // it failed meanwhile
		case p.frozen:
			p.thaw()
		}
	}
}

// standStill notes that nothing may be granted in the epoch of e, as in actors/partition.
func (k *keeper) standStill(e partmap.Partition) bool {
	if epoch, ok := k.still[e.ID]; ok && epoch == e.Epoch && k.n.w.cfg.Plant != PlantTwice {
		return false
	}
	k.still[e.ID] = e.Epoch
	return true
}

// keep keeps what comes to a frozen scheduler for later. Ticks come again.
func (p *part) keep(ev sched.Event) {
	if _, tick := ev.(sched.Tick); !tick {
		p.kept = append(p.kept, ev)
	}
}

func (p *part) thaw() {
	p.frozen = false
	kept := p.kept
	p.kept = nil
	p.step(sched.Thaw{})
	for _, ev := range kept {
		p.step(ev)
	}
}

// endFrozen ends a scheduler whose partition lives elsewhere now, and hands on what was kept.
func (p *part) endFrozen() {
	p.apply(sched.Deactivate{})
	p.ended = true
	for _, ev := range p.kept {
		if m, ok := ev.(sched.Message); ok {
			p.k.receive(p.entry.ID, m.From, m.Body)
		}
	}
	p.kept = nil
}
