package balance

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// refusedPause is the time after which a refused order is tried again when a node is to be emptied.
const refusedPause = time.Second

// A round is one look at work: the loads as they will be when everything in flight and planned so far is done.
type round struct {
	cfg     Config
	now     time.Time
	pic     Picture
	entries map[starling.PartitionID]entry
	nodes   []*share // that may own partitions, by id
	leaving []*share // draining ones, by id
	zones   map[starling.Zone]*zoneShare
	mean    float64
	taken   map[int]bool // indexes of partitions with a change in flight or planned
	room    int          // changes that may still be planned
	out     []Proposal
}

// A share is one node with what it has.
type share struct {
	Node
	weight float64
	parts  []int // indexes into the map
}

type zoneShare struct {
	weight float64
	nodes  int
}

func (p *Planner) newRound(now time.Time, pic Picture) *round {
	r := &round{cfg: p.cfg, now: now, pic: pic, entries: p.entries, zones: map[starling.Zone]*zoneShare{}, taken: map[int]bool{},
		room: p.cfg.InFlight - len(pic.Busy)}
	byID := map[starling.NodeID]*share{}
	for _, n := range pic.Nodes {
		s := &share{Node: n}
		byID[n.ID] = s
		if n.Draining {
			r.leaving = append(r.leaving, s)
			continue
		}
		r.nodes = append(r.nodes, s)
		if r.zones[n.Zone] == nil {
			r.zones[n.Zone] = &zoneShare{}
		}
		r.zones[n.Zone].nodes++
	}
	byName := func(a, b *share) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(r.nodes, byName)
	slices.SortFunc(r.leaving, byName)
	total := 0.0
	for i, part := range pic.Map.Partitions {
		owner := part.Owner
		if to, busy := pic.Busy[part.ID]; busy {
			r.taken[i] = true
			if to != 0 {
				owner = to
			}
		}
		total += r.weight(i)
		if s := byID[owner]; s != nil {
			r.give(s, i)
		}
	}
	r.mean = total / float64(max(len(r.nodes), 1))
	return r
}

func (r *round) weight(i int) float64 {
	if e, ok := r.entries[r.pic.Map.Partitions[i].ID]; ok {
		return e.weight
	}
	return r.cfg.Base
}

func (r *round) give(s *share, i int) {
	s.weight += r.weight(i)
	s.parts = append(s.parts, i)
	if z := r.zones[s.Zone]; z != nil && !s.Draining {
		z.weight += r.weight(i)
	}
}

func (r *round) take(s *share, i int) {
	s.weight -= r.weight(i)
	s.parts = slices.DeleteFunc(s.parts, func(j int) bool { return j == i })
	if z := r.zones[s.Zone]; z != nil && !s.Draining {
		z.weight -= r.weight(i)
	}
}

// least returns the node that should get the next partition: the least loaded; of those about equal the one in the zone
// with the least for each of its nodes; then the lowest id. nil when there is none.
func (r *round) least() *share {
	if len(r.nodes) == 0 {
		return nil
	}
	step := max(r.mean/20, 1)
	return slices.MinFunc(r.nodes, func(a, b *share) int {
		za, zb := r.zones[a.Zone], r.zones[b.Zone]
		return cmp.Or(cmp.Compare(math.Floor(a.weight/step), math.Floor(b.weight/step)),
			cmp.Compare(za.weight/float64(za.nodes), zb.weight/float64(zb.nodes)), cmp.Compare(a.weight, b.weight), cmp.Compare(a.ID, b.ID))
	})
}

// most returns the node that should give one away; nil when there is none.
func (r *round) most() *share {
	if len(r.nodes) == 0 {
		return nil
	}
	return slices.MinFunc(r.nodes, func(a, b *share) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(a.ID, b.ID))
	})
}

func (r *round) imbalance() float64 {
	if s := r.most(); s != nil && r.mean > 0 {
		return s.weight / r.mean
	}
	return 0
}

// skewed reports whether some node has so much, or so little, that it is worth a change.
func (r *round) skewed() bool {
	if len(r.nodes) < 2 {
		return false
	}
	low := slices.MinFunc(r.nodes, func(a, b *share) int { return cmp.Compare(a.weight, b.weight) })
	return r.imbalance() > r.cfg.Trigger || low.weight < (2-r.cfg.Trigger)*r.mean
}

func (r *round) rests() bool {
	if len(r.nodes) < 2 {
		return true
	}
	low := slices.MinFunc(r.nodes, func(a, b *share) int { return cmp.Compare(a.weight, b.weight) })
	return r.imbalance() <= r.cfg.Rest && low.weight >= (2-r.cfg.Rest)*r.mean
}

// free reports whether a partition may be changed now. The halves of a split need not rest for longer than it takes to
// weigh them: while neither may move, partitions without load would be sent away in their stead, and back later.
func (r *round) free(i int) bool {
	e := r.entries[r.pic.Map.Partitions[i].ID]
	pause := r.cfg.Pause
	if e.cut {
		pause = r.cfg.Settle
	}
	return !r.taken[i] && (e.touched.IsZero() || r.now.Sub(e.touched) >= pause)
}

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
func (r *round) plan(evening bool) {
	r.drain()
	r.split()
	if evening {
		r.even()
	}
	r.merge()
}

// drain moves everything off the draining nodes.
func (r *round) drain() {
	for _, from := range r.leaving {
		for _, i := range slices.Clone(from.parts) {
			to := r.least()
			if to == nil || r.room <= 0 {
				return
			}
			if e := r.entries[r.pic.Map.Partitions[i].ID]; r.taken[i] || r.now.Sub(e.refused) < refusedPause {
				continue
			}
			r.propose(i, partmap.Change{Kind: partmap.Move, To: to.ID}, "%s is to be empty; %s has the least load", from.ID, to.ID)
			r.take(from, i)
			r.give(to, i)
		}
	}
}

// split cuts what has been too hot for long enough.
func (r *round) split() {
	if len(r.pic.Map.Partitions) >= starling.PartitionMax {
		return
	}
	for i, part := range r.pic.Map.Partitions {
		why, hot := r.tooHot(i)
		if !hot || !r.free(i) || r.entries[part.ID].hot < r.cfg.Looks {
			continue
		}
		r.cut(i, why)
	}
}

// tooHot reports whether a partition is more than should be in one piece, and why.
func (r *round) tooHot(i int) (why string, hot bool) {
	part := r.pic.Map.Partitions[i]
	load := r.pic.Loads[part.ID]
	w := r.weight(i) - r.cfg.Base
	switch {
	case w < r.cfg.SplitMin:
		return "", false
	case len(r.nodes) > 1 && w > r.mean:
		return fmt.Sprintf("%s alone weighs %.0f/s, more than a node's share of %.0f/s", part.ID, w, r.mean), true
	case load.CPU >= r.cfg.HotCPU:
		return fmt.Sprintf("the steps of %s take %d %% of a core", part.ID, load.CPU/10), true
	}
	return "", false
}

// cut plans the split of a partition where it parts the load best.
func (r *round) cut(i int, why string) bool {
	part := r.pic.Map.Partitions[i]
	c, ok := bestCut(part.Range, r.pic.Loads[part.ID].Hot, r.mean/max(r.weight(i), 1))
	if !ok {
		return false
	}
	if c.inside != "" {
		return r.propose(i, partmap.Change{Kind: partmap.Split, At: c.at}, "%s; %s has %d %% of it: cut inside its keys", why, c.inside, c.percent)
	}
	return r.propose(i, partmap.Change{Kind: partmap.Split, At: c.at}, "%s; cut so that the larger half has %.0f %%", why, 100*c.larger)
}

// even moves partitions from the most loaded node to the least until nothing is gained.
func (r *round) even() {
	for r.room > 0 && !r.rests() {
		from, to := r.most(), r.least()
		i, ok := r.pick(from, to)
		if !ok {
			r.halve(from)
			return
		}
		r.propose(i, partmap.Change{Kind: partmap.Move, To: to.ID}, "%s has %.2f × the mean load and %s %.2f ×; %s weighs %.0f/s, which brings it nearest to the mean",
			from.ID, from.weight/r.mean, to.ID, to.weight/r.mean, r.pic.Map.Partitions[i].ID, r.weight(i))
		r.take(from, i)
		r.give(to, i)
	}
}

// pick returns the heaviest partition of from that does not bring it below the mean; if there is none, the lightest one
// that still makes the more loaded of the two nodes lighter by a twentieth of the mean.
func (r *round) pick(from, to *share) (best int, ok bool) {
	const slack = 1e-9
	for _, i := range from.parts {
		w := r.weight(i)
		if r.free(i) && w <= (from.weight-r.mean)*(1+slack) && to.weight+w < from.weight && (!ok || w > r.weight(best)) {
			best, ok = i, true
		}
	}
	if ok {
		return best, true
	}
	for _, i := range from.parts {
		w := r.weight(i)
		if r.free(i) && max(from.weight-w, to.weight+w) < from.weight-r.mean/20 && (!ok || w < r.weight(best)) {
			best, ok = i, true
		}
	}
	return best, ok
}

// halve splits the heaviest partition of a node that has too much and none small enough to give away.
func (r *round) halve(from *share) {
	if from.weight <= r.cfg.Trigger*r.mean || len(r.pic.Map.Partitions) >= starling.PartitionMax {
		return
	}
	heaviest := -1
	for _, i := range from.parts {
		if !r.free(i) {
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
