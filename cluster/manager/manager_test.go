package manager

import (
	"flag"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
)

func TestEveryPartitionGetsAnOwnerAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, 64)
		defer w.close()
		took := w.waitFor(2*time.Second, "all partitions served", func() bool { return w.served(1, 2, 3, 4, 5) })
		w.waitFor(20*time.Second, "evenly", func() bool { return w.served(1, 2, 3, 4, 5) && w.even(1, 2, 3, 4, 5) })
		t.Logf("64 partitions served after %v", took)
	})
}

// Detection takes one node lease; the partitions of the dead node are served again soon after, by the others.
func TestDeadNodeIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, 32)
		defer w.close()
		w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2, 3, 4, 5) && w.even(1, 2, 3, 4, 5) })
		before := w.nodes[4].view.Map()
		w.isolate(5)
		took := w.waitFor(time.Second, "partitions of the dead node served", func() bool { return w.served(1, 2, 3, 4) })
		if took < starling.NodeLease-starling.HeartbeatInterval-10*time.Millisecond {
			t.Fatalf("declared dead after %v, before its lease can have ended", took)
		}
		t.Logf("served again after %v", took)
		if _, alive := w.nodes[1].view.Node(5); alive {
			t.Fatal("the dead node counts as alive")
		}
		for _, p := range w.nodes[4].view.Map().Partitions {
			old, _ := before.ByID(p.ID)
			if moved := old.Owner == 5; moved != (p.Epoch > old.Epoch) {
				t.Fatalf("%v went from epoch %d of %v to epoch %d of %v", p.ID, old.Epoch, old.Owner, p.Epoch, p.Owner)
			}
		}
		w.rejoin(5)
		w.waitFor(time.Second, "heard again", func() bool { _, alive := w.nodes[1].view.Node(5); return alive && w.nodes[5].view.Ready() })
		w.waitFor(20*time.Second, "evenly again", func() bool { return w.served(1, 2, 3, 4, 5) && w.even(1, 2, 3, 4, 5) })
	})
}

// A leader that stood still did not hear anybody meanwhile. That says nothing of the others, also when it stood still in the
// middle of a round, as one that waits for its disk mostly does.
func TestALeaderThatStoodStillInARoundCountsNobodyDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, 16)
		defer w.close()
		w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2, 3, 4) && w.even(1, 2, 3, 4) })
		standStill := func() { w.nodes[1].stood.Add(int64(2 * time.Second)) }
		w.q.proposing.Store(&standStill)
		if err := w.nodes[4].view.Close(); err != nil { // has the leader propose new owners
			t.Fatal(err)
		}
		w.waitFor(time.Second, "all served", func() bool { return w.q.proposing.Load() == nil && w.served(1, 2, 3) })
		time.Sleep(2 * starling.NodeLease)
		if n := w.nodes[1].manager.metrics.deaths.Get(); n != 0 {
			t.Errorf("%d nodes that were not heard while the leader stood still count as dead", n)
		}
	})
}

func TestNodeThatLeavesIsReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 16)
		defer w.close()
		w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2, 3) && w.even(1, 2, 3) })
		if err := w.nodes[3].view.Close(); err != nil {
			t.Fatal(err)
		}
		took := w.waitFor(200*time.Millisecond, "partitions of the leaver served", func() bool { return w.served(1, 2) })
		t.Logf("served again after %v", took)
	})
}

// A process that starts anew under its old id has forgotten what it granted: it owns nothing in the old epochs.
func TestRestartedNodeOwnsItsPartitionsInNewEpochsOnly(t *testing.T) {
	for _, id := range []starling.NodeID{1, 2} { // the leader's own node, and one far away
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, 1, 8)
			defer w.close()
			w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2) && w.even(1, 2) })
			before := w.nodes[1].view.Map().Clone()
			old := w.nodes[id].view
			w.net.cut(addrOf(id), addrOf(3-id)) // no farewell: it crashed
			_ = old.Close()
			w.net.heal(addrOf(id), addrOf(3-id))
			w.nodes[id].start(false)
			w.waitFor(2*time.Second, "served again", func() bool { return w.nodes[id].view.Ready() && w.served(1, 2) })
			for _, p := range before.OwnedBy(id) {
				if now, _ := w.nodes[id].view.Map().ByID(p.ID); now.Epoch <= p.Epoch {
					t.Fatalf("after a restart %v is still in epoch %d", p.ID, now.Epoch)
				}
			}
		})
	}
}

// When the leader fails, all nodes find the next one, and no living owner loses a partition.
func TestNodesFollowTheNextLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 3, 32)
		defer w.close()
		w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2, 3, 4, 5, 6) && w.even(1, 2, 3, 4, 5, 6) })
		before := w.nodes[4].view.Map()
		w.isolate(1)
		time.Sleep(200 * time.Millisecond) // an election
		w.q.elect(2)
		took := w.waitFor(time.Second, "a session with the next leader", func() bool {
			g := w.nodes[2].manager.reign.Load()
			if g == nil {
				return false
			}
			heard := 0
			for _, n := range g.status().Nodes {
				if n.Heard >= 0 && w.nodes[n.Node.ID].view.Ready() {
					heard++
				}
			}
			return heard == 5
		})
		t.Logf("%v after the election the new leader hears all others, and each has a lease", took)
		w.waitFor(2*time.Second, "partitions of the old leader served", func() bool { return w.served(2, 3, 4, 5, 6) })
		for _, p := range w.nodes[4].view.Map().Partitions {
			old, _ := before.ByID(p.ID)
			if old.Owner != 1 && (p.Owner != old.Owner || p.Epoch != old.Epoch) {
				t.Fatalf("%v was taken from %v, which was alive", p.ID, old.Owner)
			}
		}
	})
}

// A leader that was cut off with one node cannot keep that node's lease alive past the next leader's wait.
func TestStaleLeaderGrantsNothingForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, 16)
		defer w.close()
		w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2, 3, 4, 5) })
		for _, id := range []starling.NodeID{2, 3, 5} { // 1 and 4 still reach each other
			w.net.cut(addrOf(1), addrOf(id))
			w.net.cut(addrOf(4), addrOf(id))
		}
		w.q.elect(2)
		w.waitFor(2*time.Second, "the majority serves all", func() bool { return w.served(2, 3, 5) })
		if len(w.nodes[4].owns()) > 0 || len(w.nodes[1].owns()) > 0 {
			t.Fatal("the cut-off nodes still act for partitions")
		}
		w.waitFor(time.Second, "the old leader noticed", func() bool { return !w.nodes[1].manager.Leads() })
		for _, id := range []starling.NodeID{2, 3, 5} {
			w.net.heal(addrOf(1), addrOf(id))
			w.net.heal(addrOf(4), addrOf(id))
		}
		w.waitFor(20*time.Second, "evenly again", func() bool { return w.served(1, 2, 3, 4, 5) && w.even(1, 2, 3, 4, 5) })
	})
}

func TestPlanOfAnOlderClaimIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 0, 1)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1) })
		old := w.nodes[1].manager.reign.Load().claim
		w.propose(cluster.ClaimLead{Node: 1})
		g := &reign{manager: w.nodes[1].manager, replica: w.nodes[1].replica, claim: old}
		p := w.nodes[1].view.Map().Partitions[0]
		if err := g.propose(t.Context(), assign(p.ID, p.Epoch, 1)); starling.KindOf(err) != starling.Moved {
			t.Fatalf("got %v, want Moved", err)
		}
		w.waitFor(2*time.Second, "a new reign", func() bool {
			g := w.nodes[1].manager.reign.Load()
			return g != nil && g.claim > old && w.served(1)
		})
	})
}

func TestRemovedNodeLosesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 12)
		defer w.close()
		w.waitFor(20*time.Second, "start", func() bool { return w.served(1, 2, 3) && w.even(1, 2, 3) })
		if _, err := w.nodes[2].view.Propose(t.Context(), cluster.RemoveNode{ID: 3}); err != nil {
			t.Fatal(err)
		}
		w.waitFor(2*time.Second, "its partitions served by others", func() bool { return w.served(1, 2) })
		if !w.nodes[2].view.Revoked(3) || w.nodes[2].view.Revoked(1) || w.nodes[2].view.Revoked(99) {
			t.Fatal("the removed node, and only it, is revoked")
		}
	})
}

var seeds = flag.Uint64("seeds", 12, "how many random histories to try")

// Whatever is cut, frozen, elected or restarted, and however clocks drift, no two nodes act for a partition at
// one instant; and when all faults end, all partitions are served.
func TestNoTwoOwnersUnderRandomFaults(t *testing.T) {
	fired := 0
	for seed := uint64(1); seed <= *seeds; seed++ {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			w := newDriftingWorld(t, 3, 3, 12, func() float64 { return 0.95 + 0.1*rng.Float64() })
			defer w.close()
			for range 40 {
				fired += w.fault(rng)
				time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
				if bad := w.verdict(); bad != "" {
					t.Fatalf("%s; rerun with seed %d", bad, seed)
				}
			}
			for id := range w.nodes {
				w.rejoin(id)
			}
			w.q.elect(1)
			w.waitFor(5*time.Second, "all served after the faults", func() bool { return w.served(1, 2, 3, 4, 5, 6) })
		})
	}
	if fired == 0 {
		t.Fatal("no fault fired")
	}
}

// fault does one random thing to the world and returns 1 when it was a fault.
func (w *world) fault(rng *rand.Rand) int {
	a, b := starling.NodeID(1+rng.IntN(6)), starling.NodeID(1+rng.IntN(6))
	switch rng.IntN(8) {
	case 0:
		w.isolate(a)
	case 1, 2:
		w.rejoin(a)
		return 0
	case 3:
		if a != b {
			w.net.cut(addrOf(a), addrOf(b))
		}
	case 4:
		w.net.heal(addrOf(a), addrOf(b))
		return 0
	case 5, 6:
		w.q.elect(uint64(1 + rng.IntN(3)))
	case 7:
		if a > 3 {
			_ = w.nodes[a].view.Close()
			w.nodes[a].start(false)
		}
	}
	return 1
}

func TestCheckerSeesTwoOwners(t *testing.T) {
	if conflict(map[starling.NodeID][]starling.PartitionID{1: {1, 2}, 2: {3, 2}}) == "" {
		t.Fatal("two owners of one partition were not noticed")
	}
	if bad := conflict(map[starling.NodeID][]starling.PartitionID{1: {1, 2}, 2: {3}}); bad != "" {
		t.Fatal(bad)
	}
}
