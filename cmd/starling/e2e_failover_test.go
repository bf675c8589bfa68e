package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// settle is the pause after a node is back, so that the next fault comes to a cluster at rest.
const settle = time.Second

// TestE2EOwnerKilled kills the node that owns partitions and does nothing else, so that neither the leader nor a
// sandbox dies with it. Functions of its partitions that nobody has called lately need the next owner to answer.
func TestE2EOwnerKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(1, 50)
	c := startNodes(t, testKind{roles: "manager,frontend"}, testKind{roles: "scheduler"}, testKind{roles: "scheduler"}, testKind{roles: "host,frontend"})
	load := startLoad(c, c.deployEchoes(t))
	resting := c.deployResting(t, 8)
	owners := c.nodes[1:3]
	var back []time.Duration
	for round := range rounds {
		c.everyFunctionAnswers(t, resting, nil, time.Now())
		// At any moment of the beat of heartbeats, and after the idle leases went back.
		time.Sleep(settle + time.Duration(round)*7*time.Millisecond)
		victim, theirs := c.ownerOf(t, owners, resting, round)
		since := time.Now()
		t.Logf("%s: %s is killed", since.Format("15:04:05.000"), victim.name)
		victim.kill(t)
		d := c.everyFunctionAnswers(t, theirs, victim, since)
		back = append(back, d)
		t.Logf("round %d: %s killed, which owned %d of the functions: answered again after %v", round+1, victim.name, len(theirs), d.Round(time.Millisecond))
		victim.start(t)
		victim.ready(t, 20*time.Second)
		c.shared(t, owners)
	}
	t.Logf("time until functions are served again after their owner was killed, %d rounds: %s", rounds, percentiles(back))
	load.answered(t, int64(rounds)*100)
}

// deployResting deploys functions that the load does not call.
func (c *testCluster) deployResting(t *testing.T, n int) (names []starling.FunctionName) {
	t.Helper()
	zip, err := os.ReadFile(filepath.Join(repo(t), "bin/functions/echo-python.zip"))
	if err != nil {
		t.Fatalf("%v: run \"make functions\" first", err)
	}
	code, err := c.nodes[0].http.PutCode(t.Context(), bytes.NewReader(zip), int64(len(zip)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := starling.FunctionName(fmt.Sprintf("rest%d", i))
		config := starling.Config{Runtime: starling.Python311, TimeoutMS: 10_000}
		if _, err := c.nodes[0].http.CreateFunction(t.Context(), protocol.FunctionSpec{Name: name, Config: &config, Code: code.Hash}); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// ownerOf returns the owner, of these, of one of the functions, and those of the functions that are its own.
func (c *testCluster) ownerOf(t *testing.T, owners []*testNode, functions []starling.FunctionName, round int) (owner *testNode, theirs []starling.FunctionName) {
	t.Helper()
	id, err := c.nodes[0].http.Whoami(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	of := map[string][]starling.FunctionName{}
	nodes, list := c.names(t), c.partitions(t, c.nodes[0])
	for _, f := range functions {
		key := starling.KeyOf(starling.FunctionRef{Account: id.Account, Name: f}, 0)
		for _, p := range list {
			if keysOf(t, p).Contains(key) {
				of[nodes[p.Owner]] = append(of[nodes[p.Owner]], f)
			}
		}
	}
	for i := range owners {
		if n := owners[(round+i)%len(owners)]; len(of[n.name]) > 0 {
			return n, of[n.name]
		}
	}
	t.Fatalf("nobody owns any of the functions: %v", of)
	return nil, nil
}

func keysOf(t *testing.T, p protocol.Partition) starling.Range {
	t.Helper()
	lo, err := strconv.ParseUint(p.Lo, 16, 64)
	hi, err2 := strconv.ParseUint(p.Hi, 16, 64)
	if err != nil || err2 != nil {
		t.Fatalf("the partition %s has the keys %q to %q", p.ID, p.Lo, p.Hi)
	}
	return starling.Range{Lo: starling.Key64(lo), Hi: starling.Key64(hi)}
}

// names returns the nodes' names by their ids.
func (c *testCluster) names(t *testing.T) map[starling.NodeID]string {
	t.Helper()
	nodes, err := c.nodes[0].admin.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := map[starling.NodeID]string{}
	for _, n := range nodes {
		names[n.ID] = n.Name
	}
	return names
}

// shared waits until each of the nodes owns partitions.
func (c *testCluster) shared(t *testing.T, owners []*testNode) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		each := map[string]int{}
		names := c.names(t)
		for _, p := range c.partitions(t, c.nodes[0]) {
			each[names[p.Owner]]++
		}
		ok := true
		for _, n := range owners {
			ok = ok && each[n.name] > 0
		}
		if ok {
			return
		}
	}
	t.Fatal("the partitions were not shared out within 20 s")
}

// TestE2ELeaderKilled kills the manager that leads and measures when the first write is acknowledged again, asked for
// through the others from the moment of the death. No acknowledged write may be lost.
func TestE2ELeaderKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(1, 50)
	managers := testKind{roles: "manager,frontend"}
	c := startNodes(t, managers, managers, managers, testKind{roles: "scheduler"})
	w := &testWrites{cluster: c, end: func() {}, done: make(chan struct{})}
	close(w.done)
	var back []time.Duration
	for round := range rounds {
		time.Sleep(settle + time.Duration(round)*7*time.Millisecond)
		victim := c.leader(t)
		since := time.Now()
		t.Logf("%s: %s is killed", since.Format("15:04:05.000"), victim.name)
		victim.kill(t)
		id := starling.AccountID(fmt.Sprintf("r%d", round))
		d := c.firstWrite(t, victim, id, since)
		w.acked = append(w.acked, id)
		back = append(back, d)
		t.Logf("round %d: %s killed, which led: a write was acknowledged after %v", round+1, victim.name, d.Round(time.Millisecond))
		victim.start(t)
		victim.ready(t, 20*time.Second)
	}
	t.Logf("time until a write is acknowledged after the leading manager was killed, %d rounds: %s", rounds, percentiles(back))
	w.kept(t)
}

// firstWrite makes one account through every living frontend at once, each trying until it is there, and returns when
// the first was told so.
func (c *testCluster) firstWrite(t *testing.T, dead *testNode, id starling.AccountID, since time.Time) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	first := make(chan time.Duration, len(c.nodes))
	var wg sync.WaitGroup
	for _, n := range c.frontends() {
		if n == dead {
			continue
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := n.admin.CreateAccount(ctx, protocol.AccountSpec{ID: id})
				if err == nil {
					first <- time.Since(since)
					return
				}
				if starling.KindOf(err) == starling.Conflict {
					return // the other one was first
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	select {
	case d := <-first:
		return d
	default:
		t.Fatal("no write was acknowledged within 20 s")
		return 0
	}
}

// TestE2EHostKilled kills a node that runs instances and nothing else. The cluster must tell that it is dead and have
// replaced its instances, and its sandboxes must be gone.
func TestE2EHostKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(1, 20)
	c := startNodes(t, testKind{roles: "manager,frontend,scheduler"}, testKind{roles: "host"}, testKind{roles: "host"})
	functions := c.deployEchoes(t)
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	load := startLoad(c, functions)
	var told, back []time.Duration
	for round := range rounds {
		time.Sleep(settle + time.Duration(round)*7*time.Millisecond)
		victim := c.nodes[1+round%2]
		family := victim.family(t)
		since := time.Now()
		t.Logf("%s: %s is killed", since.Format("15:04:05.000"), victim.name)
		victim.kill(t)
		known := make(chan time.Duration, 1)
		go func() { known <- c.declaredDead(t, victim, since) }()
		d := c.everyFunctionAnswers(t, functions, victim, since)
		back = append(back, d)
		told = append(told, <-known)
		victim.noOrphans(t, family, since)
		if limit := 2 * time.Second; *e2e && (told[round] > limit || d > limit) {
			t.Errorf("round %d: known after %v and replaced after %v, the limit is %v", round+1, told[round], d, limit)
		}
		t.Logf("round %d: %s killed, every function answered after %v, known to be dead after %v", round+1, victim.name, d.Round(time.Millisecond), told[round].Round(time.Millisecond))
		victim.start(t)
		victim.ready(t, 20*time.Second)
	}
	t.Logf("time until a killed host is known to be dead, %d rounds: %s", rounds, percentiles(told))
	t.Logf("time until every function answers after a host was killed, %d rounds: %s", rounds, percentiles(back))
	load.answered(t, int64(rounds)*100)
}

// declaredDead waits until the leader counts the node as dead, at most ten seconds.
func (c *testCluster) declaredDead(t *testing.T, n *testNode, since time.Time) time.Duration {
	for ; time.Since(since) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		nodes, err := c.nodes[0].admin.Nodes(t.Context())
		if err != nil {
			t.Error(err)
			break
		}
		for _, m := range nodes {
			if m.Name == n.name && m.State != "alive" {
				return time.Since(since)
			}
		}
	}
	t.Errorf("%s was killed and is not known to be dead", n.name)
	return time.Since(since)
}
