package balance

import (
	"maps"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// Config is when the planner acts. Weights are in acquires a second (partmap.Load.Weight).
type Config struct {
	Trigger    float64       // a node with more than this × the mean, or less than 2 - this, is worth moving partitions for; > 1
	Rest       float64       // moving goes on until no node has more than this × the mean; 1 < Rest < Trigger
	Looks      int           // looks for which a reason must last before it is acted on
	Pause      time.Duration // in which a partition that was changed is not changed again; Settle for the halves of a split
	Settle     time.Duration // for which the load of a changed partition is taken to be what it was
	InFlight   int           // changes at once
	Base       float64       // what a partition weighs without load, so that idle ones are spread too; > 0
	SplitMin   float64       // a partition that weighs less is never split
	HotCPU     uint16        // a partition whose steps take so much of one core is split, in thousandths
	PerNode    int           // partitions of a scheduler node above which cold ones are merged
	ColdWeight float64       // above Base, below which a partition is cold
	ColdFor    time.Duration // for which both must have been cold
}

// DefaultConfig returns what the manager runs with.
func DefaultConfig() Config {
	return Config{Trigger: 1.2, Rest: 1.08, Looks: 3, Pause: 10 * time.Second, Settle: 3 * time.Second, InFlight: 4,
		Base: 20, SplitMin: 500, HotCPU: 600, PerNode: 64, ColdWeight: 5, ColdFor: time.Minute}
}

// A Proposal is one change that the owner should be ordered to carry out, and why.
type Proposal struct {
	Change partmap.Change
	Owner  starling.NodeID
	Reason string
}

// A Planner plans moves, splits and merges by load. It remembers what it needs so as not to act on a single look, nor
// twice on one partition: how long each reason lasts, when each partition changed, what it weighed before. It reads no
// clock and has one caller at a time.
type Planner struct {
	cfg     Config
	first   bool // no look yet
	skewed  int  // looks in a row in which a node had too much or too little
	evening bool // moving goes on until Rest
	entries map[starling.PartitionID]entry
	skew    float64
}

// An entry is what the planner remembers of one partition.
type entry struct {
	epoch   starling.Epoch
	keys    starling.Range
	weight  float64
	hot     int       // looks in a row in which it was too hot
	touched time.Time // when it was changed last, by a change that keeps the state; zero for never
	cut     bool      // that change was a split, which is of use only once a part of it has moved
	warm    time.Time // when it was last seen not cold
	refused time.Time // when its owner last refused an order for it; zero for never
}

// NewPlanner returns a planner that has seen nothing.
func NewPlanner(cfg Config) *Planner {
	return &Planner{cfg: cfg, first: true, entries: map[starling.PartitionID]entry{}}
}

// Imbalance returns the weight of the most loaded node in the last look over the mean; 0 before the first.
func (p *Planner) Imbalance() float64 { return p.skew }

// Look takes one picture and returns what should be ordered now, the most urgent first. Call it in even steps, of half a
// second or so. While partitions are without an owner it plans nothing.
func (p *Planner) Look(now time.Time, pic Picture) []Proposal {
	p.observe(now, pic)
	if !pic.calm() {
		return nil
	}
	r := p.newRound(now, pic)
	p.count(r)
	r.plan(p.evening)
	return r.out
}

// Refused notes that a partition's owner did not carry out an order: it is left alone for a while.
func (p *Planner) Refused(now time.Time, id starling.PartitionID) {
	if e, ok := p.entries[id]; ok {
		e.touched, e.refused, e.cut = now, now, false
		p.entries[id] = e
	}
}

// Drain returns the moves that empty the draining nodes, at most as many as may be in flight. It needs no looks: the
// operator's word, or the node's own, is enough.
func (p *Planner) Drain(now time.Time, pic Picture) []Proposal {
	if !pic.calm() {
		return nil
	}
	r := p.newRound(now, pic)
	r.drain()
	return r.out
}

// Try returns what the planner would do on this picture if all reasons had lasted long enough, at most limit changes. It
// changes nothing: it is the dry run.
func (p *Planner) Try(now time.Time, pic Picture, limit int) []Proposal {
	c := *p
	c.entries = maps.Clone(p.entries)
	c.observe(now, pic)
	c.cfg.Looks, c.cfg.InFlight = 1, limit
	r := c.newRound(now, pic)
	c.count(r)
	r.plan(r.skewed())
	return r.out
}

// calm reports whether every partition is held by its owner.
func (pic Picture) calm() bool {
	for _, c := range pic.Claims {
		if c != Held {
			return false
		}
	}
	return true
}

// observe brings the entries up to date. A partition that was changed starts anew at its owner, which reports next to
// nothing at first: for a while it is taken to weigh what it did, so that its load does not seem to be gone.
func (p *Planner) observe(now time.Time, pic Picture) {
	next := make(map[starling.PartitionID]entry, len(pic.Map.Partitions))
	half, divided := 0.0, false // what the partition before weighs since it was cut in this look
	for _, part := range pic.Map.Partitions {
		e, known := p.entries[part.ID]
		reported := p.cfg.Base
		if l, ok := pic.Loads[part.ID]; ok {
			reported += l.Weight()
		}
		switch {
		case !known && divided:
			e = entry{weight: half, touched: now, cut: true, warm: now}
		case !known:
			e = entry{weight: reported, warm: now}
			if !p.first {
				e.touched = now
			}
		case part.Epoch != e.epoch && part.Since == part.Epoch: // recovered: it may go on at once
		case part.Epoch != e.epoch:
			e.touched, e.hot, e.cut = now, 0, false
			if size(part.Range) < size(e.keys) {
				e.cut = true
				e.weight /= 2
			}
		}
		half, divided = e.weight, known && size(part.Range) < size(e.keys)
		if !e.touched.IsZero() && now.Sub(e.touched) < p.cfg.Settle {
			e.weight = max(e.weight, reported)
		} else {
			e.weight = (e.weight + reported) / 2
		}
		if e.weight >= p.cfg.Base+p.cfg.ColdWeight {
			e.warm = now
		}
		e.epoch, e.keys = part.Epoch, part.Range
		next[part.ID] = e
	}
	p.entries, p.first = next, false
}

// count notes how long the reasons for moving and splitting have lasted.
func (p *Planner) count(r *round) {
	p.skew = r.imbalance()
	if r.skewed() {
		p.skewed++
	} else {
		p.skewed = 0
	}
	if p.skewed >= p.cfg.Looks {
		p.evening = true
	}
	if r.rests() {
		p.evening = false
	}
	for i, part := range r.pic.Map.Partitions {
		e := p.entries[part.ID]
		if _, hot := r.tooHot(i); hot {
			e.hot++
		} else {
			e.hot = 0
		}
		p.entries[part.ID] = e
	}
}

// size returns how many keys a range has, less one, so that all of them fit.
func size(r starling.Range) uint64 { return uint64(r.Hi) - 1 - uint64(r.Lo) }
