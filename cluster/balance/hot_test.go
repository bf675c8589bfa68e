package balance

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"starling"
	"starling/cluster/partmap"
)

// A history notes what each partition has been through, for those who must not go back and forth.
type history struct {
	left map[starling.PartitionID]map[starling.NodeID]time.Time // when each node last gave the partition away
	cut  time.Time                                              // when the newest cut was made
}

// note adds a plan, and says what is wrong with it; calm is the time in which nothing may go back to where it was.
func (h *history) note(w *model, before *partmap.Map, plan []Proposal, calm time.Duration) error {
	if h.left == nil {
		h.left = map[starling.PartitionID]map[starling.NodeID]time.Time{}
	}
	for _, p := range plan {
		part, _ := before.ByID(p.Change.Partition)
		switch p.Change.Kind {
		case partmap.Move:
			if at, ok := h.left[part.ID][p.Change.To]; ok && w.now.Sub(at) < calm {
				return fmt.Errorf("%v goes back to %v after %v: %s", part.ID, p.Change.To, w.now.Sub(at), p.Reason)
			}
			if h.left[part.ID] == nil {
				h.left[part.ID] = map[starling.NodeID]time.Time{}
			}
			h.left[part.ID][part.Owner] = w.now
		case partmap.Split:
			h.cut = w.now
		case partmap.Merge:
			return fmt.Errorf("%v is merged %v after the last cut: %s", part.ID, w.now.Sub(h.cut), p.Reason)
		}
	}
	return nil
}

// deciders returns how much of a function each node decides.
func (w *model) deciders(f starling.FunctionRef) map[starling.NodeID]float64 {
	share := map[starling.NodeID]float64{}
	s := partmap.Span(f)
	for _, p := range w.m.Overlapping(s) {
		share[p.Owner] += (float64(size(overlap(p.Range, s))) + 1) / span
	}
	return share
}

// One function that asks for more than one node decides comes to all of them, in equal parts, within six seconds,
// also when its partition has moved just before. Nothing else is moved, cut or merged for it, no part goes back, and then
// all stays as it is, though the load is never quite the same.
func TestOneHotFunctionComesToEveryNode(t *testing.T) {
	for seed := uint64(1); seed <= uint64(4**seeds); seed++ {
		rng := rand.New(rand.NewPCG(seed, 3))
		nodes := 2 + rng.IntN(4)
		rate := []float64{1200, 5000, 50_000, 200_000}[rng.IntN(4)] * float64(nodes) / 3
		w := newModel(seed, nodes, 64, 1, 1, 0)
		for range 20 {
			w.look(t)
		}
		hot := w.functions[0]
		w.moveFirst(t, hot)
		w.drift, w.rates[0] = 0, rate
		var h history
		at := 0
		for look := 1; look <= 120; look++ {
			w.rates[0] = rate * (0.95 + 0.1*rng.Float64())
			before := w.m
			plan := w.look(t)
			if err := h.note(w, before, plan, time.Minute); err != nil {
				t.Fatalf("seed %d, %d nodes, %.0f/s, look %d: %v", seed, nodes, rate, look, err)
			}
			for _, p := range plan {
				if part, _ := before.ByID(p.Change.Partition); size(overlap(part.Range, partmap.Span(hot))) >= span {
					t.Fatalf("seed %d, %d nodes, %.0f/s, look %d: %+v has nothing to do with the function", seed, nodes, rate, look, p)
				}
			}
			if len(w.deciders(hot)) < nodes {
				at = look + 1
			}
			if look > 60 && len(plan) > 0 {
				t.Fatalf("seed %d, %d nodes, %.0f/s: changed after %d looks: %+v", seed, nodes, rate, look, plan)
			}
		}
		if at > 12 {
			t.Errorf("seed %d, %d nodes, %.0f/s: decided on all of them only after %d looks: %v", seed, nodes, rate, at, w.deciders(hot))
		}
		for node, share := range w.deciders(hot) {
			if share*float64(nodes) < 0.99 || share*float64(nodes) > 1.01 {
				t.Errorf("seed %d, %d nodes, %.0f/s: %v decides %.3f of it", seed, nodes, rate, node, share)
			}
		}
	}
}

// moveFirst has an operator move the function's partition, which the planner sees at its next look.
func (w *model) moveFirst(t *testing.T, f starling.FunctionRef) {
	t.Helper()
	part := w.m.Overlapping(partmap.Span(f))[0]
	next := w.m.Clone()
	if err := next.Apply(partmap.Change{Kind: partmap.Move, Partition: part.ID, Epoch: part.Epoch, To: part.Owner%starling.NodeID(len(w.nodes)) + 1}); err != nil {
		t.Fatal(err)
	}
	w.m = next
}

// A node that joins a cluster at rest has its share two looks and a few answers later, also when a second one joins at
// once, and no partition goes back to where it was.
func TestNodesThatJoinAtRestGetTheirShareAtOnce(t *testing.T) {
	for _, partitions := range []int{16, 64, 256} {
		w := newModel(1, 1, partitions, 1, 1, 0)
		w.look(t)
		var h history
		for n := starling.NodeID(2); n <= 3; n++ {
			w.nodes = append(w.nodes, Node{ID: n})
			for range 4 {
				before := w.m
				plan := w.look(t)
				for len(plan) > 0 {
					if err := h.note(w, before, plan, time.Minute); err != nil {
						t.Fatal(err)
					}
					before = w.m
					plan = w.carryOut(t, w.planner.GoOn(w.now, w.picture()))
				}
			}
		}
		for look := 0; look < 2; look++ {
			w.look(t)
			for len(w.carryOut(t, w.planner.GoOn(w.now, w.picture()))) > 0 {
			}
		}
		for _, n := range w.nodes {
			if has, mean := len(w.m.OwnedBy(n.ID)), partitions/3; has < mean*8/10 || has > mean*12/10+1 {
				t.Errorf("%d partitions: %v has %d", partitions, n.ID, has)
			}
		}
	}
}
