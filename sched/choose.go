package sched

import (
	"slices"

	"starling"
	"starling/sched/place"
)

// The number of hosts a start looks at. Up to scanHosts of them it looks at all; among more it draws until drawHosts have
// room, and looks at those and at the hosts that the version was started on last. Two random choices are nearly as good as
// all (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001); more of them also find what is rare,
// such as a ready sandbox on one host in ten, nearly always.
const (
	scanHosts = 64
	drawHosts = 32
	drawMax   = 4 * drawHosts // draws; after them all hosts are looked at
)

// homesMax is how many hosts a version remembers to have been started on.
const homesMax = 4

// homes are the hosts that a version was started on last, most recent first; 0 for none. Its code is likely to be there.
type homes [homesMax]starling.NodeID

// note puts node first.
func (h *homes) note(node starling.NodeID) {
	k := 0
	for k < homesMax-1 && h[k] != node {
		k++
	}
	copy(h[1:k+1], h[:k])
	h[0] = node
}

// choose returns the host for a new instance of v, or nil when none has room.
func (s *Scheduler) choose(v *version) *host {
	need := v.config.Config.MemoryMiB
	rank := v.config.Config.Isolation.Rank()
	if starved := s.starved[rank]; starved != 0 && need >= starved {
		return nil // nobody had room for less since the last news of room
	}
	want := place.Want{MemoryMiB: need, StartingMax: s.cfg.HostMax}
	s.cands = s.cands[:0]
	if len(s.order) > scanHosts {
		s.draw(v, want)
	}
	if len(s.cands) == 0 {
		s.scan(v, want)
	}
	k := place.Choose(s.cands, want, s.cfg.Weights, s.rng)
	if k < 0 {
		s.lacking = true
		if !s.isStarved() {
			s.starvedAt = s.now
		}
		if starved := s.starved[rank]; starved == 0 || need < starved {
			s.starved[rank] = need
		}
		return nil
	}
	return s.hosts[s.cands[k].Node]
}

// scan makes every usable host a candidate, those without room only with what says so.
func (s *Scheduler) scan(v *version, want place.Want) {
	for _, h := range s.order {
		if h.usable(s.now) && h.suits(v) {
			s.cands = append(s.cands, h.candidate(v, want))
		}
	}
}

// draw makes a few hosts with room candidates: the version's homes, and others at random. Where room is so rare that no
// host drawn has any, it leaves none.
func (s *Scheduler) draw(v *version, want place.Want) {
	for _, node := range v.homes {
		if h := s.hosts[node]; h != nil && h.usable(s.now) && h.suits(v) && h.room(want) {
			s.cands = append(s.cands, h.candidate(v, want))
		}
	}
	for n, room := 0, 0; n < drawMax && room < drawHosts; n++ {
		if h := s.order[s.rng.IntN(len(s.order))]; h.usable(s.now) && h.suits(v) && h.room(want) {
			room++
			s.cands = append(s.cands, h.candidate(v, want))
		}
	}
}

func (h *host) usable(now instant) bool {
	return h.fenced && h.reported && !h.draining && !h.full && h.avoid <= now
}

// room reports whether place.Choose would not pass h over.
func (h *host) room(want place.Want) bool {
	return h.free >= want.MemoryMiB && h.starts() < want.StartingMax
}

// starts returns the starts in flight at h, of this partition or of all, as far as is known.
func (h *host) starts() int { return max(h.starting, h.others) }

// candidate describes h for an instance of v; of a host without room only what says so.
func (h *host) candidate(v *version, want place.Want) place.Candidate {
	c := place.Candidate{Node: h.node, FreeMiB: h.free, TotalMiB: h.total, Starting: h.starts(), CPU: h.cpu}
	if h.room(want) {
		c.Warm, c.Pooled = slices.Contains(h.code, v.id), slices.Contains(h.pools, stock{v.config.Config.Isolation, v.config.Config.Runtime})
		c.Same, c.SameZone = v.onHost[h.node], v.onZone[h.zone]
	}
	return c
}
