package main

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// exposition is what a node says of itself in numbers; "" while it is being killed or started.
func (n *testNode) exposition() string {
	res, err := http.Get(n.health + "/metrics")
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return ""
	}
	return string(text)
}

// scrape returns a node's numbers by their names with labels; none while it is being killed or started.
func (n *testNode) scrape(t *testing.T) map[string]float64 {
	t.Helper()
	out := map[string]float64{}
	for line := range strings.Lines(n.exposition()) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("%s: %q: %v", n.name, line, err)
		}
		out[line[:i]] = v
	}
	return out
}

// metric returns one number of a node by its name with labels; 0 while there is none.
func (n *testNode) metric(t *testing.T, name string) float64 {
	t.Helper()
	return n.scrape(t)[name]
}

// sum adds a metric of a node over all labels.
func (n *testNode) sum(t *testing.T, name string) (sum float64) {
	t.Helper()
	for of, v := range n.scrape(t) {
		if of == name || strings.HasPrefix(of, name+"{") {
			sum += v
		}
	}
	return sum
}

// shows waits until a number of a node is what it should be.
func (n *testNode) shows(t *testing.T, name string, want float64) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if n.metric(t, name) == want {
			return
		}
	}
	t.Fatalf("%s: %s is %v, not %v", n.name, name, n.metric(t, name), want)
}

// metric adds a number of all nodes.
func (c *testCluster) metric(t *testing.T, name string) (total float64) {
	t.Helper()
	for _, n := range c.nodes {
		total += n.metric(t, name)
	}
	return total
}

// leader waits for a manager that leads and returns its node.
func (c *testCluster) leader(t *testing.T) *testNode {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, n := range c.nodes {
			if n.does("manager") && n.metric(t, "starling_manager_leads") == 1 {
				return n
			}
		}
	}
	t.Fatal("no manager leads")
	return nil
}
