// Package sim runs a whole cluster in one goroutine on a virtual clock: the production schedulers, partition map,
// balancer, replicated state, leader's ledger, lease cache and host guard, between modelled networks, hosts and
// callers. A seed and a configuration decide everything that happens. Checkers look after every step.
package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"starling"
	"starling/cluster/partmap"
	"starling/sched"
	"starling/sim/load"
)

// Config describes a world. Zero numbers mean the defaults in parentheses.
type Config struct {
	Managers   int // nodes with the roles manager, scheduler and frontend (3)
	Fronts     int // further nodes with the roles scheduler and frontend
	Hosts      int // nodes with the role host (3)
	Zones      int // hosts and nodes are spread over so many (1)
	Partitions int // (4)

	HostMiB   int           // memory of one host (4096)
	StartMax  int           // instances one host starts at once (8)
	Report    time.Duration // between two reports of a host without a change (500 ms)
	QueueAge  time.Duration // longest wait of one call (starling.QueueAgeMax)
	Accounts  int           // concurrent calls of one account (starling.ConcurrencyMax)
	Instances int           // instances of one function at most; 0 for what the account permits
	Spread    float64       // how far start and init times stray from their median: sigma of a log-normal (0: not at all)

	// Static leaves out the managers: the map is dealt out once and node leases never end. With it nothing may
	// fail, and what is left costs little enough for a million functions.
	Static bool
	CPU    CPU
	Sched  sched.Config // Bounds.Function 0 means sched.DefaultConfig()
	Net    Net
	Faults Faults
	Load   load.Load // nil: nobody calls
	Check  Check
	Plant  Plant     // the bug to plant
	Trace  io.Writer // one line for each thing that happens; nil for none
	Meter  *Meter    // counts control traffic; nil for none
}

func (c Config) withDefaults() Config {
	def := func(p *int, n int) {
		if *p == 0 {
			*p = n
		}
	}
	def(&c.Managers, 3)
	def(&c.Hosts, 3)
	def(&c.Zones, 1)
	def(&c.Partitions, 4)
	def(&c.HostMiB, 4096)
	def(&c.StartMax, 8)
	def(&c.Accounts, starling.ConcurrencyMax)
	if c.Report == 0 {
		c.Report = 500 * time.Millisecond
	}
	if c.QueueAge == 0 {
		c.QueueAge = starling.QueueAgeMax
	}
	if c.Sched.Bounds.Function == 0 {
		c.Sched = sched.DefaultConfig()
	}
	c.Net = c.Net.withDefaults()
	return c
}

// A World is one cluster at one virtual instant. It has one caller at a time.
type World struct {
	cfg    Config
	rng    *rand.Rand // of what the world does to the cluster
	now    time.Duration
	events queue
	steps  uint64
	err    error // the first violation; nothing happens after it

	nodes     []*node // by id-1
	fronts    []*node // those with a frontend
	hosts     []*node
	functions []*function
	versions  map[starling.VersionID]*function
	raft      raft
	fixed     *partmap.Map // of a static world
	turn      int          // of the fronts, where nothing fails
	next      load.Call
	more      bool
	open      callList
	calls     uint64
	calm      bool // no faults any more
	checks    checker
	planned   planned
	result    *Result
	freeSends []*delivery
	freeCalls []*call
}

// A function is one function of the load with its one version and what it uses at this instant.
type function struct {
	load.Function
	index   int32
	account int // of the accounts in the order of their first functions
	version *starling.Version
	limit   int // slots at work at once
	running int // calls at work on hosts
}

// base is when every world begins.
var base = time.Unix(1_700_000_000, 0)

// New returns a world before its first event. The seed decides all that chance decides.
func New(cfg Config, seed uint64) *World {
	w := &World{cfg: cfg.withDefaults(), rng: rand.New(rand.NewPCG(seed, 0x5eed)), versions: map[starling.VersionID]*function{}}
	w.result = newResult()
	w.checks.w = w
	for i := range w.cfg.Managers + w.cfg.Fronts + w.cfg.Hosts {
		w.addNode(i)
	}
	w.addFunctions()
	if w.cfg.Static {
		w.deal()
	} else {
		w.found()
	}
	for _, n := range w.nodes {
		n.boot()
	}
	w.addMachines()
	if w.cfg.Load != nil {
		w.advance()
	}
	w.scheduleFaults()
	return w
}

func (w *World) addNode(i int) {
	n := &node{w: w, id: starling.NodeID(i + 1), zone: starling.Zone(fmt.Sprintf("z%d", i%w.cfg.Zones)), up: true}
	switch {
	case i < w.cfg.Managers:
		n.roles = starling.RoleManager | starling.RoleScheduler | starling.RoleFrontend
	case i < w.cfg.Managers+w.cfg.Fronts:
		n.roles = starling.RoleScheduler | starling.RoleFrontend
	default:
		n.roles = starling.RoleHost
	}
	w.nodes = append(w.nodes, n)
	if n.roles.Has(starling.RoleFrontend) {
		w.fronts = append(w.fronts, n)
	} else {
		w.hosts = append(w.hosts, n)
	}
}

// addFunctions makes the versions of the load's functions. A static world keeps them itself; another one puts them
// into the replicated state, which then draws their ids.
func (w *World) addFunctions() {
	if w.cfg.Load == nil {
		return
	}
	accounts := map[string]int{}
	for i, f := range w.cfg.Load.Functions() {
		if _, ok := accounts[f.Account]; !ok {
			accounts[f.Account] = len(accounts)
		}
		v := &starling.Version{ID: starling.VersionID(i + 1), Function: starling.FunctionRef{Account: starling.AccountID(f.Account), Name: starling.FunctionName(f.Name)},
			Config: starling.Config{Runtime: starling.Provided, Handler: "bootstrap", MemoryMiB: max(f.MemoryMiB, 1), TimeoutMS: 900_000, Concurrency: max(f.Slots, 1), InstanceMax: w.cfg.Instances}}
		fn := &function{Function: f, index: int32(i), account: accounts[f.Account], version: v, limit: w.cfg.Accounts}
		if n := w.cfg.Instances * v.Config.Concurrency; n > 0 {
			fn.limit = min(fn.limit, n)
		}
		w.functions = append(w.functions, fn)
		w.versions[v.ID] = fn
	}
}

// deal gives the partitions to the nodes in turn, once and for ever.
func (w *World) deal() {
	m, err := partmap.Initial(w.cfg.Partitions)
	if err != nil {
		w.fail("configuration: %v", err)
		return
	}
	for i := range m.Partitions {
		m.Partitions[i].Owner, m.Partitions[i].Epoch = w.fronts[i%len(w.fronts)].id, 1
	}
	w.fixed = m
}

// node returns a node by its id, nil when there is none.
func (w *World) node(id starling.NodeID) *node {
	if id == 0 || int(id) > len(w.nodes) {
		return nil
	}
	return w.nodes[id-1]
}

// clock is the monotonic instant as a time.
func (w *World) clock() time.Time { return base.Add(w.now) }

// Now returns how much time has passed in the world.
func (w *World) Now() time.Duration { return w.now }

// Steps returns how many events have happened.
func (w *World) Steps() uint64 { return w.steps }

// Err returns the first violation of an invariant, nil while there is none.
func (w *World) Err() error { return w.err }

// fail notes the first violation.
func (w *World) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %v, step %d: %s", w.now, w.steps, fmt.Sprintf(format, args...))
		w.trace("VIOLATION %v", w.err)
	}
}

// Step lets the next event happen. It returns false when nothing is left, or after a violation.
func (w *World) Step() bool {
	if w.err != nil {
		return false
	}
	if w.more && (w.events.empty() || w.next.At <= w.events.first().at) {
		w.now = max(w.now, w.next.At)
		w.arrive(w.next)
		w.advance()
	} else if !w.events.empty() {
		e := w.events.pop()
		w.now = e.at
		e.do.run(w)
	} else {
		return false
	}
	w.steps++
	w.checks.step()
	return w.err == nil
}

// Run lets events happen until the instant has come or an invariant is violated, and returns what was measured.
func (w *World) Run(until time.Duration) (*Result, error) {
	for w.err == nil && (!w.events.empty() && w.events.first().at <= until || w.more && w.next.At <= until) {
		w.Step()
	}
	if w.err == nil {
		w.now = max(w.now, until)
	}
	return w.Result(), w.err
}

// Settle ends all faults and calls no more, and runs until every call must have been answered and everything must
// have come to rest; then the books of the schedulers must agree with the hosts.
func (w *World) Settle() error {
	w.heal()
	w.more = false
	longest := time.Duration(0)
	for c := w.open.first; c != nil; c = c.next {
		longest = max(longest, c.exec)
	}
	if _, err := w.Run(w.now + w.cfg.QueueAge + longest + settleTime); err != nil {
		return err
	}
	w.checks.rest()
	return w.err
}

// settleTime covers the detection of dead nodes, elections, and one audit of the hosts.
const settleTime = 6 * time.Second

// advance reads the next call of the load.
func (w *World) advance() { w.next, w.more = w.cfg.Load.Next() }

// trace writes one line when somebody wants to read it.
func (w *World) trace(format string, args ...any) {
	if w.cfg.Trace != nil {
		fmt.Fprintf(w.cfg.Trace, "%12.6f "+format+"\n", append([]any{w.now.Seconds()}, args...)...)
	}
}
