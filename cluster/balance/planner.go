package balance

import (
	"maps"
	"slices"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// Config is when the planner acts. Weights are in acquires a second (partmap.Load.Weight).
type Config struct {
	Trigger    float64       // a node with more than this × the mean, or less than 2 - this, is worth moving partitions for; > 1
	Rest       float64       // moving goes on until no node has more than this × the mean; 1 < Rest < Trigger
	Looks      int           // looks for which a reason must last before it is acted on
	Pause      time.Duration // for which a partition with load that has moved, or whose owner refused an order, stays
	IdlePause  time.Duration // for which a partition without load that has moved stays
	Settle     time.Duration // for which the load of a changed partition is taken to be what it was, and it is not split; the parts of a split stay so long
	InFlight   int           // changes at once
	Base       float64       // what a partition weighs without load, so that idle ones are spread too; > 0
	SplitMin   float64       // a partition that weighs less is never split; half of it for one that is a part of a function
	HotCPU     uint16        // a partition whose steps take so much of one core is split, in thousandths
	PerNode    int           // partitions of a scheduler node above which cold ones are merged
	ColdWeight float64       // above Base, below which a partition is cold
	ColdFor    time.Duration // for which both must have been cold
}

// DefaultConfig returns what the manager runs with.
func DefaultConfig() Config {
	return Config{Trigger: 1.2, Rest: 1.08, Looks: 3, Pause: 10 * time.Second, IdlePause: time.Second, Settle: 3 * time.Second, InFlight: 4,
		Base: 1, SplitMin: 500, HotCPU: 600, PerNode: 72, ColdWeight: 5, ColdFor: time.Minute}
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
	first   bool   // no look yet
	load    reason // to even load out
	idle    reason // to even partitions without load out
	entries map[starling.PartitionID]entry
	skew    float64
}

// An entry is what the planner remembers of one partition.
type entry struct {
	epoch   starling.Epoch
	keys    starling.Range
	weight  float64
	busiest []partmap.Hot // its busiest functions, as last told
	hot     int           // looks in a row in which it was too hot
	touched time.Time     // when it was changed last, by a change that keeps the state; zero for never
	rest    time.Duration // for which it then stays where it is
	warm    time.Time     // when it was last seen not cold
	refused time.Time     // when its owner last refused an order for it; zero for never
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
	r.plan(p)
	return r.out
}

// Refused notes that a partition's owner did not carry out an order: it is left alone for a while.
func (p *Planner) Refused(now time.Time, id starling.PartitionID) {
	if e, ok := p.entries[id]; ok {
		e.refused = now
		p.entries[id] = e
	}
}

// GoOn returns what need not wait for the next look, at most as many changes as may be in flight: the moves that empty the
// draining nodes, for which the operator's word, or the node's own, is enough; and, once Look has begun to even the nodes out,
// more moves of partitions without load, which cost next to nothing and whose weight is known.
func (p *Planner) GoOn(now time.Time, pic Picture) []Proposal {
	leaving := slices.ContainsFunc(pic.Nodes, func(n Node) bool { return n.Draining })
	if !leaving && !p.idle.on || len(pic.Busy) >= p.cfg.InFlight || !pic.calm() {
		return nil
	}
	r := p.newRound(now, pic)
	r.drain()
	if p.idle.on && len(p.entries) == len(pic.Map.Partitions) { // else one was cut, and how the parts weigh is not known yet
		r.evenIdle()
	}
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
	r.plan(&c)
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
	var other *entry // what lies above the partition before, if that was cut since the last look
	for _, part := range pic.Map.Partitions {
		e, known := p.entries[part.ID]
		reported := p.cfg.Base
		if l, ok := pic.Loads[part.ID]; ok && l.Epoch == part.Epoch { // an older one tells of keys that it no longer has
			reported += l.Weight()
			if len(l.Hot) > 0 {
				e.busiest = l.Hot
			}
		}
		above := other
		other = nil
		switch {
		case !known && above != nil:
			e = *above
		case !known:
			e.weight, e.warm = reported, now
			if !p.first {
				e.touched, e.rest = now, p.cfg.Pause
			}
		case part.Epoch != e.epoch && part.Since == part.Epoch: // recovered: it may go on at once
		case size(part.Range) < size(e.keys):
			low, high := p.halves(e, part.Range.Hi, now)
			e, other = low, &high
		case part.Epoch != e.epoch:
			e.touched, e.hot, e.rest = now, 0, p.cfg.Pause
			if p.cfg.idle(e.weight) {
				e.rest = p.cfg.IdlePause
			}
		}
		if !e.touched.IsZero() && now.Sub(e.touched) < p.cfg.Settle {
			e.weight = max(e.weight, reported)
		} else {
			e.weight = (e.weight + reported) / 2
		}
		if !p.cfg.idle(e.weight) {
			e.warm = now
		}
		e.epoch, e.keys = part.Epoch, part.Range
		next[part.ID] = e
	}
	p.entries, p.first = next, false
}

// halves returns what becomes of a partition that was cut at a key. Between functions its load parts as its busiest
// functions say, which is not the whole truth: both stay and are weighed anew. Inside a function's keys it parts as the
// keys do: both may move, and are as long too hot as the whole was.
func (p *Planner) halves(whole entry, at starling.Key64, now time.Time) (low, high entry) {
	below := loadBelow(whole.keys, whole.busiest, at)
	whole.touched, whole.rest, whole.warm = now, 0, now
	if at%span == 0 {
		whole.hot, whole.rest = 0, p.cfg.Settle
	}
	low, high = whole, whole
	low.weight = p.cfg.Base + below*(whole.weight-p.cfg.Base)
	high.weight = p.cfg.Base + (1-below)*(whole.weight-p.cfg.Base)
	return low, high
}

// idle reports whether a partition of this weight is without load, but for a few calls a second.
func (c Config) idle(weight float64) bool { return weight < c.Base+c.ColdWeight }

// count notes how long the reasons for moving and splitting have lasted.
func (p *Planner) count(r *round) {
	p.skew = r.imbalance()
	p.load.count(r.shares)
	p.idle.count(r.idles)
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

// A reason to move partitions.
type reason struct {
	looks int  // in a row in which a node had too much or too little
	on    bool // it has lasted, and moving goes on until Rest
}

func (y *reason) count(s *shares) {
	if s.skewed() {
		y.looks++
	} else {
		y.looks = 0
	}
	empty := y.looks > 0 && s.lowest().weight == 0 // a node that has nothing at all has just come
	if y.looks >= s.cfg.Looks || empty && y.looks >= s.cfg.Looks-1 {
		y.on = true
	}
	if s.rests() {
		y.on = false
	}
}

// size returns how many keys a range has, less one, so that all of them fit.
func size(r starling.Range) uint64 { return uint64(r.Hi) - 1 - uint64(r.Lo) }
