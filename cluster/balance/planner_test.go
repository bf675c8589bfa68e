package balance

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/cluster/partmap"
)

var seeds = flag.Int("balance-seeds", 8, "seeds of the load model")

// A model is a cluster whose functions are called with Zipf-distributed rates that drift.
type model struct {
	rng       *rand.Rand
	m         *partmap.Map
	nodes     []Node
	functions []starling.FunctionRef
	rates     []float64
	drift     float64 // of each rate, at most, a look
	planner   *Planner
	now       time.Time
	last      map[starling.PartitionID]lastChange
	moved     int     // partitions
	keys      float64 // share of the key space that changed its owner
	changes   int
}

// A lastChange is when a partition was changed last, and for how long it is to be left alone then.
type lastChange struct {
	at   time.Time
	rest time.Duration
}

func newModel(seed uint64, nodes, partitions, functions int, exponent, total float64) *model {
	w := &model{rng: rand.New(rand.NewPCG(seed, 1)), planner: NewPlanner(DefaultConfig()), now: time.Unix(1e9, 0)}
	w.m, _ = partmap.Initial(partitions)
	for i := range nodes {
		w.nodes = append(w.nodes, Node{ID: starling.NodeID(i + 1), Zone: starling.Zone([]string{"a", "b", "c"}[i%3])})
	}
	for i := range w.m.Partitions {
		w.m.Partitions[i].Owner, w.m.Partitions[i].Epoch, w.m.Partitions[i].Since = starling.NodeID(i%nodes+1), 1, 1
	}
	sum := 0.0
	for i := range functions {
		w.functions = append(w.functions, starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprintf("f%d-%d", seed, i))})
		w.rates = append(w.rates, 1/math.Pow(float64(i+1), exponent))
		sum += w.rates[i]
	}
	for i := range w.rates {
		w.rates[i] *= total / sum
	}
	return w
}

// loads returns what the owners would report, and each node's load.
func (w *model) loads() (map[starling.PartitionID]partmap.Load, map[starling.NodeID]float64) {
	type hot struct {
		f    int
		rate float64
	}
	rate := map[starling.PartitionID]float64{}
	hots := map[starling.PartitionID][]hot{}
	for i, f := range w.functions {
		s := partmap.Span(f)
		for _, p := range w.m.Overlapping(s) {
			o := overlap(p.Range, s)
			part := w.rates[i] * (float64(size(o)) + 1) / span
			rate[p.ID] += part
			hots[p.ID] = append(hots[p.ID], hot{i, part})
		}
	}
	byNode := map[starling.NodeID]float64{}
	out := map[starling.PartitionID]partmap.Load{}
	for _, p := range w.m.Partitions {
		r := rate[p.ID]
		byNode[p.Owner] += r
		l := partmap.Load{Partition: p.ID, Epoch: p.Epoch, Acquires: uint32(r)}
		for _, h := range hots[p.ID] {
			if share := h.rate / r; share > 0.02 && len(l.Hot) < partmap.HotMax {
				l.Hot = append(l.Hot, partmap.Hot{Function: w.functions[h.f], Share: uint16(1000 * share)})
			}
		}
		out[p.ID] = l
	}
	return out, byNode
}

func (w *model) picture() Picture {
	loads, _ := w.loads()
	return Picture{Map: w.m, Claims: make([]Claim, len(w.m.Partitions)), Nodes: w.nodes, Loads: loads}
}

// look lets half a second pass and carries out what the planner wants.
func (w *model) look(t *testing.T) []Proposal {
	t.Helper()
	w.now = w.now.Add(500 * time.Millisecond)
	for i := range w.rates {
		w.rates[i] *= 1 + w.drift*(2*w.rng.Float64()-1)
	}
	return w.carryOut(t, w.planner.Look(w.now, w.picture()))
}

// carryOut applies a plan at once, and checks that it is one that may be carried out.
func (w *model) carryOut(t *testing.T, plan []Proposal) []Proposal {
	t.Helper()
	if len(plan) > w.planner.cfg.InFlight {
		t.Fatalf("%d changes at once", len(plan))
	}
	next := w.m.Clone()
	for _, p := range plan {
		part, _ := next.ByID(p.Change.Partition)
		if p.Owner != part.Owner || p.Reason == "" {
			t.Fatalf("%+v is an order for the wrong node, or without a reason", p)
		}
		if p.Change.Kind == partmap.Move {
			w.moved++
			w.keys += (float64(size(part.Range)) + 1) / (1 << 32) / (1 << 32)
		}
		if err := next.Apply(p.Change); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		last := w.last[part.ID]
		if p.Change.Kind == partmap.Split { // what has moved stays for longer than it must be in one piece
			last.rest = min(last.rest, w.planner.cfg.Settle)
		}
		if w.now.Sub(last.at) < last.rest {
			t.Fatalf("%v was changed %v ago and should have rested for %v", part.ID, w.now.Sub(last.at), last.rest)
		}
		if w.last == nil {
			w.last = map[starling.PartitionID]lastChange{}
		}
		w.last[part.ID] = lastChange{w.now, w.planner.rest(part, p.Change)}
	}
	w.m = next
	w.changes += len(plan)
	return plan
}

// rest returns for how long a partition is to be left alone after a change.
func (p *Planner) rest(part partmap.Partition, c partmap.Change) time.Duration {
	switch {
	case c.Kind == partmap.Split && c.At%span != 0:
		return 0
	case c.Kind == partmap.Split:
		return p.cfg.Settle
	case p.cfg.idle(p.entries[part.ID].weight):
		return p.cfg.IdlePause
	}
	return p.cfg.Pause
}

func (w *model) skew() float64 {
	_, byNode := w.loads()
	most, sum := 0.0, 0.0
	for _, n := range w.nodes {
		most = max(most, byNode[n.ID])
		sum += byNode[n.ID]
	}
	return most * float64(len(w.nodes)) / sum
}

// On Zipf-distributed load, also where one function has more than a node's share, the most loaded node comes to at most
// 1.3 × the mean, and then nothing changes any more while the load is steady.
func TestZipfLoadIsEvenedAndThenLeftAlone(t *testing.T) {
	worst, keys, moves, looks := 0.0, 0.0, 0, 0
	for seed := uint64(1); seed <= uint64(*seeds); seed++ {
		rng := rand.New(rand.NewPCG(seed, 2))
		nodes := []int{2, 3, 5, 8, 16}[rng.IntN(5)]
		w := newModel(seed, nodes, []int{16, 64, 256}[rng.IntN(3)], 500, 0.7+0.5*rng.Float64(), float64(nodes)*20_000)
		before := w.skew()
		reached := 0
		for look := 1; look <= 240; look++ {
			w.look(t)
			if w.skew() > 1.3 {
				reached = look + 1
			}
		}
		if reached > 200 {
			t.Fatalf("seed %d: %d nodes still have %.2f × the mean after 240 looks; it was %.2f", seed, nodes, w.skew(), before)
		}
		worst, keys, moves, looks = max(worst, w.skew()), keys+w.keys, moves+w.moved, max(looks, reached)
		settled := w.changes
		for range 100 {
			if plan := w.look(t); len(plan) > 0 {
				t.Fatalf("seed %d: the load is steady and even (%.2f) and %+v was planned after %d changes", seed, w.skew(), plan, settled)
			}
		}
	}
	n := float64(*seeds)
	t.Logf("%d seeds: at worst %.2f × the mean, reached after at most %d looks; %.1f moves with %.2f of all keys a rebalance", *seeds, worst, looks, float64(moves)/n, keys/n)
}

// Load that drifts keeps the nodes even without many changes.
func TestDriftingLoadStaysEven(t *testing.T) {
	for seed := uint64(1); seed <= uint64(*seeds); seed++ {
		w := newModel(seed, 5, 64, 500, 1, 100_000)
		for range 240 {
			w.look(t)
		}
		w.drift = 0.02
		over, before, keys := 0, w.changes, w.keys
		for range 600 { // five minutes
			w.look(t)
			if w.skew() > 1.3 {
				over++
			}
		}
		if over > 30 {
			t.Errorf("seed %d: more than 1.3 × the mean in %d of 600 looks", seed, over)
		}
		if w.changes-before > 100 {
			t.Errorf("seed %d: %d changes in five minutes", seed, w.changes-before)
		}
		if seed == 1 {
			t.Logf("five minutes of drift: over 1.3 in %d of 600 looks, %d changes, %.2f of all keys moved", over, w.changes-before, w.keys-keys)
		}
	}
}

// repeat takes the same picture again and again and returns the first plan, and after how many looks it came.
func repeat(p *Planner, pic Picture, looks int) (plan []Proposal, after int) {
	now := time.Unix(1e9, 0)
	for i := 1; i <= looks; i++ {
		now = now.Add(500 * time.Millisecond)
		if plan := p.Look(now, pic); len(plan) > 0 {
			return plan, i
		}
	}
	return nil, 0
}

// owned returns a map of len(owners) partitions with these owners.
func owned(owners ...starling.NodeID) *partmap.Map {
	m, _ := partmap.Initial(len(owners))
	for i, o := range owners {
		m.Partitions[i].Owner, m.Partitions[i].Epoch, m.Partitions[i].Since = o, 1, 1
	}
	return m
}

func TestEachRuleGivesItsReason(t *testing.T) {
	busy := func(rates ...uint32) map[starling.PartitionID]partmap.Load {
		loads := map[starling.PartitionID]partmap.Load{}
		for i, r := range rates {
			id := starling.PartitionID(i + 1)
			loads[id] = partmap.Load{Partition: id, Epoch: 1, Acquires: r}
		}
		return loads
	}
	resize := starling.FunctionRef{Account: "acme", Name: "resize"}
	home := int(uint64(starling.KeyOf(resize, 0)) >> 62) // of four partitions
	homeOwners := []starling.NodeID{1, 1, 1, 1}
	homeOwners[home], homeOwners[(home+1)%4] = 2, 2
	hotHome := map[starling.PartitionID]partmap.Load{starling.PartitionID(home + 1): {Epoch: 1, Acquires: 5000, Hot: []partmap.Hot{{Function: resize, Share: 940}}}}
	many := owned(make([]starling.NodeID, 146)...)
	many.Partitions[145].ID, many.Last = 147, 147 // as if it had been joined with the last one and cut again: all are cuts of load
	for i := range many.Partitions {
		many.Partitions[i].Owner = starling.NodeID(i%2 + 1)
	}
	two := []Node{{ID: 1}, {ID: 2}}
	for _, c := range []struct {
		name   string
		pic    Picture
		kind   partmap.ChangeKind
		part   starling.PartitionID
		to     starling.NodeID
		reason string
		looks  int
	}{
		{"a busy node gives away what brings it nearest to the mean", Picture{Map: owned(1, 1, 1, 2), Nodes: two, Loads: busy(300, 200, 100, 100)}, partmap.Move, 2, 2, "n1 has 1.71 × the mean load", 3},
		{"a new node gets partitions without load", Picture{Map: owned(1, 1, 1, 1), Nodes: two}, partmap.Move, 1, 2, "n1 has 4 partitions without load and n2 0", 2},
		{"a draining node gives all away at once", Picture{Map: owned(1, 2), Nodes: []Node{{ID: 1, Draining: true}, {ID: 2}}}, partmap.Move, 1, 2, "n1 is to be empty", 1},
		{"several hot functions are parted between", Picture{Map: owned(1, 2, 1, 2), Nodes: two, Loads: busy(5000, 10, 10, 10)}, partmap.Split, 1, 0, "p1 alone weighs", 3},
		{"one hot function is cut inside its keys", Picture{Map: owned(homeOwners...), Nodes: two, Loads: hotHome}, partmap.Split, starling.PartitionID(home + 1), 0, "acme/resize has 94 % of it: cut inside", 3},
		{"an actor that fills its core is split", Picture{Map: owned(1), Nodes: two[:1], Loads: map[starling.PartitionID]partmap.Load{1: {Epoch: 1, Acquires: 9000, CPU: 800}}}, partmap.Split, 1, 0, "take 80 % of a core", 3},
		{"cold neighbours beyond what is needed come together", Picture{Map: many, Nodes: two}, partmap.Move, 1, 2, "are to be merged", 121},
		{"the emptier zone comes first", Picture{Map: owned(1, 1, 1, 1, 2, 2), Nodes: []Node{{ID: 1, Zone: "a"}, {ID: 2, Zone: "a"}, {ID: 3, Zone: "a"}, {ID: 4, Zone: "b"}}}, partmap.Move, 1, 4, "and n4 0", 2},
	} {
		c.pic.Claims = make([]Claim, len(c.pic.Map.Partitions))
		plan, looks := repeat(NewPlanner(DefaultConfig()), c.pic, 200)
		if len(plan) == 0 {
			t.Errorf("%s: nothing was planned", c.name)
			continue
		}
		got := plan[0]
		if got.Change.Kind != c.kind || got.Change.Partition != c.part || got.Change.To != c.to || looks != c.looks || !strings.Contains(got.Reason, c.reason) {
			t.Errorf("%s: got %v of %v to %v after %d looks because %q", c.name, got.Change.Kind, got.Change.Partition, got.Change.To, looks, got.Reason)
		}
	}
}

func functionIn(r starling.Range) starling.FunctionRef {
	for i := 0; ; i++ {
		f := starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", i))}
		if s := partmap.Span(f); partmap.Within(s, r) {
			return f
		}
	}
}

// A short burst, a partition in flight, an owner that refused or a partition without an owner: nothing is done.
func TestNothingIsPlannedTooSoon(t *testing.T) {
	base := Picture{Map: owned(1, 1, 1, 2), Nodes: []Node{{ID: 1}, {ID: 2}}, Claims: make([]Claim, 4)}
	now := time.Unix(1e9, 0)
	p := NewPlanner(DefaultConfig())
	for range 2 {
		now = now.Add(500 * time.Millisecond)
		if plan := p.Look(now, base); len(plan) > 0 {
			t.Fatalf("planned %+v on the second look", plan)
		}
	}
	waiting := base
	waiting.Claims = []Claim{Held, Waiting, Held, Held}
	if plan, _ := repeat(NewPlanner(DefaultConfig()), waiting, 10); len(plan) > 0 {
		t.Fatalf("planned %+v while a partition has no owner", plan)
	}
	full := base
	full.Busy = map[starling.PartitionID]starling.NodeID{11: 1, 12: 1, 13: 1, 14: 1}
	if plan, _ := repeat(NewPlanner(DefaultConfig()), full, 10); len(plan) > 0 {
		t.Fatalf("planned %+v while four changes are in flight", plan)
	}
	plan, _ := repeat(p, base, 5)
	refused := plan[0].Change.Partition
	p.Refused(time.Unix(1e9, 0).Add(3*time.Second), refused)
	for i := range 10 {
		for _, again := range p.Look(time.Unix(1e9, 0).Add(3*time.Second+time.Duration(i)*time.Second/2), base) {
			if again.Change.Partition == refused {
				t.Fatalf("%v was refused and is planned again after %d looks", refused, i)
			}
		}
	}
}

func TestTryChangesNothing(t *testing.T) {
	pic := Picture{Map: owned(1, 1, 1, 2), Nodes: []Node{{ID: 1}, {ID: 2}}, Claims: make([]Claim, 4)}
	p := NewPlanner(DefaultConfig())
	now := time.Unix(1e9, 0)
	if len(p.Try(now, pic, 64)) == 0 || len(p.Try(now, pic, 64)) == 0 {
		t.Fatal("a dry run shows nothing of what will be done")
	}
	if _, looks := repeat(p, pic, 10); looks != 3 {
		t.Fatalf("after a dry run the plan came after %d looks", looks)
	}
}

func BenchmarkLook(b *testing.B) {
	for _, partitions := range []int{16, 256, 4096} {
		for _, nodes := range []int{3, 30, 300} {
			b.Run(fmt.Sprintf("partitions=%d/nodes=%d", partitions, nodes), func(b *testing.B) {
				w := newModel(1, nodes, partitions, 10_000, 1, 1e6)
				pic := w.picture()
				now := w.now
				for b.Loop() {
					now = now.Add(500 * time.Millisecond)
					w.planner.Look(now, pic)
				}
			})
		}
	}
}
