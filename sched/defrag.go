package sched

import (
	"time"

	"starling/sched/place"
)

// The bounds of defragmentation.
const (
	defragPause = time.Minute
	defragMost  = 8   // instances moved at once
	defragThin  = 500 // per mille of its memory that a host uses at most to be emptied
	defragHosts = 3   // with fewer there is nowhere to go
)

// defragment empties a thin host when a start found room nowhere: its instances are started elsewhere first, and stopped
// when their calls have ended. Nothing moves without such a start, for placement spreads, and would undo what was packed.
func (s *Scheduler) defragment() {
	if !s.lacking || s.now < s.defragAt || !s.granting() {
		return
	}
	s.lacking, s.defragAt = false, s.now+defragPause
	var hosts []place.Loaded
	for _, h := range s.order {
		if h.usable(s.now) {
			hosts = append(hosts, h.loaded(s))
		}
	}
	if len(hosts) < defragHosts {
		return
	}
	for _, m := range place.Drain(hosts, defragThin, defragMost) {
		s.move(m)
	}
}

// loaded describes h to defragmentation.
func (h *host) loaded(s *Scheduler) place.Loaded {
	l, ours := place.Loaded{Node: h.node, FreeMiB: h.free, TotalMiB: h.total}, 0
	for i := h.all.front; i != nil; i = i.in[byHost].next {
		ours += i.memory
		if i.mayMove(s) {
			l.Movable = append(l.Movable, i.memory)
		} else {
			l.Fixed++
		}
	}
	if ours < h.total-h.free {
		l.Fixed++ // another partition's
	}
	return l
}

// mayMove reports whether one more instance of the version may be started to replace i.
func (i *instance) mayMove(s *Scheduler) bool {
	v := i.version
	return i.state == isReady && !i.moving && v.known() && !s.held(v) && v.deaths < s.cfg.DeathMax && v.of.instances < v.most
}

// move starts the replacement of an instance.
func (s *Scheduler) move(m place.Move) {
	for i := s.hosts[m.From].all.front; i != nil; i = i.in[byHost].next {
		if i.memory == m.MiB && i.mayMove(s) && s.hosts[m.To].suits(i.version) {
			i.moving = true
			s.startAt(i.version, s.hosts[m.To], s.now).replaces = i
			s.counts.Relocated++
			return
		}
	}
}

// replaced has i, whose replacement is ready, serve no further call: its leases are recalled, and it stops when the last
// has come back.
func (s *Scheduler) replaced(i *instance) {
	if i.state != isReady || !i.moving {
		return
	}
	if i.used == 0 {
		s.stop(i, false)
		return
	}
	i.moved = true
	if i.isFree {
		i.version.free.remove(i)
		i.isFree = false
	}
	for l := i.leases.front; l != nil; l = l.in[byInstance].next {
		if l.node == 0 || l.recalled {
			continue
		}
		first := s.out.recalls.used
		s.askBack(l, first)
		s.out.send(l.node, s.out.recalls.items[first])
	}
}
