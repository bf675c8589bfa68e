package partition_test

import (
	"bufio"
	"context"
	"encoding/json"
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
	"starling/cluster/identity"
	"starling/cluster/partmap"
	"starling/sched"
	"starling/transport/quic"
)

// The nodes of the benches over QUIC: schedulers are 1, 2 and so on, each with a process of its own, so that its CPU can be
// told from the load's.
const (
	scheduler starling.NodeID = 1
	load      starling.NodeID = 100

	schedulerEnv = "STARLING_BENCH_SCHEDULER" // folder of the scheduler's identity; the process is that scheduler

	// The function that is cut over all schedulers, when there is one. Its instances serve several calls at once.
	hotVersion starling.VersionID = 1 << 32
	hotSlots                      = 7
)

var hotFunction = starling.FunctionRef{Account: "acme", Name: "hot"}

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

// A layout is what all processes of one bench must know alike. It is the first line that a scheduler reads.
type layout struct {
	Schedulers []string // address of each
	Load       string
	Instances  int // limit of the hot function
}

func (l *layout) addr(n starling.NodeID) string {
	if n == load {
		return l.Load
	}
	if i := int(n - scheduler); i < len(l.Schedulers) {
		return l.Schedulers[i]
	}
	return ""
}

// partitions returns one partition for each scheduler: the hot function's span is cut evenly.
func (l *layout) partitions() *partmap.Map {
	m := &partmap.Map{}
	n := uint64(len(l.Schedulers))
	for i := range n {
		p := partmap.Partition{ID: starling.PartitionID(i + 1), Epoch: 1, Owner: scheduler + starling.NodeID(i)}
		if i > 0 {
			p.Range.Lo = starling.KeyOf(hotFunction, uint32(i<<32/n))
			m.Partitions[i-1].Range.Hi = p.Range.Lo
		}
		m.Partitions = append(m.Partitions, p)
	}
	return m
}

// still is a topology and a catalog that do not change.
type still struct {
	*layout
	partmap *partmap.Map
}

func (s still) Map() *partmap.Map        { return s.partmap }
func (still) Changed() <-chan struct{}   { return nil }
func (s still) Members() []starling.Node { return s.Alive() }
func (still) LeaseUntil() time.Time      { return time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC) }
func (s still) Alive() []starling.Node {
	nodes := []starling.Node{{ID: load, Roles: starling.RoleFrontend | starling.RoleHost}}
	for i := range s.Schedulers {
		nodes = append(nodes, starling.Node{ID: scheduler + starling.NodeID(i), Roles: starling.RoleScheduler})
	}
	return nodes
}

func (s still) Version(_ context.Context, id starling.VersionID) (*starling.Version, error) {
	if id == hotVersion {
		return &starling.Version{ID: id, Function: hotFunction,
			Config: starling.Config{Runtime: starling.Provided, Concurrency: hotSlots, InstanceMax: s.Instances}.WithDefaults()}, nil
	}
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

// open returns a node's hub over QUIC, not yet bound nor listening; where says where the others are, once that is known.
func open(dir string, where *atomic.Pointer[layout]) (*actors.Hub, *quic.Endpoint, starling.NodeID, error) {
	id, err := identity.Load(dir)
	if err != nil {
		return nil, nil, 0, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	e := quic.New(quic.Config{Addr: "127.0.0.1:0", Identity: id, Log: log})
	h := actors.NewHub(actors.HubConfig{Self: id.ID(), Endpoint: e, Log: log, Addr: func(n starling.NodeID) string {
		if l := where.Load(); l != nil {
			return l.addr(n)
		}
		return ""
	}})
	return h, e, id.ID(), nil
}

// runScheduler is a scheduler's process: it says where it is, reads the layout, answers each further line with the CPU it
// used so far in µs, and ends with its input.
func runScheduler(dir string) error {
	var where atomic.Pointer[layout]
	h, e, self, err := open(dir, &where)
	if err != nil {
		return err
	}
	world := still{layout: &layout{}}
	k := partition.New(partition.Config{Node: self, Post: h, Topology: &world, Catalog: &world, Sched: sched.DefaultConfig(),
		Log: slog.New(slog.DiscardHandler)})
	h.Bind(actors.Parts{Partitions: k})
	if err := e.Listen(); err != nil {
		return err
	}
	fmt.Println(e.Addr())
	in := bufio.NewScanner(os.Stdin)
	if !in.Scan() {
		return fmt.Errorf("no layout: %w", in.Err())
	}
	if err := json.Unmarshal(in.Bytes(), world.layout); err != nil {
		return err
	}
	world.partmap = world.partitions()
	where.Store(world.layout)
	if err := k.Open(context.Background()); err != nil {
		return err
	}
	for in.Scan() {
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

// A process is one scheduler as the load sees it.
type process struct {
	in    *json.Encoder
	lines *bufio.Scanner
}

// start starts n schedulers and the load's node, tells all of them of each other, and returns the schedulers. bind gives
// the load's hub its parts; the layout must have what the bench wants beside addresses.
func start(b *testing.B, n, cores int, l *layout, bind func(*actors.Hub) actors.Parts) []process {
	dir := b.TempDir()
	issue(b, dir, n)
	var where atomic.Pointer[layout]
	hub, e, _, err := open(filepath.Join(dir, load.String()), &where)
	must(b, err)
	hub.Bind(bind(hub))
	must(b, e.Listen())
	b.Cleanup(func() { hub.Close(); e.Close() })
	l.Load = e.Addr()
	var all []process
	for i := range n {
		p := startProcess(b, filepath.Join(dir, (scheduler+starling.NodeID(i)).String()), cores)
		l.Schedulers = append(l.Schedulers, p.answer(b))
		all = append(all, p)
	}
	where.Store(l)
	for _, p := range all {
		must(b, p.in.Encode(l))
	}
	return all
}

// issue leaves an identity for each node below dir.
func issue(b *testing.B, dir string, schedulers int) {
	ca, err := identity.NewCA("bench", time.Now())
	must(b, err)
	grants := []identity.Grant{{Node: load, Roles: starling.RoleFrontend | starling.RoleHost}}
	for i := range schedulers {
		grants = append(grants, identity.Grant{Node: scheduler + starling.NodeID(i), Roles: starling.RoleScheduler})
	}
	for _, g := range grants {
		n, err := ca.Issue(g, time.Now())
		must(b, err)
		where := filepath.Join(dir, g.Node.String())
		must(b, os.MkdirAll(where, 0o700))
		must(b, n.Save(where))
	}
}

// startProcess starts one scheduler, which ends with the bench.
func startProcess(b *testing.B, dir string, cores int) process {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), schedulerEnv+"="+dir, fmt.Sprint("GOMAXPROCS=", cores))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	free := func() {}
	if *nodeCPU > 0 {
		free = limitCPU(b, cmd.Process.Pid, *nodeCPU)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error("scheduler's process:", err)
		}
		free()
	})
	return process{in: json.NewEncoder(in), lines: bufio.NewScanner(out)}
}

func (p process) answer(b *testing.B) string {
	if !p.lines.Scan() {
		b.Fatal("a scheduler's process ended")
	}
	return strings.TrimSpace(p.lines.Text())
}

// cpu returns the CPU that the process used so far in µs.
func (p process) cpu(b *testing.B) (us float64) {
	must(b, p.in.Encode("cpu"))
	_, err := fmt.Sscan(p.answer(b), &us)
	must(b, err)
	return us
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
