package sim

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"sort"
	"syscall"
	"testing"
	"time"

	"starling/cluster/partmap"
	"starling/sched"
	"starling/sim/load"
)

var (
	scaleHosts     = flag.Int("hosts", 0, "run a world of so many hosts without faults and tell what it costs")
	scaleFunctions = flag.Int("functions", 100_000, "with -hosts: functions")
	scaleRate      = flag.Float64("rate", 1000, "with -hosts: calls per second over all functions")
	scaleTime      = flag.Duration("time", 10*time.Minute, "with -hosts: virtual time")
	scaleParts     = flag.Int("partitions", 8, "with -hosts: partitions")
	growth         = flag.Bool("growth", false, "tell what control traffic costs as clusters grow")
	scaleAzure     = flag.Float64("azure", 0, "with -hosts: Azure's load instead of -rate, the busiest function called so often a day")
)

// A zipf is a Poisson stream over functions whose popularity falls as a power of their rank.
type zipf struct {
	rng       *rand.Rand
	functions []load.Function
	sums      []float64
	rate      float64
	now, end  time.Duration
}

func newZipf(n int, rate float64, end time.Duration, seed uint64) *zipf {
	z := &zipf{rng: rand.New(rand.NewPCG(seed, 1)), rate: rate, end: end, functions: make([]load.Function, n), sums: make([]float64, n)}
	sum := 0.0
	for i := range n {
		sum += math.Pow(float64(i+10), -0.9)
		z.sums[i] = sum
		z.functions[i] = load.Function{Account: fmt.Sprintf("a%d", i%max(n/20, 1)), Name: fmt.Sprintf("f%d", i), MemoryMiB: 128, Slots: 1,
			Start: 100 * time.Millisecond, Init: 100 * time.Millisecond}
	}
	return z
}

func (z *zipf) Functions() []load.Function { return z.functions }

func (z *zipf) Next() (load.Call, bool) {
	z.now += time.Duration(z.rng.ExpFloat64() / z.rate * float64(time.Second))
	f := sort.SearchFloat64s(z.sums, z.rng.Float64()*z.sums[len(z.sums)-1])
	return load.Call{At: z.now, Function: int32(min(f, len(z.functions)-1)), Exec: time.Duration(z.rng.ExpFloat64() * float64(200*time.Millisecond))}, z.now <= z.end
}

// still is a world in which nothing fails: for policies and for size.
func still(l load.Load, hosts, hostMiB, partitions int) Config {
	c := Config{Managers: 4, Hosts: hosts, Zones: 4, HostMiB: hostMiB, StartMax: 32, Partitions: partitions, Static: true, Report: 10 * time.Second, Load: l}
	c.Sched = sched.DefaultConfig()
	c.Sched.Audit = 10 * time.Minute
	return c
}

// TestStillWorldServesEverybody: without faults and with room every call is answered, and the same load costs the same.
func TestStillWorldServesEverybody(t *testing.T) {
	var before *Result
	for range 2 {
		c := still(newZipf(200, 200, 30*time.Second, 1), 10, 16<<10, 4)
		c.Check = All()
		c.Check.Books, c.Check.Rest = 5000, false
		w := New(c, 1)
		r, err := w.Run(40 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if r.Calls < 5000 || r.Answered != r.Calls || len(r.Refused) > 0 || r.Cold == 0 || r.Starts == 0 || r.Instances == 0 {
			t.Fatalf("%d of %d calls answered, refused %v, %d starts", r.Answered, r.Calls, r.Refused, r.Starts)
		}
		if before != nil && (before.Cold != r.Cold || before.Instances != r.Instances || before.WaitP99 != r.WaitP99 || before.Events != r.Events) {
			t.Fatalf("the same load gave %+v and %+v", before, r)
		}
		before = r
	}
}

// scaleLoad is the load that the flags ask for.
func scaleLoad() load.Load {
	if *scaleAzure == 0 {
		return newZipf(*scaleFunctions, *scaleRate, *scaleTime, 1)
	}
	c := load.DefaultAzure()
	c.Functions, c.Accounts, c.Zipf = *scaleFunctions, max(*scaleFunctions/20, 1), 0.6
	c.RateMax, c.Length = *scaleAzure, *scaleTime
	return load.Azure(c, 1)
}

// peakMiB is the most memory the process had so far.
func peakMiB(t *testing.T) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return u.Maxrss >> 10
}

// TestScale tells what a large world costs: go test ./sim -run Scale -v -args -hosts 1000.
func TestScale(t *testing.T) {
	if *scaleHosts == 0 {
		t.Skip("give -hosts")
	}
	began := time.Now()
	w := New(still(scaleLoad(), *scaleHosts, 64<<10, *scaleParts), 1)
	made := time.Since(began)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("made in %v, %.0f MiB", made, float64(m.HeapAlloc)/(1<<20))
	began = time.Now()
	for k := range time.Duration(24) {
		if _, err := w.Run(*scaleTime * (k + 1) / 24); err != nil {
			t.Fatal(err)
		}
		t.Logf("%v virtual in %v: %d events, peak %d MiB", w.Now(), time.Since(began).Round(time.Millisecond), w.Steps(), peakMiB(t))
	}
	d, r := time.Since(began), w.Result()
	t.Logf("%v virtual in %v: %d events (%.0f/s, %.0f ns each, %.1f per call), %d calls, cold ratio %.4f, wait p50 %v p99 %v, %d starts, %.0f instance-seconds, refused %v, peak %d MiB",
		r.Virtual, d.Round(time.Millisecond), r.Events, float64(r.Events)/d.Seconds(), float64(d)/float64(r.Events), float64(r.Events)/float64(r.Calls), r.Calls, r.ColdRatio,
		r.WaitP50, r.WaitP99, r.Starts, r.Instances, r.Refused, peakMiB(t))
	alive := 0
	for _, n := range w.hosts {
		alive += len(n.host.all)
	}
	t.Logf("%d instances live", alive)
}

// TestGrowth tells what the sessions of a leader carry as clusters grow: go test ./sim -run Growth -v -args -growth. Without
// -growth it runs a small cluster only.
func TestGrowth(t *testing.T) {
	nodes, partitions := []int{9}, []int{16}
	if *growth {
		nodes, partitions = []int{4, 30, 300}, []int{16, 256, 4096}
	}
	for _, n := range nodes {
		for _, p := range partitions {
			whole, deltas := grow(t, n, p, true), grow(t, n, p, false)
			if deltas.Bytes*2 > whole.Bytes {
				t.Errorf("%d nodes, %d partitions: moves cost %d bytes of pushes, and %d as whole topologies", n, p, deltas.Bytes, whole.Bytes)
			}
		}
	}
}

// grow runs a cluster at rest and then with ten moves, and returns what the moves were told in.
func grow(t *testing.T, nodes, partitions int, whole bool) Count {
	began := time.Now()
	m := &Meter{Clock: func() time.Duration { return time.Since(began) }, Whole: whole}
	c := Config{Managers: 3, Fronts: (nodes - 3) / 3, Hosts: nodes - 3 - (nodes-3)/3, Partitions: partitions, Check: All(), Meter: m}
	c.Check.Books = 0      // at 4,096 partitions they take minutes
	c.Faults.Orders = 1e-9 // owners take orders, and nothing is taken from them
	w := New(c, 1)
	run := func(until time.Duration) {
		if _, err := w.Run(until); err != nil {
			t.Fatal(err)
		}
	}
	run(5 * time.Second)
	start := m.Pushes
	m.Heartbeats, m.Renewals, m.Pushes, m.Rounds, m.Planning = Count{}, Count{}, Count{}, 0, 0
	run(15 * time.Second)
	rest := *m
	for range 10 {
		lead := w.raft.leader
		now := lead.mgr.topology.Map
		p := now.Partitions[w.rng.IntN(len(now.Partitions))]
		to := w.fronts[w.rng.IntN(len(w.fronts))].id
		for to == p.Owner {
			to = w.fronts[w.rng.IntN(len(w.fronts))].id
		}
		w.order(lead, w.node(p.Owner), partmap.Change{Kind: partmap.Move, Partition: p.ID, Epoch: p.Epoch, To: to})
		run(w.now + 500*time.Millisecond)
	}
	if w.planned.Moves != 10 {
		t.Fatalf("%d of 10 moves were made", w.planned.Moves)
	}
	moves := Count{m.Pushes.Messages - rest.Pushes.Messages, m.Pushes.Bytes - rest.Pushes.Bytes}
	t.Logf("%d nodes, %d partitions, whole %v: start %+v; at rest a second: heard %d messages %d B, answered %d messages %d B, pushed %d B, a plan %v; a move pushes %d messages %d B",
		len(w.nodes), partitions, whole, start, rest.Heartbeats.Messages/10, rest.Heartbeats.Bytes/10, rest.Renewals.Messages/10, rest.Renewals.Bytes/10,
		rest.Pushes.Bytes/10, (rest.Planning / time.Duration(max(rest.Rounds, 1))).Round(time.Microsecond), moves.Messages/10, moves.Bytes/10)
	return moves
}
