package sim

import (
	"time"

	"starling"
	"starling/actors/partition/handover"
	"starling/cluster"
	"starling/cluster/partmap"
)

const (
	proposeTime = 3 * time.Second       // for an answer to an owner's proposal, at most
	attemptTime = time.Second           // for one try
	tryPause    = 50 * time.Millisecond // between two
)

// A proposal is one change that the owner of a partition proposes, as cluster.View.ProposeChange does.
type proposal struct {
	n         *node
	change    partmap.Change
	until     time.Duration
	uncertain bool // an earlier try may have been carried out, or may be later
	turn      int  // of the tries, so that a late answer is none
	moved     bool // the epoch has passed, and nobody can tell by which change
	done      func(ev handover.Event, moved bool)
}

// proposeChange proposes a change and tells Applied, Lost or Unsure; moved says that its epoch has passed.
func (n *node) proposeChange(c partmap.Change, done func(ev handover.Event, moved bool)) {
	(&proposal{n: n, change: c, until: n.w.now + time.Duration(n.w.rng.Int64N(int64(proposeTime))), done: done}).try()
}

// A verdict is what the leader says of a proposal.
type verdict struct {
	notLeader, unknown bool
	refused            bool
	kind               starling.Kind
}

func (p *proposal) try() {
	n, w := p.n, p.n.w
	p.turn++
	turn := p.turn
	if w.now >= p.until {
		p.end(p.unknown())
		return
	}
	m, g := n.view.leader, n.view.reign
	if m == nil {
		n.after(tryPause, p.try)
		return
	}
	hear := func(v verdict) {
		if p.turn == turn {
			p.turn++
			p.judge(m, v)
		}
	}
	n.tell(m, func() {
		m.mgr.proposed(n, g, p.change, func(v verdict) { m.tell(n, func() { hear(v) }, nothing) })
	}, nothing)
	n.after(attemptTime, func() { hear(verdict{unknown: true}) }) // the question or its answer is lost
}

// judge takes what the leader says.
func (p *proposal) judge(m *node, v verdict) {
	switch {
	case v.unknown && p.n.w.cfg.Plant == PlantThaw:
		p.end(handover.Lost)
	case v.notLeader, v.unknown:
		p.uncertain = p.uncertain || v.unknown
		p.n.after(tryPause, p.try)
	case !v.refused:
		p.end(handover.Applied)
	case v.kind == starling.Moved:
		p.read(m)
	default:
		p.end(p.unknown())
	}
}

// read asks the leader for the map: an earlier try may have been carried out and its answer lost.
func (p *proposal) read(m *node) {
	n := p.n
	p.turn++
	turn := p.turn
	hear := func(ev handover.Event) {
		if p.turn == turn {
			p.turn++
			p.end(ev)
		}
	}
	n.tell(m, func() {
		w := n.w
		m.after(2*w.cfg.Net.Delay, func() {
			if w.raft.leader != m || !w.majority(m) {
				return
			}
			now := w.raft.state.Topology().Map
			m.tell(n, func() {
				switch {
				case now.Made(p.change):
					hear(handover.Applied)
				case now.Beaten(p.change):
					hear(handover.Lost)
				default:
					p.moved = true
					hear(handover.Unsure)
				}
			}, nothing)
		})
	}, nothing)
	n.after(attemptTime, func() { hear(handover.Unsure) })
}

func (p *proposal) unknown() handover.Event {
	if p.uncertain {
		return handover.Unsure
	}
	return handover.Lost
}

func (p *proposal) end(ev handover.Event) {
	p.n.w.trace("%v proposed %v %v/%d: %v", p.n.id, p.change.Kind, p.change.Partition, p.change.Epoch, ev)
	p.done(ev, p.moved)
}

// proposed proposes what an owner asks for, if it may.
func (m *mgr) proposed(n *node, g *reign, c partmap.Change, answer func(verdict)) {
	if m.reign != g || g.lives[n.id] != n.life {
		answer(verdict{notLeader: true})
		return
	}
	if p, ok := m.topology.Map.ByID(c.Partition); ok && p.Epoch <= c.Epoch && p.Owner != n.id {
		answer(verdict{refused: true, kind: starling.Denied})
		return
	}
	n.w.propose(m.n, &cluster.ChangeMap{Changes: []partmap.Change{c}}, func(r cluster.Reply, err error) {
		switch {
		case err != nil:
			answer(verdict{unknown: true})
		case len(r.Refused) > 0:
			answer(verdict{refused: true, kind: r.RefusedAs[0]})
		default:
			answer(verdict{})
		}
	})
}
