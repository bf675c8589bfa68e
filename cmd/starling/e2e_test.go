package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

var (
	e2e     = flag.Bool("e2e", false, "run the long rounds of the end-to-end tests")
	fixed   = flag.Int("rounds", 0, "rounds of the end-to-end tests that count them; 0 for each one's own")
	keepLog = flag.String("nodelogs", "", "keep the nodes' logs of the end-to-end tests in this folder")
)

// TestE2ENodesKilledInTurn runs three nodes as processes, keeps calling every function and writing to the
// catalog, and kills one node after another with SIGKILL. Every call must get an answer from a node that
// lives, and every acknowledged write must be there at the end.
func TestE2ENodesKilledInTurn(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take half a minute")
	}
	rounds := roundsOf(3, 20)
	c := startCluster(t, 3)
	defer c.stop()
	functions := c.deployEchoes(t)
	load := startLoad(c, functions)
	writes := startWrites(c)

	var back []time.Duration
	for round := range rounds {
		victim := c.nodes[round%len(c.nodes)]
		load.avoid(victim)
		family := victim.family(t)
		since := time.Now()
		victim.kill(t)
		d := c.everyFunctionAnswers(t, functions, victim, since)
		back = append(back, d)
		victim.noOrphans(t, family, since)
		t.Logf("round %d: %s killed, every function answered again after %v", round+1, victim.name, d.Round(time.Millisecond))
		victim.start(t)
		victim.ready(t, 20*time.Second)
		load.avoid(nil)
		time.Sleep(time.Second) // the next death comes to a settled cluster
	}
	t.Logf("time until every function answers again, %d rounds: %s", rounds, percentiles(back))
	load.answered(t, int64(rounds)*100)
	writes.kept(t)
}

// roundsOf returns few, or many for the long rounds, unless the flag says how many.
func roundsOf(few, many int) int {
	switch {
	case *fixed > 0:
		return *fixed
	case *e2e:
		return many
	}
	return few
}

// percentiles says how long something took.
func percentiles(d []time.Duration) string {
	slices.Sort(d)
	at := func(q float64) time.Duration { return d[int(math.Ceil(float64(len(d))*q))-1].Round(time.Millisecond) }
	return fmt.Sprintf("p50 %v p99 %v max %v", at(0.5), at(0.99), at(1))
}

// answered stops the load once at least least calls were made and fails the test unless every one had an answer.
func (l *testLoad) answered(t *testing.T, least int64) (refused int64) {
	t.Helper()
	l.reaches(t, least)
	lost, calls, errs := l.stop()
	t.Logf("calls %d, refused or failed with a typed answer %d %v, without an answer %d", calls, total(errs), errs, lost)
	if lost != 0 {
		t.Errorf("%d calls without an answer", lost)
	}
	return total(errs)
}

// reaches waits until the load has made so many calls in all: how many fit beside a fault is the machine's affair.
func (l *testLoad) reaches(t *testing.T, calls int64) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); l.calls.Load() < calls; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("only %d calls were made: the load did not run", l.calls.Load())
			return
		}
	}
}

// kept stops the writes and fails the test unless every acknowledged one is there.
func (w *testWrites) kept(t *testing.T) {
	t.Helper()
	acked, missing := w.stop(t)
	t.Logf("control writes acknowledged %d, missing %d", acked, missing)
	if missing != 0 || acked == 0 {
		t.Errorf("%d of %d acknowledged writes missing", missing, acked)
	}
}

func total(m map[string]int64) (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}

// deployEchoes deploys the echo functions that "make functions" built.
func (c *testCluster) deployEchoes(t *testing.T) []starling.FunctionName {
	t.Helper()
	var names []starling.FunctionName
	for _, f := range []struct {
		name    starling.FunctionName
		zip     string
		runtime starling.Runtime
	}{{"echo-python", "echo-python.zip", starling.Python311}, {"echo-node", "echo-node.zip", starling.NodeJS20}, {"echo-go", "echo-go.zip", starling.Provided}} {
		zip, err := os.Open(filepath.Join(repo(t), "bin/functions", f.zip))
		if err != nil {
			t.Fatalf("%v: run \"make functions\" first", err)
		}
		code, err := c.nodes[0].http.PutCode(t.Context(), zip, -1)
		zip.Close()
		if err != nil {
			t.Fatal(err)
		}
		config := starling.Config{Runtime: f.runtime, TimeoutMS: 10_000}
		if _, err := c.nodes[0].http.CreateFunction(t.Context(), protocol.FunctionSpec{Name: f.name, Config: &config, Code: code.Hash}); err != nil {
			t.Fatal(err)
		}
		names = append(names, f.name)
	}
	return names
}

// everyFunctionAnswers returns the time from since until each function answered a call through a living node.
func (c *testCluster) everyFunctionAnswers(t *testing.T, functions []starling.FunctionName, dead *testNode, since time.Time) time.Duration {
	t.Helper()
	var wg sync.WaitGroup
	var last atomic.Int64
	for _, n := range c.frontends() {
		if n == dead {
			continue
		}
		for _, f := range functions {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for time.Since(since) < 20*time.Second {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					r, err := n.http.Invoke(ctx, client.Call{Function: f, Payload: []byte(`{"n":1}`)})
					cancel()
					if err == nil && r.Err() == nil {
						d := int64(time.Since(since))
						if dead != nil {
							t.Logf("%s through %s after %v: %v", f, n.name, time.Duration(d).Round(time.Millisecond), r.Timing)
						}
						for old := last.Load(); d > old && !last.CompareAndSwap(old, d); old = last.Load() {
						}
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
				t.Errorf("%s through %s did not answer within 20 s of a death", f, n.name)
			}()
		}
	}
	wg.Wait()
	return time.Duration(last.Load())
}

// A testLoad calls functions through the living nodes at a fixed rate, whatever the answers take.
type testLoad struct {
	cluster *testCluster
	dead    atomic.Pointer[testNode]
	end     context.CancelFunc
	wg      sync.WaitGroup
	calls   atomic.Int64
	lost    atomic.Int64

	mu   sync.Mutex // guards what follows
	errs map[string]int64
	took []time.Duration // of the calls answered
}

func startLoad(c *testCluster, functions []starling.FunctionName) *testLoad {
	return startLoadEvery(c, functions, 5*time.Millisecond) // 200 calls a second
}

// startLoadEvery makes one call every pause.
func startLoadEvery(c *testCluster, functions []starling.FunctionName, pause time.Duration) *testLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &testLoad{cluster: c, end: cancel, errs: map[string]int64{}}
	nodes := c.frontends()
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			l.wg.Add(1)
			go func() {
				defer l.wg.Done()
				l.call(nodes[i%len(nodes)], functions[i%len(functions)])
			}()
		}
	}()
	return l
}

func (l *testLoad) avoid(n *testNode) { l.dead.Store(n) }

// call counts an answer of any kind; a connection that breaks counts as lost unless its node was killed.
func (l *testLoad) call(n *testNode, f starling.FunctionName) {
	if l.dead.Load() == n {
		return
	}
	l.calls.Add(1)
	lives := n.lives.Load()
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	began := time.Now()
	r, err := n.http.Invoke(ctx, client.Call{Function: f, Payload: []byte(`{"n":1}`)})
	if err == nil {
		err = r.Err()
	}
	if err == nil {
		l.mu.Lock()
		l.took = append(l.took, time.Since(began))
		l.mu.Unlock()
	}
	if err == nil || l.dead.Load() == n || n.lives.Load() != lives {
		return
	}
	word := starling.KindOf(err).String()
	if r := starling.ReasonOf(err); r == client.ReasonNoAnswer || r == client.ReasonUnreachable || ctx.Err() != nil {
		l.lost.Add(1)
		word = "no answer: " + err.Error()
	}
	l.mu.Lock()
	l.errs[word+" "+starling.ReasonOf(err)]++
	l.mu.Unlock()
}

// latencies returns how long the calls took that were answered since it was asked last.
func (l *testLoad) latencies() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	took := l.took
	l.took = nil
	return took
}

func (l *testLoad) stop() (lost, calls int64, errs map[string]int64) {
	l.end()
	l.wg.Wait()
	return l.lost.Load(), l.calls.Load(), l.errs
}

// testWrites creates accounts one after another and remembers those that were acknowledged.
type testWrites struct {
	cluster *testCluster
	end     context.CancelFunc
	done    chan struct{}
	acked   []starling.AccountID
}

func startWrites(c *testCluster) *testWrites {
	ctx, cancel := context.WithCancel(context.Background())
	w := &testWrites{cluster: c, end: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for i := 0; ctx.Err() == nil; i++ {
			id := starling.AccountID(fmt.Sprintf("w%d", i))
			call, stop := context.WithTimeout(ctx, 5*time.Second)
			if _, err := c.nodes[i%len(c.nodes)].admin.CreateAccount(call, protocol.AccountSpec{ID: id}); err == nil {
				w.acked = append(w.acked, id)
			}
			stop()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	return w
}

func (w *testWrites) stop(t *testing.T) (acked, missing int) {
	w.end()
	<-w.done
	for _, id := range w.acked {
		if _, err := w.cluster.nodes[0].admin.Account(t.Context(), id); err != nil {
			t.Logf("acknowledged account %s: %v", id, err)
			missing++
		}
	}
	return len(w.acked), missing
}
