package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"starling/frontend/protocol"
)

// TestE2EGrowth tells what control traffic real nodes at rest cost the manager that leads, and what a move does. Figures
// are told; what is asserted is that moves are told as what changed.
func TestE2EGrowth(t *testing.T) {
	if !*e2e {
		t.Skip("up to 30 nodes: give -args -e2e")
	}
	for _, nodes := range []int{3, 30} {
		for _, parts := range []int{16, 256, 4096} {
			t.Run(fmt.Sprintf("nodes=%d/partitions=%d", nodes, parts), func(t *testing.T) { growReal(t, nodes, parts) })
		}
	}
}

func growReal(t *testing.T, nodes, parts int) {
	kinds := []testKind{{roles: "manager,scheduler,frontend", parts: strconv.Itoa(parts)}}
	for i := 1; i < nodes; i++ {
		kind := testKind{roles: "scheduler,frontend"}
		if i < 3 {
			kind.roles = "manager,scheduler,frontend"
		}
		kinds = append(kinds, kind)
	}
	c := startNodes(t, kinds...)
	c.quiesced(t)
	lead := c.leader(t)
	const rest = 15 * time.Second
	before, cpu, sessions := lead.scrape(t), cpuTime(t, lead), c.metric(t, "starling_view_sessions_total")
	time.Sleep(rest) // a window of measurement
	after := lead.scrape(t)
	used := cpuTime(t, lead) - cpu
	rate := func(name string) float64 { return (after[name] - before[name]) / rest.Seconds() }
	told := func(kind string) string { return `starling_manager_sent_bytes_total{message="` + kind + `"}` }
	t.Logf("at rest a second: %.0f heartbeats, %.0f B; answers %.0f B; deltas %.0f B, whole topologies %.0f B; the leading process uses %.1f %% of a core, %.0f MiB",
		rate("starling_manager_heartbeats_total"), rate("starling_manager_heartbeat_bytes_total"), rate(told("renewal")), rate(told("delta")), rate(told("topology")),
		100*used.Seconds()/rest.Seconds(), after["process_resident_memory_bytes"]/(1<<20))
	t.Logf("a look of the planner takes %.2f ms; sessions of nodes began anew: %v", 1000*rate("starling_manager_plan_seconds_sum")/rate("starling_manager_plan_seconds_count"),
		c.metric(t, "starling_view_sessions_total")-sessions)
	if now := c.leader(t); now != lead {
		t.Logf("%s leads now: the figures are of less than the whole time", now.name)
	}
	if deaths := after["starling_manager_node_deaths_total"]; deaths != before["starling_manager_node_deaths_total"] {
		t.Logf("nodes counted dead meanwhile: %v", deaths-before["starling_manager_node_deaths_total"])
	}
	before = after
	made := c.moves(t, 10)
	after = lead.scrape(t)
	t.Logf("%d moves: deltas %.0f B, whole topologies %.0f B to %d nodes", made, after[told("delta")]-before[told("delta")], after[told("topology")]-before[told("topology")], nodes)
	if made > 0 && c.leader(t) == lead && after[told("delta")] == before[told("delta")] {
		t.Error("moves were not told as what changed")
	}
}

// quiesced waits until partitions stand still: those that one node had alone go to the nodes that joined.
func (c *testCluster) quiesced(t *testing.T) {
	t.Helper()
	began := time.Now()
	last, since := -1.0, began
	for ; time.Since(since) < 3*time.Second; time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > 5*time.Minute {
			t.Fatal("partitions do not come to rest")
		}
		m := c.leader(t).scrape(t)
		sent := m[`starling_manager_sent_messages_total{message="delta"}`] + m[`starling_manager_sent_messages_total{message="topology"}`]
		if sent != last {
			last, since = sent, time.Now()
		}
	}
	t.Logf("at rest %v after all nodes were ready", since.Sub(began).Round(100*time.Millisecond))
}

// moves moves partitions between nodes and returns how many moves were made.
func (c *testCluster) moves(t *testing.T, want int) (made int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range want {
		list, err := c.nodes[0].admin.Partitions(ctx)
		if err != nil {
			t.Fatal(err)
		}
		p := list[(i*7)%len(list)]
		for id := range c.names(t) {
			if id != p.Owner {
				if c.nodes[0].admin.ChangePartition(ctx, p.ID, protocol.PartitionChange{Change: "move", Node: id}) == nil {
					made++
				}
				break
			}
		}
	}
	return made
}

// cpuTime returns how much processor time a node has used.
func cpuTime(t *testing.T, n *testNode) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // the kernel's ticks are 100 a second
}
