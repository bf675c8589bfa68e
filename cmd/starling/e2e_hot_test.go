package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

// The hot function: as many calls at once as hotInstances instances serve, each asleep for hotSleep.
const (
	hotInstances = 2
	hotSlots     = 30
	hotSleep     = 10 * time.Millisecond
	hotCallers   = 40 // at each frontend: more than the limit in all
	hotRest      = 2 * starling.LeaseIdleReturn
)

// A span is from when to when one call ran in the function, in Unix nanoseconds by the machine's clock.
type span [2]int64

// A hotLoad calls one function through every frontend in bursts. Between two bursts frontends give all slots back, so that
// each burst is decided by schedulers anew.
type hotLoad struct {
	end context.CancelFunc
	wg  sync.WaitGroup

	mu    sync.Mutex // guards what follows
	spans []span
	errs  map[string]int
}

func startHotLoad(c *testCluster, f starling.FunctionName) *hotLoad {
	ctx, end := context.WithCancel(context.Background())
	l := &hotLoad{end: end, errs: map[string]int{}}
	for _, n := range c.nodes {
		h := client.NewHTTP(n.url, c.key, client.WithHTTPClient(&http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: hotCallers}}))
		l.wg.Go(func() {
			for ctx.Err() == nil {
				var burst sync.WaitGroup
				for range hotCallers {
					burst.Go(func() { l.call(h, f) })
				}
				burst.Wait()
				time.Sleep(hotRest)
			}
		})
	}
	return l
}

func (l *hotLoad) call(h *client.HTTP, f starling.FunctionName) {
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	var s span
	r, err := h.Invoke(ctx, client.Call{Function: f, Payload: fmt.Append(nil, hotSleep.Milliseconds())})
	if err == nil {
		err = r.Err()
	}
	if err == nil {
		err = json.Unmarshal(r.Payload, &s)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.errs[err.Error()]++
		return
	}
	l.spans = append(l.spans, s)
}

// stop ends the load and returns what ran and what failed.
func (l *hotLoad) stop() ([]span, map[string]int) {
	l.end()
	l.wg.Wait()
	return l.spans, l.errs
}

// atOnce returns how many of the spans had one instant in common at most. A call that ends in the nanosecond in which another
// one begins is not beside it.
func atOnce(spans []span) (most int) {
	type edge struct {
		at   int64
		step int
	}
	var edges []edge
	for _, s := range spans {
		edges = append(edges, edge{s[0], 1}, edge{s[1], -1})
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.step, b.step)) })
	now := 0
	for _, e := range edges {
		now += e.step
		most = max(most, now)
	}
	return most
}

// TestE2EHotFunction calls one function so often that it is more than one node's share of the cluster's decisions. The
// leader must cut its span by itself and give parts to all other nodes while calls go on, where they stay: none fails, and
// never do more run at once than the function's limit, counted by the function.
func TestE2EHotFunction(t *testing.T) {
	if !*e2e {
		t.Skip("takes up to a minute: run with -args -e2e")
	}
	c := startCluster(t, 3)
	f := starling.FunctionRef{Account: "default", Name: "hot"}
	c.deployHot(t, f.Name)
	c.everyFunctionAnswers(t, []starling.FunctionName{f.Name}, nil, time.Now())
	c.settled(t)
	load, began := startHotLoad(c, f.Name), time.Now()
	var owners []starling.NodeID
	for len(owners) < len(c.nodes) {
		if time.Since(began) > 60*time.Second {
			plan, err := c.nodes[0].admin.Plan(t.Context())
			t.Errorf("after %v of load the function is still decided on %v alone; plan %+v, %v", time.Since(began), owners, plan, err)
			break
		}
		time.Sleep(50 * time.Millisecond)
		owners = c.owners(t, f)
	}
	spread := time.Since(began)
	time.Sleep(5 * time.Second) // for what is left to even out
	rest := c.parts(t, f)
	before, from := c.acquires(t), time.Now()
	time.Sleep(20 * time.Second) // whoever thrashes shows it here
	decided, window := c.acquires(t), time.Since(from).Seconds()
	total := 0.0
	for i := range decided {
		decided[i] -= before[i]
		total += decided[i]
	}
	for i, n := range decided {
		t.Logf("%s decided %.0f acquires a second", c.nodes[i].name, n/window)
		if n < total/5 {
			t.Errorf("%s decided %.0f of %.0f acquires", c.nodes[i].name, n, total)
		}
	}
	parts, owners := c.parts(t, f), c.owners(t, f)
	if len(owners) < len(c.nodes) || !slices.EqualFunc(parts, rest, func(a, b protocol.Partition) bool { return a.ID == b.ID && a.Epoch == b.Epoch }) {
		t.Errorf("the function's partitions did not stay on all nodes: %+v, 20 s later %+v", rest, parts)
	}
	took := time.Since(began)
	spans, errs := load.stop()
	t.Logf("on all nodes after %v; at the end %d partitions on %v; %d calls, %.0f/s, at most %d at once of %d, failed %v", spread.Round(10*time.Millisecond),
		len(parts), owners, len(spans), float64(len(spans))/took.Seconds(), atOnce(spans), hotInstances*hotSlots, errs)
	c.tell(t)
	if len(errs) > 0 {
		t.Errorf("calls failed: %v", errs)
	}
	if n := atOnce(spans); n > hotInstances*hotSlots {
		t.Errorf("%d calls ran at once, the limit is %d", n, hotInstances*hotSlots)
	}
}

func (c *testCluster) deployHot(t *testing.T, name starling.FunctionName) {
	t.Helper()
	code, err := c.nodes[0].http.PutCode(t.Context(), bytes.NewReader(zipOf(t, map[string]string{"bootstrap": string(buildBootstraps(t, "spanbootstrap")["spanbootstrap"])})), -1)
	if err != nil {
		t.Fatal(err)
	}
	config := starling.Config{Runtime: starling.Provided, TimeoutMS: 10_000, MemoryMiB: 256, Concurrency: hotSlots, InstanceMax: hotInstances}
	if _, err := c.nodes[0].http.CreateFunction(t.Context(), protocol.FunctionSpec{Name: name, Config: &config, Code: code.Hash}); err != nil {
		t.Fatal(err)
	}
}

// acquires returns how many acquires each node has decided since it began.
func (c *testCluster) acquires(t *testing.T) (of []float64) {
	t.Helper()
	for _, n := range c.nodes {
		of = append(of, n.sum(t, "starling_partition_acquires_total"))
	}
	return of
}

// parts returns the partitions that hold keys of the function.
func (c *testCluster) parts(t *testing.T, f starling.FunctionRef) (in []protocol.Partition) {
	t.Helper()
	all, err := c.nodes[0].admin.Partitions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lo, hi := fmt.Sprintf("%016x", uint64(starling.KeyOf(f, 0))), fmt.Sprintf("%016x", uint64(starling.KeyOf(f, 1<<32-1)))
	for _, p := range all {
		if p.Lo <= hi && (p.Hi > lo || strings.Trim(p.Hi, "0") == "") {
			in = append(in, p)
		}
	}
	return in
}

// owners returns the nodes that decide for the function.
func (c *testCluster) owners(t *testing.T, f starling.FunctionRef) (nodes []starling.NodeID) {
	t.Helper()
	for _, p := range c.parts(t, f) {
		if p.Owner != 0 {
			nodes = append(nodes, p.Owner)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// tell writes into the log of the test what happened to the partitions.
func (c *testCluster) tell(t *testing.T) {
	t.Helper()
	h, err := c.nodes[0].admin.PartitionHistory(t.Context(), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range h.Events {
		t.Logf("%s %-8s %s epoch %d %s: %s", e.Time.Format("05.000"), e.What, e.Partition, e.Epoch, e.Owner, e.Reason)
	}
}
