package main

import (
	"context"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

// TestE2ERollingRestart stops and starts the three nodes one after another, as an upgrade would, while calls go
// through the other two. Not one of those may fail, not even with an answer that says to try again.
func TestE2ERollingRestart(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(1, 5)
	c := startCluster(t, 3)
	functions := c.deployEchoes(t)
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	load := startLoad(c, functions)
	writes := startWrites(c)
	var took []time.Duration
	for range rounds {
		for _, n := range c.nodes {
			load.avoid(n)
			began := time.Now()
			n.restart(t)
			took = append(took, time.Since(began))
			load.avoid(nil)
			load.reaches(t, load.calls.Load()+30) // the node that is back takes its share before the next one goes
		}
	}
	t.Logf("a node stopped, started and ready again, %d times: %s", len(took), percentiles(took))
	if failed := load.answered(t, int64(rounds)*100); failed != 0 {
		t.Errorf("%d calls through nodes that were not restarting failed", failed)
	}
	writes.kept(t)
}

// TestE2EAllNodesKilled kills every node at once, as a power cut of the whole site would, and starts them again.
func TestE2EAllNodesKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(1, 5)
	c := startCluster(t, 3)
	functions := c.deployEchoes(t)
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	request := c.said(t, functions[0])
	writes := startWrites(c)
	var back []time.Duration
	for range rounds {
		time.Sleep(500 * time.Millisecond) // some writes go before each cut
		families := make([][]testProcess, len(c.nodes))
		for i, n := range c.nodes {
			families[i] = n.family(t)
		}
		since := time.Now()
		for _, n := range c.nodes {
			n.kill(t)
		}
		for i, n := range c.nodes {
			n.noOrphans(t, families[i], since)
		}
		since = time.Now()
		for _, n := range c.nodes {
			n.start(t)
		}
		for _, n := range c.nodes {
			n.ready(t, 20*time.Second)
		}
		ready := time.Since(since)
		d := c.everyFunctionAnswers(t, functions, nil, since)
		back = append(back, d)
		t.Logf("all nodes started over their data: ready after %v, every function answered through every node after %v", ready.Round(time.Millisecond), d.Round(time.Millisecond))
	}
	t.Logf("time until every function answers after a start of all nodes, %d rounds: %s", rounds, percentiles(back))
	writes.kept(t)
	c.remembers(t, functions[0], request)
}

// said makes a call and waits until its lines are in the logs.
func (c *testCluster) said(t *testing.T, f starling.FunctionName) starling.RequestID {
	t.Helper()
	r, err := c.nodes[0].http.Invoke(t.Context(), client.Call{Function: f, Payload: []byte(`{"n":1}`)})
	if err != nil || r.Err() != nil {
		t.Fatal(err, r)
	}
	c.remembers(t, f, r.Request)
	time.Sleep(time.Second) // logs are written behind, within a second: what is younger may go with the power
	return r.Request
}

// remembers fails the test unless the logs soon hold a line of the call.
func (c *testCluster) remembers(t *testing.T, f starling.FunctionName, request starling.RequestID) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, err := range c.nodes[0].http.Logs(t.Context(), f, protocol.LogQuery{All: true, Request: request}) {
			if err == nil {
				return
			}
		}
	}
	t.Errorf("the logs of %s hold nothing of call %s", f, request)
}

// TestE2EFrozenNode stops a node for longer than its lease without killing it: others take its partitions over,
// and when it wakes it neither decides in its old epochs nor leaves a call without an answer.
func TestE2EFrozenNode(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(1, 6)
	c := startCluster(t, 3)
	functions := c.deployEchoes(t)
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	load := startLoad(c, functions)
	var back []time.Duration
	for round := range rounds {
		frozen, other := c.nodes[(round+1)%3], c.nodes[(round+2)%3]
		before := c.partitionsOf(t, other, frozen)
		for until := time.Now().Add(20 * time.Second); len(before) == 0; before = c.partitionsOf(t, other, frozen) {
			if time.Now().After(until) {
				t.Fatalf("%s owns no partition", frozen.name)
			}
			time.Sleep(50 * time.Millisecond)
		}
		since := time.Now()
		frozen.signal(t, syscall.SIGSTOP)
		d := c.everyFunctionAnswers(t, functions, frozen, since)
		back = append(back, d)
		time.Sleep(time.Until(since.Add(3 * time.Second))) // the length of the fault
		if still := c.partitionsOf(t, other, frozen); len(still) != 0 {
			t.Errorf("%s stands still for 3 s and owns %d partitions", frozen.name, len(still))
		}
		frozen.signal(t, syscall.SIGCONT)
		frozen.ready(t, 10*time.Second)
		after := c.partitions(t, frozen)
		for id, epoch := range before {
			if p := after[id]; p.Epoch <= epoch {
				t.Errorf("partition %s is in epoch %d after the take-over, and was in %d", id, p.Epoch, epoch)
			}
		}
		time.Sleep(time.Second) // the next fault comes to a settled cluster
	}
	t.Logf("time until every function answers while a node stands still, %d rounds: %s", rounds, percentiles(back))
	load.answered(t, int64(rounds)*100)
}

// TestE2EBusyMachine gives every core to other programs, four for each, under which no node may be taken for dead and
// no leader may fall.
func TestE2EBusyMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	long := 4 * time.Second
	if *e2e {
		long = 20 * time.Second
	}
	c := startCluster(t, 3)
	functions := c.deployEchoes(t)
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	deaths, reigns := c.metric(t, "starling_manager_node_deaths_total"), c.metric(t, "starling_manager_reigns_total")
	load := startLoad(c, functions)
	stop := burn(t, 4*runtime.NumCPU())
	time.Sleep(long) // the length of the fault
	stop()
	if d := c.metric(t, "starling_manager_node_deaths_total") - deaths; d != 0 {
		t.Errorf("%v nodes were taken for dead while the machine was busy", d)
	}
	if d := c.metric(t, "starling_manager_reigns_total") - reigns; d != 0 {
		t.Errorf("the leader changed %v times while the machine was busy", d)
	}
	load.answered(t, 100)
}

// burn runs n processes that do nothing but compute, until the returned function is called.
func burn(t *testing.T, n int) (stop func()) {
	t.Helper()
	var burners []*exec.Cmd
	stop = func() {
		for _, b := range burners {
			b.Process.Kill()
			b.Wait()
		}
		burners = nil
	}
	t.Cleanup(func() { stop() })
	for range n {
		b := exec.Command("/bin/sh", "-c", "while :; do :; done")
		if err := startChild(b); err != nil {
			t.Fatal(err)
		}
		burners = append(burners, b)
	}
	return stop
}

// signal sends a signal to the node's process.
func (n *testNode) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// partitions asks one node for the map.
func (c *testCluster) partitions(t *testing.T, n *testNode) map[starling.PartitionID]protocol.Partition {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	list, err := n.admin.Partitions(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := map[starling.PartitionID]protocol.Partition{}
	for _, p := range list {
		out[p.ID] = p
	}
	return out
}

// partitionsOf returns the epochs of the partitions of one node, as another one knows them.
func (c *testCluster) partitionsOf(t *testing.T, asked, owner *testNode) map[starling.PartitionID]starling.Epoch {
	t.Helper()
	nodes, err := asked.admin.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[starling.PartitionID]starling.Epoch{}
	for _, n := range nodes {
		if n.Name != owner.name {
			continue
		}
		for id, p := range c.partitions(t, asked) {
			if p.Owner == n.ID {
				out[id] = p.Epoch
			}
		}
	}
	return out
}
