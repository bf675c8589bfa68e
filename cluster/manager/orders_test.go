package manager

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/partmap"
)

// keepers lets all nodes carry out orders.
func (w *world) keepers() {
	for _, n := range w.nodes {
		n.keep(n.view)
	}
}

func (w *world) ready(ids ...starling.NodeID) {
	w.t.Helper()
	w.waitFor(5*time.Second, "start", func() bool { return w.served(ids...) })
}

func (w *world) mustChange(from starling.NodeID, req cluster.ChangeRequest) {
	w.t.Helper()
	if err := w.nodes[from].view.Change(context.Background(), req); err != nil {
		w.t.Fatal(err)
	}
}

// An operator's wishes go through the leader to the owner, who changes the map; no lease is lost on the way.
func TestOperatorMovesSplitsAndMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t, 3, 1, 4)
		defer w.close()
		w.keepers()
		w.ready(1, 2, 3, 4)
		view := w.nodes[4].view
		time.Sleep(time.Second)
		before, _ := view.Map().ByID(1)
		to := before.Owner%4 + 1
		w.mustChange(4, cluster.ChangeRequest{Kind: partmap.Move, Partition: 1, To: to})
		w.waitFor(time.Second, "moved", func() bool { p, _ := view.Map().ByID(1); return p.Owner == to })
		after, _ := view.Map().ByID(1)
		if after.Epoch != before.Epoch+1 || after.Since != before.Since {
			t.Fatalf("moved from %+v to %+v: it was not handed over", before, after)
		}
		w.mustChange(4, cluster.ChangeRequest{Kind: partmap.Split, Partition: 1})
		w.waitFor(time.Second, "split", func() bool { return len(view.Map().Partitions) == 5 })
		w.mustChange(4, cluster.ChangeRequest{Kind: partmap.Move, Partition: 5, To: before.Owner})
		w.mustChange(4, cluster.ChangeRequest{Kind: partmap.Merge, Partition: 1, With: 5}) // on two nodes: moved first
		w.waitFor(time.Second, "merged", func() bool { return len(view.Map().Partitions) == 4 })
		if p, _ := view.Map().ByID(1); p.Owner != before.Owner || p.Range != before.Range {
			t.Fatalf("merged into %+v, want the range of %+v", p, before)
		}
		h, err := view.History(context.Background(), cluster.HistoryQuery{})
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		for _, e := range h.Events {
			if strings.HasPrefix(e.Reason, "an operator") {
				told = append(told, e.What)
			}
		}
		if got := strings.Join(told, " "); got != "moved split split moved moved merged gone" {
			t.Fatalf("history tells %q of the operator's changes", got)
		}
	})
}

func TestWishesThatCannotBeAreRefusedWithTheirReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t, 1, 1, 4)
		defer w.close()
		w.keepers()
		w.ready(1, 2)
		time.Sleep(time.Second)
		p, _ := w.nodes[1].view.Map().ByID(1)
		for _, c := range []struct {
			req    cluster.ChangeRequest
			kind   starling.Kind
			reason string
		}{
			{cluster.ChangeRequest{Kind: partmap.Move, Partition: 99, To: 1}, starling.NotFound, "NoPartition"},
			{cluster.ChangeRequest{Kind: partmap.Move, Partition: 1, To: 99}, starling.NotFound, "NoNode"},
			{cluster.ChangeRequest{Kind: partmap.Move, Partition: 1, To: p.Owner}, starling.Conflict, "SameNode"},
			{cluster.ChangeRequest{Kind: partmap.Merge, Partition: 1, With: 3}, starling.Conflict, "NotNeighbours"},
			{cluster.ChangeRequest{Kind: partmap.Merge, Partition: 1, With: 99}, starling.NotFound, "NoPartition"},
			{cluster.ChangeRequest{Kind: partmap.Split, Partition: 1, At: p.Range.Hi + 1}, starling.Invalid, "NotInRange"},
			{cluster.ChangeRequest{Kind: partmap.Assign, Partition: 1, To: 1}, starling.Invalid, ""},
		} {
			err := w.nodes[2].view.Change(context.Background(), c.req)
			if starling.KindOf(err) != c.kind || starling.ReasonOf(err) != c.reason {
				t.Errorf("%+v: got %v (%s), want %v %s", c.req, err, starling.ReasonOf(err), c.kind, c.reason)
			}
		}
	})
}

// Without a keeper that takes orders none are given, and partitions are evened as a release before orders did.
func TestNodesWithoutKeeperAreBalancedWithoutOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 8)
		defer w.close()
		w.ready(1, 2)
		time.Sleep(3 * time.Second)
		plan, err := w.nodes[1].view.Plan(context.Background())
		if err != nil || !strings.Contains(plan.Held, "takes no orders") {
			t.Fatalf("got %+v, %v", plan, err)
		}
		err = w.nodes[1].view.Change(context.Background(), cluster.ChangeRequest{Kind: partmap.Split, Partition: 1})
		if starling.KindOf(err) != starling.Conflict {
			t.Fatalf("got %v, want Conflict", err)
		}
	})
}

// An owner that takes an order and never answers costs the leader one deadline: then the partition is free again.
func TestOrderWithoutAnswerIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t, 1, 1, 2)
		defer w.close()
		for _, n := range w.nodes {
			_ = n.view.Orders() // taken, never read
		}
		w.ready(1, 2)
		time.Sleep(time.Second)
		split := cluster.ChangeRequest{Kind: partmap.Split, Partition: 1}
		first := make(chan error, 1)
		go func() { first <- w.nodes[2].view.Change(context.Background(), split) }()
		time.Sleep(time.Second)
		if err := w.nodes[2].view.Change(context.Background(), split); starling.ReasonOf(err) != "InFlight" {
			t.Fatalf("a second order for the same partition: got %v", err)
		}
		if err := <-first; starling.KindOf(err) != starling.Timeout {
			t.Fatalf("got %v, want Timeout", err)
		}
		for _, o := range w.nodes[1].manager.reign.Load().status().Orders {
			if o.Change.Partition == 1 {
				t.Fatalf("still in flight: %+v", o)
			}
		}
	})
}

// Load decides, not the number of partitions: the busy node gives away until it has its share, without a recovery.
func TestBusyNodeGivesPartitionsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 0, 12)
		defer w.close()
		w.keepers()
		w.ready(1, 2, 3)
		hot := map[starling.PartitionID]bool{}
		for _, p := range w.nodes[1].view.Map().OwnedBy(2) {
			hot[p.ID] = true
		}
		since := w.nodes[1].view.Map()
		w.group.Go(func() {
			w.drive(func(p starling.PartitionID) uint32 { return map[bool]uint32{true: 900, false: 30}[hot[p]] })
		})
		w.waitFor(20*time.Second, "hot partitions are spread", func() bool {
			busy := 0
			for _, p := range w.nodes[1].view.Map().OwnedBy(2) {
				if hot[p.ID] {
					busy++
				}
			}
			return busy <= 2
		})
		for _, p := range w.nodes[1].view.Map().Partitions {
			if old, ok := since.ByID(p.ID); ok && p.Since != old.Since {
				t.Fatalf("%v was recovered, not handed over", p.ID)
			}
		}
	})
}

// drive has every node report the load of what it owns, until the world ends.
func (w *world) drive(rate func(starling.PartitionID) uint32) {
	for {
		w.mu.Lock()
		for _, n := range w.nodes {
			n.rows = nil
			for _, p := range n.view.Map().OwnedBy(n.id) {
				n.rows = append(n.rows, partmap.Load{Partition: p.ID, Epoch: p.Epoch, Acquires: rate(p.ID)})
			}
		}
		w.mu.Unlock()
		select {
		case <-w.done:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Draining empties a node without a recovery, keeps it empty, and hands the lead on when it leads.
func TestDrainEmptiesANodeAndHandsTheLeadOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1, 16)
		defer w.close()
		w.keepers()
		w.ready(1, 2, 3, 4)
		time.Sleep(2 * time.Second)
		before := w.nodes[4].view.Map()
		w.nodes[4].mustPropose(cluster.SetDraining{ID: 1, Draining: true})
		took := w.waitFor(3*time.Second, "the node is empty", func() bool { return len(w.nodes[4].view.Map().OwnedBy(1)) == 0 })
		t.Logf("emptied after %v", took)
		w.waitFor(3*time.Second, "another manager leads", func() bool {
			return !w.nodes[1].manager.Leads() && (w.nodes[2].manager.Leads() || w.nodes[3].manager.Leads())
		})
		time.Sleep(5 * time.Second)
		for _, p := range w.nodes[4].view.Map().Partitions {
			if old, _ := before.ByID(p.ID); p.Owner == 1 || p.Since != old.Since {
				t.Fatalf("%+v after the drain, before it %+v", p, old)
			}
		}
		w.nodes[4].mustPropose(cluster.SetDraining{ID: 1})
		w.waitFor(20*time.Second, "it gets its share again", func() bool { return w.even(1, 2, 3, 4) && w.served(1, 2, 3, 4) })
	})
}

// A node that is told to stop is empty before it says farewell: nothing is recovered.
func TestStoppingNodeMovesItsPartitionsAwayFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, 20)
		defer w.close()
		w.keepers()
		w.ready(1, 2, 3, 4, 5)
		time.Sleep(2 * time.Second)
		before := w.nodes[1].view.Map()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		w.nodes[5].view.Empty(ctx)
		if left := w.nodes[5].view.Map().OwnedBy(5); len(left) > 0 {
			t.Fatalf("%d partitions are left", len(left))
		}
		for _, p := range w.nodes[5].view.Map().Partitions {
			if old, _ := before.ByID(p.ID); p.Since != old.Since {
				t.Fatalf("%v was recovered", p.ID)
			}
		}
	})
}

// Nothing that a release before orders does not understand is proposed while a replica of it may exist, or another node of
// it is at work.
func TestNothingNewIsProposedBesideAnOlderNode(t *testing.T) {
	now := time.Time{}.Add(time.Hour)
	l := NewLedger(1, now, now)
	topology := &cluster.Topology{Map: &partmap.Map{}, Nodes: []starling.Node{{ID: 1, Replica: 1}, {ID: 2, Replica: 2}, {ID: 3}}}
	l.Hello(1, cluster.Hello{Level: cluster.LevelNow}, true, now)
	if l.behind(topology, cluster.LevelOrders, now) != 2 {
		t.Fatal("a replica that was never heard counts as new")
	}
	l.Hello(2, cluster.Hello{}, false, now)
	if l.behind(topology, cluster.LevelOrders, now) != 2 {
		t.Fatal("a replica that says no level counts as new")
	}
	l.Hello(2, cluster.Hello{Level: cluster.LevelNow}, false, now)
	if l.behind(topology, cluster.LevelOrders, now) != 0 {
		t.Fatal("a node without a replica that was never heard is waited for")
	}
	l.Hello(3, cluster.Hello{}, false, now)
	if l.behind(topology, cluster.LevelOrders, now) != 3 {
		t.Fatal("a living host of the older release counts as new")
	}
	if l.behind(topology, cluster.LevelOrders, now.Add(starling.NodeLease)) != 0 {
		t.Fatal("a dead host of the older release is waited for")
	}
}

// An owner learns for certain what came of its proposal, also when the first answer was lost, and nobody else may propose.
func TestOwnerLearnsWhatCameOfItsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t, 3, 1, 4)
		defer w.close()
		w.ready(1, 2, 3, 4)
		time.Sleep(time.Second)
		p, _ := w.nodes[4].view.Map().ByID(1)
		owner, next, other := w.nodes[p.Owner].view, w.nodes[p.Owner%4+1], w.nodes[(p.Owner+1)%4+1].view
		had := len(next.view.Map().OwnedBy(next.id))
		move := partmap.Change{Kind: partmap.Move, Partition: p.ID, Epoch: p.Epoch, To: next.id}
		if known, err := other.ProposeChange(t.Context(), move); !known || starling.KindOf(err) != starling.Denied {
			t.Fatalf("by another node: got %t, %v", known, err)
		}
		lost := func(n int) { w.q.mu.Lock(); w.q.lose = n; w.q.mu.Unlock() }
		lost(1)
		if known, err := owner.ProposeChange(t.Context(), move); !known || err != nil {
			t.Fatalf("with its first answer lost: got %t, %v", known, err)
		}
		if known, err := owner.ProposeChange(t.Context(), move); !known || err != nil { // who asks again did not learn that it was made
			t.Fatalf("a second time: got %t, %v", known, err)
		}
		w.waitFor(time.Second, "the new owner knows", func() bool { return len(next.view.Map().OwnedBy(next.id)) == had+1 })
		bounded, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		p, _ = next.view.Map().ByID(1)
		lost(1000)
		known, err := next.view.ProposeChange(bounded, partmap.Change{Kind: partmap.Merge, Partition: p.ID, Epoch: p.Epoch, With: 99})
		lost(0)
		if known || starling.KindOf(err) != starling.Unavailable {
			t.Fatalf("without any answer: got %t, %v", known, err)
		}
	})
}

// The leader waits exactly as long as the silent may still hold a lease: neither a look longer nor less.
func TestTheNextDeathIsKnownExactly(t *testing.T) {
	now := time.Time{}.Add(time.Hour)
	l := NewLedger(1, now, now)
	if d := l.NextDeath(now); d != starling.NodeLease {
		t.Errorf("with no node at all: %v", d)
	}
	l.Hello(2, cluster.Hello{Level: cluster.LevelNow}, false, now)
	l.Hello(3, cluster.Hello{Level: cluster.LevelNow}, false, now.Add(50*time.Millisecond))
	at := now.Add(150 * time.Millisecond)
	d := l.NextDeath(at)
	if end := at.Add(d); !l.hears(2, end.Add(-1)) || l.hears(2, end) || !l.hears(3, end) {
		t.Errorf("the next death is expected in %v", d)
	}
	if d := l.NextDeath(now.Add(starling.NodeLease)); d != 50*time.Millisecond {
		t.Errorf("the one that is dead already is waited for: %v", d)
	}
}

// Orders whose partition was given to another owner meanwhile are over: those of a dead owner would keep the rest from being evened out.
func TestOrdersOfADeadOwnerAreOver(t *testing.T) {
	now := time.Time{}.Add(time.Hour)
	m := &partmap.Map{Partitions: []partmap.Partition{{ID: 1, Epoch: 3, Owner: 2}}, Last: 1}
	d := NewDesk(1)
	move := partmap.Change{Kind: partmap.Move, Partition: 1, Epoch: 3, To: 4}
	if _, err := d.order(balance.Proposal{Change: move, Owner: 2}, now); err != nil {
		t.Fatal(err)
	}
	if late, _ := d.expire(m, now.Add(time.Second)); len(late) != 0 {
		t.Fatalf("an order in flight is over: %+v", late)
	}
	if err := m.Apply(partmap.Change{Kind: partmap.Assign, Partition: 1, Epoch: 3, To: 5}); err != nil {
		t.Fatal(err)
	}
	late, outcomes := d.expire(m, now.Add(time.Second))
	if len(late) != 1 || starling.KindOf(outcomes[0]) != starling.Moved || len(d.busy()) != 0 {
		t.Errorf("after its owner died: %d orders are over, %v; busy %v", len(late), outcomes, d.busy())
	}
}
