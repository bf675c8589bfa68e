package balance

import (
	"fmt"
	"slices"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// refusedPause is the time after which a refused order is tried again when a node is to be emptied.
const refusedPause = time.Second

// A round is one look at work: the loads as they will be when everything in flight and planned so far is done. Load is
// evened by weight; partitions without load by number, apart from it, so that load that comes and goes does not move them.
type round struct {
	*shares         // by weight
	idles   *shares // by number, of those without load
	cfg     Config
	now     time.Time
	pic     Picture
	entries map[starling.PartitionID]entry
	weights []float64    // of each partition of the map
	taken   map[int]bool // indexes of partitions with a change in flight or planned
	room    int          // changes that may still be planned
	crowded bool         // one is to be cut, and there may be no more
	out     []Proposal
}

func (p *Planner) newRound(now time.Time, pic Picture) *round {
	r := &round{cfg: p.cfg, now: now, pic: pic, entries: p.entries, weights: p.weights(pic.Map), taken: map[int]bool{}, room: p.cfg.InFlight - len(pic.Busy)}
	r.shares = newShares(p.cfg, pic.Nodes, r.weight)
	r.idles = newShares(p.cfg, pic.Nodes, func(i int) float64 {
		if r.idle(i) {
			return 1
		}
		return 0
	})
	for i, part := range pic.Map.Partitions {
		owner := part.Owner
		if to, busy := pic.Busy[part.ID]; busy {
			r.taken[i] = true
			if to != 0 {
				owner = to
			}
		}
		r.add(owner, i)
		r.idles.add(owner, i)
	}
	return r
}

// weights returns what each partition of the map weighs as far as is known.
func (p *Planner) weights(m *partmap.Map) []float64 {
	all := make([]float64, len(m.Partitions))
	for i := range m.Partitions {
		all[i] = p.cfg.Base
		if e, ok := p.entries[m.Partitions[i].ID]; ok {
			all[i] = e.weight
		}
	}
	return all
}

func (r *round) weight(i int) float64 { return r.weights[i] }

// free reports whether a partition may be moved or merged now.
func (r *round) free(i int) bool { return r.rested(i, r.cfg.Pause) }

// ripe reports whether a partition may be split now: it need not stay for longer than it takes to weigh it.
func (r *round) ripe(i int) bool { return r.rested(i, r.cfg.Settle) }

// rested reports whether a partition has stayed as it is for as long as it must, but at most for the time given.
func (r *round) rested(i int, most time.Duration) bool {
	part := r.pic.Map.Partitions[i]
	e := r.entries[part.ID]
	return !r.taken[i] && e.epoch == part.Epoch && r.now.Sub(e.refused) >= r.cfg.Pause &&
		(e.touched.IsZero() || r.now.Sub(e.touched) >= min(e.rest, most))
}

func (r *round) idle(i int) bool { return r.cfg.idle(r.weight(i)) }

// propose plans one change of the partition at i; false when no more may be planned.
func (r *round) propose(i int, c partmap.Change, format string, args ...any) bool {
	if r.room <= 0 {
		return false
	}
	part := r.pic.Map.Partitions[i]
	c.Partition, c.Epoch = part.ID, part.Epoch
	r.room--
	r.taken[i] = true
	r.out = append(r.out, Proposal{Change: c, Owner: part.Owner, Reason: fmt.Sprintf(format, args...)})
	return true
}

// plan goes through the rules, the most urgent first.
func (r *round) plan(p *Planner) {
	r.drain()
	r.split()
	r.merge() // before evening, which would part again what was moved to be merged
	if p.load.on {
		r.even()
	}
	if p.idle.on {
		r.evenIdle()
	}
}

// drain moves everything off the draining nodes.
func (r *round) drain() {
	for _, from := range r.leaving {
		for _, i := range slices.Clone(from.parts) {
			to := r.least()
			if r.idle(i) {
				to = r.idles.least()
			}
			if to == nil || r.room <= 0 {
				return
			}
			if e := r.entries[r.pic.Map.Partitions[i].ID]; r.taken[i] || r.now.Sub(e.refused) < refusedPause {
				continue
			}
			r.hand(i, from, to, "%s is to be empty; %s has the least load", from.ID, to.ID)
		}
	}
}

// split cuts what has been too hot for long enough.
func (r *round) split() {
	for i, part := range r.pic.Map.Partitions {
		why, hot := r.tooHot(i)
		if !hot || !r.ripe(i) || r.entries[part.ID].hot < r.cfg.Looks {
			continue
		}
		if r.full() {
			r.crowded = true
			return
		}
		r.cut(i, why)
	}
}

// tooHot reports whether a partition is more than should be in one piece, and why.
func (r *round) tooHot(i int) (why string, hot bool) {
	part := r.pic.Map.Partitions[i]
	load := r.pic.Loads[part.ID]
	w := r.weight(i) - r.cfg.Base
	least, share := r.cfg.SplitMin, r.mean
	if part.Range.Lo%span != 0 || part.Range.Hi%span != 0 { // a part of a function, cut to be about a node's share
		least, share = least/2, share*r.cfg.Trigger
	}
	switch {
	case w < least:
		return "", false
	case len(r.nodes) > 1 && w > share:
		return fmt.Sprintf("%s alone weighs %.0f/s, more than a node's share of %.0f/s", part.ID, w, r.mean), true
	case load.CPU >= r.cfg.HotCPU:
		return fmt.Sprintf("the steps of %s take %d %% of a core", part.ID, load.CPU/10), true
	}
	return "", false
}

// cut plans the split of a partition where it parts the load best.
func (r *round) cut(i int, why string) bool {
	part := r.pic.Map.Partitions[i]
	c, ok := bestCut(part.Range, r.entries[part.ID].busiest, r.mean/max(r.weight(i), 1))
	if !ok {
		return false
	}
	if c.inside != "" {
		return r.propose(i, partmap.Change{Kind: partmap.Split, At: c.at}, "%s; %s has %d %% of it: cut inside its keys", why, c.inside, c.percent)
	}
	return r.propose(i, partmap.Change{Kind: partmap.Split, At: c.at}, "%s; cut so that the larger half has %.0f %%", why, 100*c.larger)
}

// even moves partitions with load from the most loaded node to the least until nothing is gained.
func (r *round) even() {
	for r.room > 0 && !r.rests() {
		from, to := r.most(), r.least()
		if slices.ContainsFunc(from.parts, r.awaitsCut) {
			return // what is sent away in its stead would come back once it is cut
		}
		i, ok := r.pick(from, to, func(i int) bool { return r.free(i) && !r.idle(i) })
		if !ok {
			r.halve(from)
			return
		}
		r.hand(i, from, to, "%s has %.2f × the mean load and %s %.2f ×; %s weighs %.0f/s, which brings it nearest to the mean",
			from.ID, from.weight/r.mean, to.ID, to.weight/r.mean, r.pic.Map.Partitions[i].ID, r.weight(i))
	}
}

// evenIdle moves partitions without load from the node with the most of them to the one with the fewest.
func (r *round) evenIdle() {
	for r.room > 0 && !r.idles.rests() {
		from, to := r.idles.most(), r.idles.least()
		i, ok := r.idles.pick(from, to, func(i int) bool { return r.free(i) && r.idle(i) })
		if !ok {
			return
		}
		r.hand(i, from, to, "%s has %.0f partitions without load and %s %.0f; %s is one of them", from.ID, from.weight, to.ID, to.weight, r.pic.Map.Partitions[i].ID)
	}
}

// hand plans a move from one node to another.
func (r *round) hand(i int, from, to *share, format string, args ...any) {
	r.propose(i, partmap.Change{Kind: partmap.Move, To: to.ID}, format, args...)
	for _, s := range []*shares{r.shares, r.idles} {
		s.drop(from.ID, i)
		s.add(to.ID, i)
	}
}

// awaitsCut reports whether a partition is too hot and can be cut, or is being cut.
func (r *round) awaitsCut(i int) bool {
	part := r.pic.Map.Partitions[i]
	if _, hot := r.tooHot(i); !hot || r.full() {
		return false
	}
	_, cuttable := bestCut(part.Range, r.entries[part.ID].busiest, 0)
	return cuttable
}

// halve splits the heaviest partition of a node that has too much and none small enough to give away.
func (r *round) halve(from *share) {
	if from.weight <= r.cfg.Trigger*r.mean || r.full() {
		return
	}
	heaviest := -1
	for _, i := range from.parts {
		if !r.ripe(i) {
			return // what was changed a moment ago may be small enough once it may move
		}
		if heaviest < 0 || r.weight(i) > r.weight(heaviest) {
			heaviest = i
		}
	}
	if heaviest >= 0 && r.weight(heaviest)-r.cfg.Base >= r.cfg.SplitMin {
		r.cut(heaviest, fmt.Sprintf("%s has %.2f × the mean load and no partition small enough to give away", from.ID, from.weight/r.mean))
	}
}
