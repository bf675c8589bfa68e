package manager

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
)

var hello = starling.FunctionRef{Account: "acme", Name: "hello"}

func put(now int64) cluster.PutFunction {
	code := starling.CodeHash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	return cluster.PutFunction{Function: hello, Config: starling.Config{Runtime: starling.Python311}, Code: code, CodeSize: 10, Now: now}
}

// mustPropose proposes through a node's view.
func (n *node) mustPropose(cmd cluster.Command) cluster.Reply {
	n.w.t.Helper()
	reply, err := n.view.Propose(context.Background(), cmd)
	if err != nil {
		n.w.t.Fatal(err)
	}
	return reply
}

// What one node changes, the node itself sees at once and every other as soon as the feed comes round.
func TestCachesFollowTheFeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 2, 3)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1, 2, 3, 4, 5) })
		a, b := w.nodes[4], w.nodes[5]
		if _, err := b.view.Resolve(t.Context(), hello, starling.Latest); starling.KindOf(err) != starling.NotFound {
			t.Fatalf("got %v, want NotFound", err)
		}
		a.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		v1 := a.mustPropose(put(1)).Version
		if got, err := a.view.Resolve(t.Context(), hello, starling.Latest); err != nil || got.ID != v1.ID {
			t.Fatalf("the node that deployed sees %v, %v", got, err)
		}
		sees := func(id starling.VersionID) func() bool {
			return func() bool {
				got, err := b.view.Resolve(t.Context(), hello, starling.Latest)
				return err == nil && got.ID == id
			}
		}
		w.waitFor(50*time.Millisecond, "another node sees the function that it just missed", sees(v1.ID))
		v2 := a.mustPropose(put(2)).Version
		w.waitFor(50*time.Millisecond, "another node sees the new snapshot", sees(v2.ID))
		if got, err := b.view.Version(t.Context(), v1.ID); err != nil || got.ID != v1.ID {
			t.Fatalf("calls in flight still name the old snapshot; got %v", err)
		}
		a.mustPropose(cluster.DeleteFunction{Function: hello})
		w.waitFor(50*time.Millisecond, "another node sees the deletion", func() bool {
			_, err1 := b.view.Resolve(t.Context(), hello, starling.Latest)
			_, err2 := b.view.Version(t.Context(), v1.ID)
			return starling.KindOf(err1) == starling.NotFound && starling.KindOf(err2) == starling.NotFound
		})
	})
}

func TestRevokedKeyIsForgottenEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 1)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.nodes[2].view.Ready() })
		key := starling.Key{Hash: [32]byte{1}, ID: "abc", Account: "acme", Role: starling.KeyUser}
		w.nodes[1].mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		w.nodes[1].mustPropose(cluster.CreateKey{Key: key})
		if got, err := w.nodes[2].view.Key(t.Context(), key.Hash); err != nil || got != key {
			t.Fatalf("got %v, %v", got, err)
		}
		w.nodes[1].mustPropose(cluster.DeleteKey{Account: "acme", ID: "abc"})
		w.waitFor(50*time.Millisecond, "the key is refused", func() bool {
			_, err := w.nodes[2].view.Key(t.Context(), key.Hash)
			return starling.KindOf(err) == starling.NotFound
		})
	})
}

// The first call of a function need not ask the leader on the node that it was deployed to.
func TestDeployedFunctionIsReadAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1, 3)
		defer w.close()
		n := w.nodes[4]
		w.waitFor(2*time.Second, "start", func() bool { return n.view.Ready() })
		n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		n.mustPropose(put(1))
		v2 := n.mustPropose(put(2)).Version
		time.Sleep(50 * time.Millisecond) // virtual: the feed comes round
		w.isolate(4)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got, err := n.view.Resolve(ctx, hello, starling.Latest)
		if err != nil || got.ID != v2.ID {
			t.Fatalf("got %v, %v", got, err)
		}
		if _, err := n.view.Version(ctx, v2.ID); err != nil {
			t.Fatalf("its host would have to ask: %v", err)
		}
	})
}

// Without any leader what is cached stays readable, a change waits for the next leader, and one that waits in
// vain says so.
func TestCacheServesWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1, 3)
		defer w.close()
		n := w.nodes[4]
		w.waitFor(2*time.Second, "start", func() bool { return n.view.Ready() })
		n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		n.mustPropose(put(1))
		time.Sleep(50 * time.Millisecond) // virtual: the feed comes round and drops what was read before
		if _, err := n.view.Resolve(t.Context(), hello, starling.Latest); err != nil {
			t.Fatal(err)
		}
		w.isolate(4)
		time.Sleep(3 * time.Second)
		if _, err := n.view.Resolve(t.Context(), hello, starling.Latest); err != nil {
			t.Fatalf("what was cached is lost: %v", err)
		}
		if n.view.Ready() || len(n.owns()) > 0 {
			t.Fatal("a node without a leader acts for partitions")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.view.Propose(ctx, put(2)); starling.KindOf(err) != starling.Unavailable {
			t.Fatalf("got %v, want Unavailable", err)
		}
		time.AfterFunc(time.Second, func() { w.rejoin(4) })
		if reply, err := n.view.Propose(t.Context(), put(3)); err != nil || reply.Version == nil {
			t.Fatalf("a change that could wait for the leader got %v", err)
		}
	})
}

// A question to a leader that fell silent goes to the next one as soon as the session is given up, not when the
// question's own patience is at its end.
func TestQuestionsFollowTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1, 3)
		defer w.close()
		n := w.nodes[4]
		w.waitFor(2*time.Second, "start", func() bool { return n.view.Ready() })
		n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		status, err := n.view.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.isolate(status.Leader)
		time.AfterFunc(300*time.Millisecond, func() { w.q.elect(2) })
		began := time.Now()
		if _, err := n.view.Read(t.Context(), cluster.Query{What: cluster.QueryAccount, Account: "acme"}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Fatalf("the answer took %v", took)
		}
	})
}

// Found in a network with faults: a deletion that was tried again took what another client had made under the name
// meanwhile, and a creation that was tried again was refused because of what another client had made after it was
// deleted. A request is carried out once, however often it is asked for, and what others did meanwhile stays.
func TestALostAnswerIsGivenAgain(t *testing.T) {
	account := starling.Account{ID: "other", ConcurrencyMax: 7}
	key := starling.Key{Hash: [32]byte{1}, ID: "k", Account: "acme", Role: starling.KeyUser}
	function := cluster.Query{What: cluster.QueryResolve, Account: hello.Account, Function: hello.Name}
	for _, c := range []struct {
		cmd       cluster.Command
		meanwhile cluster.Command // of another client
		look      cluster.Query
		after     starling.Kind // of the look; Internal for what is there
	}{
		{cluster.DeleteFunction{Function: hello}, put(3), function, starling.Internal},
		{put(2), cluster.DeleteFunction{Function: hello}, function, starling.NotFound},
		{cluster.PublishVersion{Function: hello}, cluster.DeleteFunction{Function: hello}, function, starling.NotFound},
		{cluster.CreateAccount{Account: account}, cluster.DeleteAccount{ID: "other"}, cluster.Query{What: cluster.QueryAccount, Account: "other"}, starling.NotFound},
		{cluster.DeleteAccount{ID: "empty"}, cluster.CreateAccount{Account: starling.Account{ID: "empty"}}, cluster.Query{What: cluster.QueryAccount, Account: "empty"}, starling.Internal},
		{cluster.CreateKey{Key: key}, cluster.DeleteKey{Account: "acme", ID: "k"}, cluster.Query{What: cluster.QueryKey, Hash: key.Hash}, starling.NotFound},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newCatalogWorld(t)
			defer w.close()
			before := w.q.replicas[1].height()
			w.net.mute(addrOf(1), addrOf(4)) // answers only are lost
			answered := make(chan error, 1)
			go func() {
				_, err := w.nodes[4].view.Propose(t.Context(), c.cmd)
				answered <- err
			}()
			w.waitFor(time.Second, "carried out", func() bool { return w.q.replicas[1].height() > before })
			w.nodes[3].mustPropose(c.meanwhile)
			w.isolate(1)
			w.q.elect(2)
			if err := <-answered; err != nil {
				t.Fatalf("%T: got %v", c.cmd, err)
			}
			if _, err := w.nodes[3].view.Read(t.Context(), c.look); starling.KindOf(err) != c.after {
				t.Fatalf("%T came twice: another client's %T does not stand: %v", c.cmd, c.meanwhile, err)
			}
		})
	}
}

// Beside a node of an older release, which knows no requests, what others may change meanwhile is tried once when its
// answer is lost, and its caller is told.
func TestBesideAnOlderNodeAChangeIsTriedOnce(t *testing.T) {
	for _, cmd := range []cluster.Command{
		cluster.DeleteFunction{Function: hello},
		cluster.DeleteAccount{ID: "empty"},
		cluster.CreateAccount{Account: starling.Account{ID: "other"}},
		cluster.CreateKey{Key: starling.Key{Hash: [32]byte{1}, ID: "k", Account: "acme", Role: starling.KeyUser}},
		put(2),
		cluster.PublishVersion{Function: hello},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 3, 1, 3)
			defer w.close()
			w.waitFor(2*time.Second, "start", func() bool { return w.nodes[4].view.Ready() })
			g := w.nodes[1].manager.reign.Load()
			g.mu.Lock()
			g.ledger.nodes[3].level = cluster.LevelOnce - 1
			g.mu.Unlock()
			time.Sleep(3 * starling.HeartbeatInterval)
			w.fillCatalog()
			before := w.q.replicas[1].height()
			w.net.mute(addrOf(1), addrOf(4))
			_, err := w.nodes[4].view.Propose(t.Context(), cmd)
			if starling.KindOf(err) != starling.Unavailable || starling.ReasonOf(err) != cluster.ReasonOutcomeUnknown {
				t.Fatalf("%T: got %v", cmd, err)
			}
			if tries := w.q.replicas[1].height() - before; tries != 1 {
				t.Fatalf("%T was tried %d times", cmd, tries)
			}
			w.rejoin(4)
		})
	}
}

// newCatalogWorld returns a world with a function and an account without any.
func newCatalogWorld(t *testing.T) *world {
	w := newWorld(t, 3, 1, 3)
	w.waitFor(2*time.Second, "start", func() bool { return w.nodes[4].view.Ready() })
	time.Sleep(3 * starling.HeartbeatInterval) // the leader has heard all replicas, and said so
	w.fillCatalog()
	return w
}

func (w *world) fillCatalog() {
	n := w.nodes[4]
	n.mustPropose(cluster.SetIsolation{SharedKernel: true})
	n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
	n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "empty"}})
	n.mustPropose(put(1))
}

func TestChangedAddressReachesEveryNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 3)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1, 2, 3) })
		_ = w.nodes[3].view.Close()
		w.nodes[3].addr = "elsewhere"
		w.nodes[3].start(false)
		w.waitFor(2*time.Second, "the new address", func() bool {
			n, alive := w.nodes[2].view.Node(3)
			return n.Addr == "elsewhere" && alive
		})
	})
}

func TestStatusTellsLoadAndSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 3)
		defer w.close()
		w.mu.Lock()
		w.nodes[2].load = cluster.Load{Partitions: 1, Acquires: 500, FreeMiB: 1024}
		w.mu.Unlock()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1, 2, 3) })
		time.Sleep(200 * time.Millisecond)
		w.isolate(3)
		time.Sleep(time.Second)
		s, err := w.nodes[2].view.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Leader != 1 || len(s.Nodes) != 3 || s.Nodes[1].Load.Acquires != 500 || !s.Nodes[1].Alive || s.Nodes[2].Alive || s.Nodes[2].Heard < 900 {
			t.Fatalf("got %+v", s)
		}
	})
}
