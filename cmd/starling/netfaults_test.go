package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/internal/judge"
)

var (
	netSeed    = flag.Uint64("seed", 1, "of the faults that TestE2ENetFaults injects")
	netShort   = flag.Bool("netshort", false, "a short run of TestE2ENetFaults")
	netMinutes = flag.Float64("minutes", 1, "how long TestE2ENetFaults injects faults, with -e2e")
	netEvery   = flag.Bool("every", false, "TestE2ENetFaults injects every fault, not some drawn by its seed")
	netOnly    = flag.String("only", "", "TestE2ENetFaults injects the faults whose name holds this, and no others")
)

// A netFault is one way in which nodes and networks fail.
type netFault struct {
	number string // in the table of bench/results/faults.md
	name   string
	short  bool // also in the run of "make test"
	inject func(*injector)
}

// netFaults are those of the table in bench/results/faults.md. They come one after another; loss, delay, reordering and
// changes of the map go on beside them.
var netFaults = []netFault{
	{"1", "kill the leader", true, func(j *injector) { j.crash(j.leader()) }},
	{"2", "kill all nodes", false, (*injector).crashAll},
	{"3", "stop the leader", true, func(j *injector) { j.freeze(j.leader()) }},
	{"3", "stop any node", false, func(j *injector) { j.freeze(j.any()) }},
	{"4", "kill an owner", false, func(j *injector) { j.crash(j.owner()) }},
	{"5", "kill a host", false, func(j *injector) { j.crash(j.any()) }},
	{"6", "crash at a point", false, (*injector).crashAtPoints},
	{"7", "cut one node off", true, func(j *injector) { n := j.any(); j.cut(j.length(4), j.from(n), j.to(n)) }},
	{"8", "one node is not heard", true, func(j *injector) { j.cut(j.length(4), j.from(j.any())) }},
	{"8", "one node does not hear", false, func(j *injector) { j.cut(j.length(4), j.to(j.any())) }},
	{"9", "cut one pair", true, func(j *injector) { a, b := j.pair(); j.cut(j.length(4), []way{{a, b}, {b, a}}) }},
	{"10", "half-open pair", false, func(j *injector) { a, b := j.pair(); j.cut(6*time.Second, []way{{a, b}}) }},
	{"11", "random loss", false, (*injector).lose},
	{"12", "1 Mbit/s", false, (*injector).choke},
	{"20", "lost data folder", false, (*injector).forget},
	{"21", "wrong wall clock", true, (*injector).shiftClock},
	{"24", "restart all in turn", false, (*injector).roll},
}

// A way is one direction of a pair of nodes.
type way struct{ from, to *netNode }

// An injector injects faults one after another, on one goroutine.
type injector struct {
	t       *testing.T
	c       *netCluster
	rng     *rand.Rand
	counts  map[string]int
	hits    map[string]int // packets that a fault dropped, by its name
	now     string         // the name of the fault that is being injected
	short   bool
	forgets int
	points  pointsMet
	weather int    // how many faults had a weather of their own beside them
	family  int    // processes under nodes that were killed
	orphans int    // of those, that lived on
	last    string // why answers said no
}

// TestE2ENetFaults runs three nodes in network namespaces under faults drawn from a seed, while clients call functions,
// write to the catalog and move, split and merge partitions. What the nodes wrote down must be a history that the rules
// allow: owners never overlap, grants and control operations are linearizable, no stale lease is accepted.
func TestE2ENetFaults(t *testing.T) {
	if !*e2e && !*netShort {
		t.Skip("minutes of faults: give -args -e2e, or -args -netshort for half a minute")
	}
	c := startNetCluster(t, *netSeed)
	functions := c.deploy(t, 6)
	j := &injector{t: t, c: c, rng: rand.New(rand.NewPCG(*netSeed, 1)), counts: map[string]int{}, hits: map[string]int{}, short: !*e2e}
	some := j.choose()
	for deadline := time.Now().Add(time.Minute); !j.answers(functions[0]); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no function answers before the first fault: %s", j.last)
		}
	}
	load := startNetLoad(c, functions, *netSeed)
	j.run(some)
	began := time.Now()
	for _, n := range c.nodes[1:] {
		c.ready(t, n, 30*time.Second)
	}
	for !j.answers(functions...) {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("not every function answers through every node 30 s after the last fault: %s", j.last)
		}
		time.Sleep(50 * time.Millisecond)
	}
	healed := time.Since(began)
	load.stop()
	for _, n := range c.nodes[1:] {
		n.end(t, syscall.SIGTERM)
	}
	j.report(some)
	t.Logf("fault 22 moves under load, done %d; fault 23 splits %d, merges %d", load.changes["move done"], load.changes["split done"], load.changes["merge done"])
	t.Logf("every function answers through every node %v after the last fault; packets relayed %d, of them lost, doubled or spoiled by seed %d",
		healed.Round(time.Millisecond), c.relay.passed.Load(), c.relay.spoiled.Load())
	verdict(t, load, c.lives(t))
}

// verdict fails the test for everything that the rules do not allow.
func verdict(t *testing.T, load *netLoad, lives []judge.Life) {
	t.Helper()
	t.Logf("changes %v; answers of functions %v", load.changes, load.answers)
	tenures := judge.Tenures(lives)
	overlaps, outside := judge.Overlaps(tenures), judge.Outside(lives, tenures)
	for _, o := range first(overlaps) {
		t.Errorf("two owners: %v", o)
	}
	for _, r := range first(outside) {
		t.Errorf("a grant outside every tenure of its owner: %+v", r)
	}
	accepted := judge.Accepted(lives, int64(starling.LeaseTTL))
	for _, b := range first(accepted.Breaches) {
		t.Errorf("stale or double: %v", b)
	}
	for _, w := range first(append(judge.Maps(load.sights), load.wrong...)) {
		t.Errorf("map: %s", w)
	}
	grants := judge.Grants(lives, load.sights, 20*time.Second)
	control := judge.Control(load.calls, 20*time.Second)
	t.Logf("lives %d, tenures %d, overlaps %d, grants outside %d; leases accepted %d, of them %d in use over a recovery, breaches %d; entries of maps seen %d",
		len(lives), len(tenures), len(overlaps), len(outside), accepted.Entered, accepted.Outlived, len(accepted.Breaches), len(load.sights))
	t.Logf("grants and map changes: %d operations on %d keys, illegal %d, undecided %d; control: %d operations on %d names, illegal %d, undecided %d",
		grants.Operations, grants.Keys, len(grants.Illegal), len(grants.Unknown), control.Operations, control.Keys, len(control.Illegal), len(control.Unknown))
	if !grants.OK() {
		t.Errorf("grants are not linearizable: %+v", grants)
		for _, key := range first(grants.Illegal) {
			t.Logf("key %s\n%s", key, judge.TellKey(lives, load.sights, key))
		}
	}
	for _, name := range first(control.Illegal) {
		t.Errorf("control operations are not linearizable:\n%s", judge.Tell(load.calls, name))
	}
	if len(control.Unknown) > 0 {
		t.Errorf("control operations could not be judged in time: %v", control.Unknown)
	}
	if accepted.Entered == 0 || grants.Operations == 0 || len(tenures) == 0 || len(load.sights) == 0 || load.changes["move done"] == 0 {
		t.Error("there was nothing to judge: the load did not run")
	}
}

// first returns at most five: one breach often makes many.
func first[T any](all []T) []T { return all[:min(len(all), 5)] }

// choose draws the faults of this run: some of them, so that seeds differ in kind. At least four.
func (j *injector) choose() []netFault {
	some := slices.Clone(netFaults)
	some = slices.DeleteFunc(some, func(f netFault) bool { return !strings.Contains(f.name, *netOnly) })
	if j.short {
		some = slices.DeleteFunc(some, func(f netFault) bool { return !f.short })
	}
	j.rng.Shuffle(len(some), func(a, b int) { some[a], some[b] = some[b], some[a] })
	if j.short || *netEvery || *netOnly != "" {
		return some
	}
	return some[:4+j.rng.IntN(len(some)-3)]
}

// run injects faults in turn until the time is over, each at least once.
func (j *injector) run(some []netFault) {
	end := time.Now().Add(time.Duration(*netMinutes * float64(time.Minute)))
	if j.short {
		end = time.Time{}
	}
	for i := 0; i < len(some) || time.Now().Before(end); i++ {
		f := some[i%len(some)]
		w := &weather{}
		j.now = f.name
		if j.rng.IntN(2) == 0 {
			w = &weather{delay: time.Duration(j.rng.IntN(20)) * time.Millisecond, jitter: time.Duration(1+j.rng.IntN(20)) * time.Millisecond,
				loss: 0.01 * float64(j.rng.IntN(3)), twice: 0.02, corrupt: 0.002}
			j.weather++
		}
		j.c.relay.weather.Store(w)
		at := time.Now()
		f.inject(j)
		j.counts[f.name]++
		j.t.Logf("%v %s %+v", time.Since(at).Round(time.Millisecond), f.name, *w)
		j.wait(j.length(1.5))
	}
	j.c.relay.weather.Store(&weather{})
}

func (j *injector) wait(d time.Duration) { time.Sleep(d) } // the length of a fault, or of the calm after it

// length draws a duration from 0.5 s to most seconds; short runs have short faults.
func (j *injector) length(most float64) time.Duration {
	if j.short {
		most = min(most, 1.5)
	}
	return time.Duration((0.5 + j.rng.Float64()*(most-0.5)) * float64(time.Second))
}

func (j *injector) any() *netNode { return j.c.nodes[1+j.rng.IntN(3)] }

func (j *injector) leader() *netNode {
	if l := j.c.leader(); l != nil {
		return l
	}
	return j.any()
}

func (j *injector) pair() (a, b *netNode) {
	k := j.rng.IntN(3)
	return j.c.nodes[1+k], j.c.nodes[1+(k+1+j.rng.IntN(2))%3]
}

func (j *injector) from(n *netNode) (ways []way) {
	for _, o := range j.c.nodes[1:] {
		if o != n {
			ways = append(ways, way{n, o})
		}
	}
	return ways
}

func (j *injector) to(n *netNode) (ways []way) {
	for _, w := range j.from(n) {
		ways = append(ways, way{w.to, w.from})
	}
	return ways
}

// report tells what was injected, by the numbers of the plan, and fails the test for a fault that was none.
func (j *injector) report(some []netFault) {
	for _, f := range some {
		what := ""
		if hits, cuts := j.hits[f.name]; cuts {
			what = fmt.Sprintf(", packets dropped %d", hits)
			if hits == 0 && f.number != "11" && f.number != "12" {
				j.t.Errorf("%s was injected and dropped no packet", f.name)
			}
		}
		j.t.Logf("fault %-2s %-24s %d%s", f.number, f.name, j.counts[f.name], what)
		if j.counts[f.name] == 0 {
			j.t.Errorf("%s was not injected", f.name)
		}
	}
	j.t.Logf("fault 11 delay, reordering, loss, doubles and spoiled packets beside %d faults", j.weather)
	j.t.Logf("processes under nodes that were killed: %d, of them left alive %d", j.family, j.orphans)
	if j.orphans > 0 {
		j.t.Errorf("%d processes outlived their node", j.orphans)
	}
	j.points.report(j.t)
}

// owner returns the node that owns the most partitions, as some node sees it.
func (j *injector) owner() *netNode {
	for _, n := range j.c.nodes[1:] {
		ctx, cancel := context.WithTimeout(j.t.Context(), time.Second)
		list, err := n.admin.Partitions(ctx)
		nodes, err2 := n.admin.Nodes(ctx)
		cancel()
		if err != nil || err2 != nil {
			continue
		}
		owned := map[starling.NodeID]int{}
		for _, p := range list {
			owned[p.Owner]++
		}
		best := j.any()
		most := 0
		for _, known := range nodes {
			for _, m := range j.c.nodes[1:] {
				if m.name == known.Name && owned[known.ID] > most {
					best, most = m, owned[known.ID]
				}
			}
		}
		return best
	}
	return j.any()
}
