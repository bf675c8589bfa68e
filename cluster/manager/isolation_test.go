package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/partmap"
)

// What no living host gives is refused at deployment, by name; what one gives is not.
func TestAFunctionNeedsAHostThatGivesItsIsolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 0, 3)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1) })
		n := w.nodes[1]
		n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		wish := func(now int64, i starling.Isolation) (cluster.Reply, error) {
			p := put(now)
			p.Config.Isolation = i
			return n.view.Propose(t.Context(), p)
		}
		w.waitFor(2*time.Second, "the leader knows what its hosts give", func() bool {
			_, err := wish(1, starling.IsolationGVisor)
			return starling.ReasonOf(err) == "NoIsolation" && starling.KindOf(err) == starling.Conflict
		})
		w.mu.Lock()
		n.load.Isolations = starling.SetOf(starling.IsolationProcess, starling.IsolationGVisor)
		w.mu.Unlock()
		w.waitFor(2*time.Second, "the host said that it gives gVisor", func() bool {
			r, err := wish(2, starling.IsolationGVisor)
			return err == nil && r.Version.Isolation() == starling.IsolationGVisor
		})
		if _, err := wish(3, starling.IsolationKata); starling.ReasonOf(err) != "NoIsolation" {
			t.Fatalf("deployed for a virtual machine that nobody has: %v", err)
		}
		n.mustPropose(cluster.SetIsolation{Policy: starling.IsolationPolicy{Least: starling.IsolationGVisor}})
		if _, err := wish(4, starling.IsolationProcess); starling.ReasonOf(err) != "IsolationTooWeak" {
			t.Fatalf("less than the least: %v", err)
		}
		if r, err := wish(5, ""); err != nil || r.Version.Isolation() != starling.IsolationGVisor {
			t.Fatalf("a function that does not say: %+v %v", r.Version, err)
		}
	})
}

// A function has a network where its sandbox can have one: a process or a microVM, and not a kernel in user space.
func TestAFunctionWithANetworkNeedsASandboxThatHasOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 0, 3)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1) })
		n := w.nodes[1]
		n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
		w.mu.Lock()
		n.load.Isolations = starling.SetOf(starling.IsolationProcess, starling.IsolationGVisor, starling.IsolationKata)
		w.mu.Unlock()
		wish := func(now int64, i starling.Isolation) error {
			p := put(now)
			p.Config.Isolation, p.Config.Network = i, starling.Internet
			_, err := n.view.Propose(t.Context(), p)
			return err
		}
		w.waitFor(2*time.Second, "the host said that it gives microVMs", func() bool { return wish(1, starling.IsolationKata) == nil })
		if err := wish(2, starling.IsolationProcess); err != nil {
			t.Errorf("a process: %v", err)
		}
		if err := wish(3, starling.IsolationGVisor); starling.ReasonOf(err) != "NoNetwork" {
			t.Errorf("a kernel in user space: %v", err)
		}
	})
}

// A second account needs a word about the shared kernel, or functions that share none.
func TestAccountsShareAKernelOnlyWhenToldSo(t *testing.T) {
	for name, said := range map[string]cluster.SetIsolation{
		"told in words":  {SharedKernel: true},
		"nothing shared": {Policy: starling.IsolationPolicy{Least: starling.IsolationGVisor}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 1, 0, 3)
				defer w.close()
				w.waitFor(2*time.Second, "start", func() bool { return w.served(1) })
				n := w.nodes[1]
				n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
				second := cluster.CreateAccount{Account: starling.Account{ID: "other"}}
				if _, err := n.view.Propose(t.Context(), second); starling.ReasonOf(err) != "SharedKernel" || starling.KindOf(err) != starling.Denied {
					t.Fatalf("nobody said a word: %v", err)
				}
				n.mustPropose(said)
				n.mustPropose(second)
			})
		})
	}
	t.Run("a function of before shares", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, 0, 3)
			defer w.close()
			w.waitFor(2*time.Second, "start", func() bool { return w.served(1) })
			n := w.nodes[1]
			n.mustPropose(cluster.CreateAccount{Account: starling.Account{ID: "acme"}})
			n.mustPropose(put(1))
			n.mustPropose(cluster.SetIsolation{Policy: starling.IsolationPolicy{Least: starling.IsolationGVisor}})
			if _, err := n.view.Propose(t.Context(), cluster.CreateAccount{Account: starling.Account{ID: "other"}}); starling.ReasonOf(err) != "SharedKernel" {
				t.Fatalf("a process of acme would run beside it: %v", err)
			}
		})
	})
}

// While an older node is at work nobody can say that accounts may share a kernel, so it is not asked for. A manager that is
// only dead is no older one.
func TestTheWordIsNotAskedForBesideAnOlderNode(t *testing.T) {
	now := time.Time{}.Add(time.Hour)
	l := NewLedger(1, now, now)
	topology := &cluster.Topology{Map: &partmap.Map{}, Nodes: []starling.Node{{ID: 1, Replica: 1}, {ID: 2, Replica: 2}, {ID: 3}}}
	l.Hello(1, cluster.Hello{Level: cluster.LevelNow}, true, now)
	if l.hearsOlder(topology, cluster.LevelIsolation, now) {
		t.Fatal("a manager that was not heard counts as older")
	}
	l.Hello(3, cluster.Hello{Level: cluster.LevelOrders}, false, now)
	if !l.hearsOlder(topology, cluster.LevelIsolation, now) {
		t.Fatal("a living node of the release before counts as new")
	}
	if l.hearsOlder(topology, cluster.LevelIsolation, now.Add(starling.NodeLease)) {
		t.Fatal("a dead one is waited for")
	}
}

// What living hosts give is the sum; one of an older release gives process, and while one may live that was not heard
// nothing is certain.
func TestOfferedIsWhatLivingHostsGive(t *testing.T) {
	now := time.Time{}.Add(time.Hour)
	l := NewLedger(1, now, now)
	topology := &cluster.Topology{Nodes: []starling.Node{{ID: 1, Roles: starling.RoleManager}, {ID: 2, Roles: starling.RoleHost}, {ID: 3, Roles: starling.RoleHost}}}
	if _, certain := l.offered(topology, now); certain {
		t.Fatal("certain at the beginning of a reign")
	}
	l.Hello(2, cluster.Hello{}, false, now)
	l.Hello(3, cluster.Hello{Level: cluster.LevelNow}, false, now)
	l.Heartbeat(3, cluster.Heartbeat{Load: cluster.Load{Isolations: starling.SetOf(starling.IsolationGVisor)}}, now)
	if got, certain := l.offered(topology, now); !certain || got != starling.SetOf(starling.IsolationProcess, starling.IsolationGVisor) {
		t.Fatalf("%v %v", got, certain)
	}
	now = now.Add(starling.NodeLease)
	l.Heartbeat(3, cluster.Heartbeat{Load: cluster.Load{Isolations: starling.SetOf(starling.IsolationGVisor)}}, now)
	if got, certain := l.offered(topology, now); !certain || got != starling.SetOf(starling.IsolationGVisor) {
		t.Fatalf("after the other died: %v %v", got, certain)
	}
}
