package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// TestE2EPartitionsChange moves, splits and merges the partitions of functions that are called all the time. Not one call
// may fail, each runs once, and none waits for long.
func TestE2EPartitionsChange(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds, calm, pause := 5, 2*time.Second, 5*time.Millisecond
	if *e2e {
		rounds, calm, pause = 100, 20*time.Second, time.Millisecond // about half of what two cores can do
	}
	c := startCluster(t, 3)
	functions := c.deployEchoes(t)
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	c.settled(t)
	ran := c.metric(t, `starling_host_calls_total{end="succeeded"}`)
	load := startLoadEvery(c, functions, pause)
	time.Sleep(time.Second)
	load.latencies()
	time.Sleep(calm)
	before := load.latencies()
	took := map[string][]time.Duration{}
	for round := range rounds {
		f := starling.FunctionRef{Account: "default", Name: functions[round%len(functions)]}
		c.change(t, took, f, protocol.PartitionChange{Change: "move", Node: c.other(t, f)})
		c.change(t, took, f, protocol.PartitionChange{Change: "split", Function: f})
		low, high := c.partitionOf(t, f, 0), c.partitionOf(t, f, 1<<32-1)
		if low.ID == high.ID {
			t.Fatalf("%s is in %s alone after a split inside its span", f, low.ID)
		}
		c.change(t, took, f, protocol.PartitionChange{Change: "merge", With: high.ID})
	}
	during := load.latencies()
	failed := load.answered(t, 100)
	calls := load.calls.Load()
	for _, kind := range []string{"move", "split", "merge"} {
		t.Logf("%d times %s, from the order to the answer: %s", len(took[kind]), kind, percentiles(took[kind]))
		t.Logf("  stood still: %s", c.pauses(t, kind))
	}
	t.Logf("calls without changes: %s; between changes: %s", percentiles(before), percentiles(during))
	if failed != 0 {
		t.Errorf("%d calls failed", failed)
	}
	if n := c.metric(t, `starling_host_calls_total{end="succeeded"}`) - ran; int64(n) != calls {
		t.Errorf("%d calls were made and %v ran", calls, n)
	}
}

// change asks for one change of the partition of f, again when something else is under way.
func (c *testCluster) change(t *testing.T, took map[string][]time.Duration, f starling.FunctionRef, change protocol.PartitionChange) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		began := time.Now()
		err := c.nodes[0].admin.ChangePartition(t.Context(), c.partitionOf(t, f, 0).ID, change)
		if err == nil {
			took[change.Change] = append(took[change.Change], time.Since(began))
			return
		}
		if k := starling.KindOf(err); k != starling.Moved && k != starling.Conflict && k != starling.Unavailable || time.Now().After(end) {
			t.Fatalf("%s: %v", change.Change, err)
		}
	}
}

// partitionOf returns where a key of the function's span lies.
func (c *testCluster) partitionOf(t *testing.T, f starling.FunctionRef, spread uint32) protocol.Partition {
	t.Helper()
	ps, err := c.nodes[0].admin.Partitions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k := fmt.Sprintf("%016x", uint64(starling.KeyOf(f, spread)))
	for _, p := range ps {
		if p.Lo <= k && (k < p.Hi || strings.Trim(p.Hi, "0") == "") {
			return p
		}
	}
	t.Fatalf("no partition has the key %s", k)
	return protocol.Partition{}
}

// other returns a node that does not own the function's partition.
func (c *testCluster) other(t *testing.T, f starling.FunctionRef) starling.NodeID {
	t.Helper()
	return c.partitionOf(t, f, 0).Owner%starling.NodeID(len(c.nodes)) + 1
}

// settled waits until every partition has an owner and the leader orders nothing of its own.
func (c *testCluster) settled(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		p, err := c.nodes[0].admin.Plan(t.Context())
		if err == nil && len(p.Changes) == 0 && len(p.InFlight) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the leader is still at work: %+v, %v", p, err)
		}
	}
}

var pauseLine = regexp.MustCompile(`le="([^"]+)"`)

// pauses says how long partitions stood still, from the buckets of all nodes.
func (c *testCluster) pauses(t *testing.T, kind string) string {
	t.Helper()
	var out []string
	seen := map[string]bool{}
	for _, line := range strings.Split(c.nodes[0].exposition(), "\n") {
		if !strings.HasPrefix(line, "starling_partition_change_pause_seconds_bucket{change=\""+kind) {
			continue
		}
		le := pauseLine.FindStringSubmatch(line)[1]
		if !seen[le] {
			seen[le] = true
			out = append(out, fmt.Sprintf("%v within %s s", c.metric(t, fmt.Sprintf("starling_partition_change_pause_seconds_bucket{change=%q,le=%q}", kind, le)), le))
		}
	}
	return strings.Join(out, ", ")
}
