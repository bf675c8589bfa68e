package partition_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/partition"
	"starling/actors/wire"
	"starling/cluster/identity"
	"starling/cluster/partmap"
	"starling/sched"
	"starling/transport/quic"
)

// The nodes of the bench: the scheduler's has a process of its own, so that its CPU can be told from the load's.
const (
	scheduler starling.NodeID = 1
	load      starling.NodeID = 2
)

const (
	schedulerEnv = "STARLING_BENCH_SCHEDULER" // folder of the scheduler's identity and the load's address; the process is the scheduler
	functions    = 10_000
)

func TestMain(m *testing.M) {
	if where := os.Getenv(schedulerEnv); where != "" {
		if err := runScheduler(where); err != nil {
			fmt.Fprintln(os.Stderr, "scheduler:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// still is a topology and a catalog that do not change: one partition, one instance for each of many functions.
type still struct{}

func (still) Map() *partmap.Map {
	return &partmap.Map{Partitions: []partmap.Partition{{ID: 1, Epoch: 1, Owner: scheduler}}}
}
func (still) Changed() <-chan struct{} { return nil }
func (still) Alive() []starling.Node {
	return []starling.Node{{ID: scheduler, Roles: starling.RoleScheduler}, {ID: load, Roles: starling.RoleFrontend | starling.RoleHost}}
}
func (still) LeaseUntil() time.Time { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }

func (still) Version(_ context.Context, id starling.VersionID) (*starling.Version, error) {
	return &starling.Version{ID: id, Function: starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", id))},
		Config: starling.Config{Runtime: starling.Python311}.WithDefaults()}, nil
}
func (still) Account(context.Context, starling.AccountID) (starling.Account, error) {
	return starling.Account{ID: "acme", ConcurrencyMax: 1 << 20}, nil
}
func (still) Resolve(context.Context, starling.FunctionRef, starling.VersionNumber) (*starling.Version, error) {
	return nil, starling.Errorf(starling.NotFound, "find version", "not asked for here")
}
func (still) Key(context.Context, [32]byte) (starling.Key, error) { return starling.Key{}, nil }

// open returns a node's hub over QUIC; other is where the other node is.
func open(dir string, parts actors.Parts, other func() string) (*actors.Hub, *quic.Endpoint, error) {
	id, err := identity.Load(dir)
	if err != nil {
		return nil, nil, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e := quic.New(quic.Config{Addr: "127.0.0.1:0", Identity: id, Log: log})
	h := actors.NewHub(actors.HubConfig{Self: id.ID(), Endpoint: e, Addr: func(starling.NodeID) string { return other() }, Log: log})
	if parts.Frontend != nil {
		h.Bind(parts)
		return h, e, e.Listen()
	}
	return h, e, nil
}

// runScheduler is the scheduler's process: it says where it is, answers each line with the CPU it used so far in µs, and
// ends with its input.
func runScheduler(where string) error {
	addr, err := os.ReadFile(filepath.Join(where, "load"))
	if err != nil {
		return err
	}
	h, e, err := open(where, actors.Parts{}, func() string { return string(addr) })
	if err != nil {
		return err
	}
	k := partition.New(partition.Config{Node: scheduler, Post: h, Topology: still{}, Catalog: still{}, Sched: sched.DefaultConfig(),
		Log: slog.New(slog.DiscardHandler)})
	h.Bind(actors.Parts{Partitions: k})
	if err := e.Listen(); err != nil {
		return err
	}
	if err := k.Open(context.Background()); err != nil {
		return err
	}
	fmt.Println(e.Addr())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			return err
		}
		fmt.Println((u.Utime.Nano() + u.Stime.Nano()) / 1000)
	}
	err = k.Close()
	h.Close()
	e.Close()
	return err
}

// A generator is the load's node: it keeps so many calls between acquire and release, and returns and asks again for what a
// read brought at once, as frontends do. As a host it owns an instance of each function.
type generator struct {
	hub     *actors.Hub
	next    atomic.Uint64
	pairs   atomic.Int64
	refused atomic.Int64
	stop    atomic.Bool
	fenced  chan struct{}
}

func (g *generator) acquire() {
	n := g.next.Add(1)
	g.hub.Send(wire.Address{Node: scheduler, Partition: 1}, &wire.Acquire{Call: n, Partition: 1, Epoch: 1, Key: 5, Wait: 30 * time.Second,
		Version: starling.VersionID(n%functions + 1)})
}

// A grants is the frontend's side of a generator.
type grants struct{ *generator }

func (g grants) Receive(_ starling.NodeID, batch []wire.Message) {
	r := &wire.Release{Partition: 1, Epoch: 1}
	for _, m := range batch {
		if m, ok := m.(*wire.Grant); ok {
			r.Leases = append(r.Leases, m.Lease.ID)
			continue
		}
		g.refused.Add(1)
	}
	g.hub.Send(wire.Address{Node: scheduler, Partition: 1}, r)
	g.pairs.Add(int64(len(r.Leases)))
	if !g.stop.Load() {
		for range r.Leases {
			g.acquire()
		}
	}
}

// A fences is its host's side.
type fences struct{ *generator }

func (g fences) Receive(_ starling.NodeID, batch []wire.Message) {
	for _, m := range batch {
		f, ok := m.(*wire.Fence)
		if !ok {
			continue // a stop: no start is wanted, as every function has its instance
		}
		answer := &wire.Fenced{Partition: 1, Epoch: f.Epoch, Host: load}
		for i := range functions {
			answer.Instances = append(answer.Instances, wire.InstanceReport{Version: starling.VersionID(i + 1), Ready: true,
				Instance: starling.InstanceID{Partition: 1, Seq: uint64(i + 1)}})
		}
		g.hub.Send(wire.Address{Node: scheduler, Partition: 1}, answer)
		select {
		case g.fenced <- struct{}{}:
		default:
		}
	}
}

// BenchmarkOverQUIC is acquire and release between two real nodes on loopback, everything real but frontend and host. An
// operation is one pair; sched-µs/op is what the scheduler's process spends on it, system calls and encryption included.
// It runs on one core, where the figures say what a core can do, and on two, where a process that waits between calls
// pays for waking one core by the other as well.
func BenchmarkOverQUIC(b *testing.B) {
	for _, cores := range []int{1, 2} {
		for _, calls := range []int{64, 512, 4096} {
			b.Run(fmt.Sprintf("cores=%d/calls=%d", cores, calls), func(b *testing.B) { overQUIC(b, cores, calls) })
		}
	}
}

func overQUIC(b *testing.B, cores, calls int) {
	dir := b.TempDir()
	issue(b, dir)
	g := &generator{fenced: make(chan struct{}, 1)}
	var addr atomic.Pointer[string]
	hub, e, err := open(filepath.Join(dir, "load"), actors.Parts{Frontend: grants{g}, Host: fences{g}}, func() string {
		if a := addr.Load(); a != nil {
			return *a
		}
		return ""
	})
	must(b, err)
	g.hub = hub
	defer e.Close()
	defer hub.Close()
	where := filepath.Join(dir, "scheduler")
	must(b, os.WriteFile(filepath.Join(where, "load"), []byte(e.Addr()), 0o600))
	ask, end := startScheduler(b, where, cores)
	defer end()
	at := ask("")
	addr.Store(&at)
	select {
	case <-g.fenced:
	case <-time.After(20 * time.Second):
		b.Fatal("the partition did not fence its host")
	}
	for range calls {
		g.acquire()
	}
	await := func(n int64) {
		for deadline := time.Now().Add(time.Minute); g.pairs.Load() < n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				b.Fatalf("%d of %d pairs, %d refused", g.pairs.Load(), n, g.refused.Load())
			}
		}
	}
	await(int64(2 * functions)) // every version is known
	before, from := micros(b, ask("cpu")), g.pairs.Load()
	b.ResetTimer()
	await(from + int64(b.N))
	b.StopTimer()
	pairs, cpu := float64(g.pairs.Load()-from), micros(b, ask("cpu"))-before
	b.ReportMetric(cpu/pairs, "sched-µs/op")
	b.ReportMetric(pairs/b.Elapsed().Seconds(), "pairs/s")
	b.ReportMetric(pairs/cpu*1e6, "pairs/sched-cpu-s")
	if n := g.refused.Load(); n > 0 {
		b.Errorf("%d refused", n)
	}
	g.stop.Store(true)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func micros(b *testing.B, line string) (us float64) {
	_, err := fmt.Sscan(line, &us)
	must(b, err)
	return us
}

// issue leaves an identity for each node below dir.
func issue(b *testing.B, dir string) {
	ca, err := identity.NewCA("bench", time.Now())
	must(b, err)
	for name, g := range map[string]identity.Grant{"scheduler": {Node: scheduler, Roles: starling.RoleScheduler}, "load": {Node: load, Roles: starling.RoleFrontend | starling.RoleHost}} {
		n, err := ca.Issue(g, time.Now())
		must(b, err)
		must(b, os.MkdirAll(filepath.Join(dir, name), 0o700))
		must(b, n.Save(filepath.Join(dir, name)))
	}
}

// startScheduler starts the other process. ask sends a line, unless it is empty, and returns the next one.
func startScheduler(b *testing.B, where string, cores int) (ask func(string) string, end func()) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), schedulerEnv+"="+where, fmt.Sprint("GOMAXPROCS=", cores))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	lines := bufio.NewScanner(out)
	ask = func(line string) string {
		if line != "" {
			fmt.Fprintln(in, line)
		}
		if !lines.Scan() {
			b.Fatal("the scheduler's process ended")
		}
		return strings.TrimSpace(lines.Text())
	}
	return ask, func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error("scheduler's process:", err)
		}
	}
}
