package partition

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/actors"
	"starling/actors/partition/handover"
	"starling/actors/protoactor"
	"starling/actors/wire"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/internal/audit"
	"starling/internal/run"
	"starling/sched"
	"starling/transport"
)

// A Topology is what a keeper must know of the cluster; cluster.View is one.
type Topology interface {
	Map() *partmap.Map        // nil before the first one; never changed after it was returned
	Changed() <-chan struct{} // closed when Map or Alive may have become another
	Alive() []starling.Node   // members that the manager does not count as dead
	Members() []starling.Node // all
	LeaseUntil() time.Time    // until when this node is certainly counted as alive; cheap
}

// A Registry shows the metrics of the parts that live now; metrics.Registry is one.
type Registry interface {
	Add(*metrics.Set)
	Remove(*metrics.Set)
}

// Floors lists the functions whose owners want instances at all times; cluster.View is one.
type Floors interface {
	Provisioned(ctx context.Context) ([]starling.Version, error)
}

// Config says what a keeper works with. The zero values of the numbers mean the defaults.
type Config struct {
	Node     starling.NodeID
	Post     actors.Post
	Topology Topology
	Catalog  cluster.Catalog
	Sched    sched.Config
	Floors   Floors             // functions that want instances at all times; nil for none
	Control  Control            // the manager's orders and the way to it; nil for none
	Endpoint transport.Endpoint // for hand-overs, not opened yet: New registers the handler; nil with Control
	Registry Registry           // of the partitions' sets; nil for none
	Log      *slog.Logger
	Audit    *audit.Log       // of what may be and is granted; nil for none
	Now      func() time.Time // time.Now when nil

	MailboxMax    int           // events waiting for one partition; 65,536
	Lookups       int           // lookups at once; 16
	LookupTimeout time.Duration // of one; 5 s
	FloorsAgain   time.Duration // between two looks at Floors; 2 s
}

// A Keeper runs an actor for every partition that the map gives to this node. Create it with New, bind it to the
// hub, Open it and Close it. It has four goroutines, for the map, the clock, the floors and the manager's orders, one more
// for each order that is being carried out, and Lookups workers; Close tells every waiting call Moved and waits for all.
type Keeper struct {
	cfg       Config
	system    *protoactor.System
	group     *run.Group
	questions chan question
	wake      chan struct{} // one token: an actor wants to be woken earlier than the clock plans
	again     chan struct{} // one token: look at the map again
	planned   atomic.Int64  // Unix nanoseconds when the clock goes off next
	rate      atomic.Uint32 // acquires a second, as of the last beat
	set       *metrics.Set
	dropped   *metrics.Counter // lookups
	refused   *metrics.Counter // events a full mailbox refused
	unowned   *metrics.Counter // calls for partitions that are not here
	failures  *metrics.Counter // actors that ended by a fault of ours
	relayed   *metrics.Counter // messages handed on to a next owner
	ready     atomic.Bool      // may take states

	placed placements
	floors atomic.Pointer[sched.Provisioned]               // the newest list; nil before the first
	actors atomic.Pointer[map[starling.PartitionID]*actor] // replaced whole by the map's goroutine, never edited
	strays atomic.Pointer[map[starling.PartitionID]*stray] // replaced whole, never edited; nil for none
	mu     sync.Mutex                                      // guards what follows up to still, and changes of strays; a leaf
	broken map[*actor]bool                                 // failed, to be replaced
	held   map[starling.Range]*held                        // states that wait for their place in the map
	offers uint64                                          // of states, so far
	busy   map[starling.PartitionID]bool                   // being changed as ordered
	rooms  map[starling.NodeID]*wire.HostReport            // the newest of each host
	still  map[starling.PartitionID]starling.Epoch         // in which nothing may be granted, whatever becomes of the actor

	arrivals []arrival // what waits for its partition to begin, in order; guarded by mu, as waiting is
	waiting  int       // messages in arrivals

	alive map[starling.NodeID]bool      // of the map's goroutine
	dead  map[starling.NodeID]time.Time // those that died lately; of the map's goroutine
	first time.Time                     // when this node heard who lives; of the map's goroutine
	born  time.Time                     // Seqs count on from here

	borders handover.Borders // of the map's goroutine
}

var _ actors.PartitionReceiver = (*Keeper)(nil)

// seq returns the Seq of an activation now. It is the wall clock's only as of the keeper's birth and goes on with the
// monotonic one: a scheduler made anew in the same epoch after the wall clock stepped back would begin below its
// predecessor, and ledgers would take all it says of permits for late.
func (k *Keeper) seq(now time.Time) uint64 {
	return uint64(k.born.UnixMicro() + now.Sub(k.born).Microseconds())
}

// New returns a keeper that does nothing yet.
func New(cfg Config) *Keeper {
	if cfg.MailboxMax == 0 {
		cfg.MailboxMax = starling.MailboxMax
	}
	if cfg.Lookups == 0 {
		cfg.Lookups = 16
	}
	if cfg.LookupTimeout == 0 {
		cfg.LookupTimeout = 5 * time.Second
	}
	if cfg.FloorsAgain == 0 {
		cfg.FloorsAgain = 2 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	k := &Keeper{cfg: cfg, born: cfg.Now(), questions: make(chan question, 4096), wake: make(chan struct{}, 1), again: make(chan struct{}, 1),
		set: metrics.NewSet(), broken: map[*actor]bool{}, held: map[starling.Range]*held{}, busy: map[starling.PartitionID]bool{}, still: map[starling.PartitionID]starling.Epoch{}, rooms: map[starling.NodeID]*wire.HostReport{}, alive: map[starling.NodeID]bool{}, dead: map[starling.NodeID]time.Time{}}
	k.actors.Store(&map[starling.PartitionID]*actor{})
	k.dropped = k.set.NewCounter("starling_partition_lookups_dropped_total")
	k.refused = k.set.NewCounter("starling_partition_events_refused_total")
	k.unowned = k.set.NewCounter("starling_partition_strays_total")
	k.failures = k.set.NewCounter("starling_partition_failures_total")
	k.relayed = k.set.NewCounter("starling_partition_relayed_total")
	if cfg.Endpoint != nil {
		cfg.Endpoint.Handle(transport.ChannelState, k.serve)
	}
	k.set.NewGauge("starling_partitions_owned", func() float64 { return float64(len(*k.actors.Load())) })
	return k
}

// Metrics returns the keeper's own set; each partition has one in the Registry while it lives here.
func (k *Keeper) Metrics() *metrics.Set { return k.set }

// Open starts the keeper. Partitions begin as soon as the topology has a map.
func (k *Keeper) Open(ctx context.Context) error {
	if err := k.cfg.Sched.Validate(); err != nil {
		return err
	}
	k.system = protoactor.New(k.cfg.Log)
	k.group = run.New(context.WithoutCancel(ctx)) // Close ends it, in its turn: not whatever ends ctx
	k.ready.Store(true)
	k.group.Go(k.watch)
	if k.cfg.Control != nil {
		k.group.Go(k.obey)
	}
	k.group.Go(k.clock)
	if k.cfg.Floors != nil {
		k.group.Go(k.followFloors)
	}
	for range k.cfg.Lookups {
		k.group.Go(func(ctx context.Context) {
			for {
				select {
				case <-ctx.Done():
					return
				case q := <-k.questions:
					k.answer(ctx, q)
				}
			}
		})
	}
	return nil
}

// Close ends every partition and waits for it and for the keeper's goroutines.
func (k *Keeper) Close() error {
	if k.group == nil {
		return nil
	}
	k.ready.Store(false)
	k.group.Stop()
	for _, a := range *k.actors.Load() {
		k.end(a)
	}
	k.actors.Store(&map[starling.PartitionID]*actor{})
	k.arrived(k.cfg.Now())
	return k.system.Close()
}

// watch follows the map and who lives, until ctx ends.
func (k *Keeper) watch(ctx context.Context) {
	for {
		changed := k.cfg.Topology.Changed()
		k.follow()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-k.again:
		}
	}
}

// follow begins and ends actors so that they are what the map says, and tells them who died.
func (k *Keeper) follow() {
	who := k.noteDeaths()
	m := k.cfg.Topology.Map()
	if m == nil {
		return
	}
	k.borders.Note(k.cfg.Now(), m)
	old := *k.actors.Load()
	now := make(map[starling.PartitionID]*actor, len(old))
	var begun, ended []*actor
	for _, p := range m.Partitions {
		if p.Owner != k.cfg.Node {
			continue
		}
		a := old[p.ID]
		if a != nil && a.entry.Epoch == p.Epoch && (!k.isBroken(a) || k.standsStill(p)) {
			now[p.ID] = a
			continue
		}
		if a != nil && k.isBroken(a) {
			<-a.ref.Done() // its name is free after this, and it has nothing left to do
		}
		failed := a
		if a != nil && a.entry.Epoch != p.Epoch {
			failed = nil
		}
		b, err := k.begin(p, who, k.borders.Drawn(m, p), failed)
		if err != nil {
			k.cfg.Log.Error("partition could not begin here", "partition", p.ID.String(), "epoch", uint64(p.Epoch), "err", err)
			continue
		}
		now[p.ID] = b
		begun = append(begun, b)
		k.forgetBroken(a)
	}
	for id, a := range old {
		if now[id] != a {
			ended = append(ended, a)
		}
	}
	k.actors.Store(&now)
	k.arrived(k.cfg.Now())
	for _, a := range begun {
		k.count(a)
	}
	k.forgetStill(m)
	for _, a := range now {
		if a.from != nil {
			k.used(a)
		}
	}
	for _, a := range ended {
		k.end(a)
		k.forgetBroken(a)
	}
	k.wakeBy(k.cfg.Now().UnixNano())
}

// count gives an actor its metrics. They cost more than all else of its beginning, so they come when it can be reached.
func (k *Keeper) count(a *actor) {
	n := newNumbers(a.entry.ID)
	a.numbers.Store(n)
	if k.cfg.Registry != nil {
		k.cfg.Registry.Add(n.all)
	}
}

// missingTime is for how long leases of a host that died may be in use: an owner that is cut off, too, grants for most of a node lease
// after its host was counted dead, and what it granted lasts a lease's time.
const missingTime = starling.NodeLease + starling.LeaseTTL + time.Second

// A census is who is asked what runs when a partition begins.
type census struct {
	hosts   []starling.NodeID // that live
	fronts  []starling.NodeID // that live
	missing []starling.NodeID // hosts that died lately: leases of them may be in use
}

// noteDeaths compares who lives with who lived, tells the partitions of deaths and returns who is to be asked by those that begin.
func (k *Keeper) noteDeaths() (who census) {
	alive := map[starling.NodeID]bool{}
	for _, n := range k.cfg.Topology.Alive() {
		alive[n.ID] = true
		if n.Roles.Has(starling.RoleHost) {
			who.hosts = append(who.hosts, n.ID)
		}
		if n.Roles.Has(starling.RoleFrontend) {
			who.fronts = append(who.fronts, n.ID)
		}
	}
	slices.Sort(who.hosts)
	slices.Sort(who.fronts)
	now := k.cfg.Now()
	for n, at := range k.dead {
		if alive[n] || now.Sub(at) > 2*heldTime {
			delete(k.dead, n)
		}
	}
	for n := range k.alive {
		if alive[n] {
			continue
		}
		k.dead[n] = now
		k.forgetRoom(n)
		for _, a := range *k.actors.Load() {
			if !a.ref.Tell(sched.NodeDown{Node: n}, 1) && !k.isBroken(a) { // one made anew hears who lives
				alive[n] = true // a full mailbox: tell it the next time
				k.lookAgain()
			}
		}
	}
	k.alive = alive
	if k.first.IsZero() && len(alive) > 0 {
		k.first = now
	}
	for _, n := range k.cfg.Topology.Members() {
		at, known := k.dead[n.ID]
		if !known {
			at = k.first // who was dead before this node heard of anybody may have died just then
		}
		if n.Roles.Has(starling.RoleHost) && !alive[n.ID] && now.Sub(at) <= missingTime {
			who.missing = append(who.missing, n.ID)
		}
	}
	slices.Sort(who.missing)
	return who
}

// end has an actor tell its waiting calls Moved and go.
func (k *Keeper) end(a *actor) {
	if !a.ref.Tell(end{}, 0) {
		a.ref.Stop() // its mailbox is full: the calls in it are asked again by their frontends
	}
	if k.cfg.Registry != nil {
		k.cfg.Registry.Remove(a.numbers.Load().all)
	}
}

// failed notes an actor that ended by a fault of ours; at the next beat of the clock it is replaced. The new one asks
// the hosts what runs, like after any take-over.
func (k *Keeper) failed(a *actor) {
	k.failures.Inc()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken[a] = true
}

func (k *Keeper) anyBroken() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.broken) > 0
}

func (k *Keeper) forgetBroken(a *actor) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.broken, a)
}

// isBroken reports whether a has failed.
func (k *Keeper) isBroken(a *actor) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.broken[a]
}

func (k *Keeper) lookAgain() {
	select {
	case k.again <- struct{}{}:
	default:
	}
}

// ReceiveFor hands a batch to a partition's mailbox. What is for a partition that was changed lately follows it.
func (k *Keeper) ReceiveFor(p starling.PartitionID, from starling.NodeID, msgs []wire.Message) {
	if p == 0 {
		k.noteRoom(from, msgs)
		for _, a := range *k.actors.Load() {
			a.ref.Tell(&batch{from, msgs}, len(msgs))
		}
		return
	}
	switch s := k.strayOf(p); {
	case s == nil:
		k.deliver(p, from, msgs)
	case k.knowsMore(p, msgs) && k.await(p, from, msgs): // it is for us again: whom our map names may be dead
	default:
		k.divert(p, s, from, msgs)
	}
}

// deliver hands a batch to a partition that lives here, or will in a moment. Calls for one that does not are told so at once.
func (k *Keeper) deliver(p starling.PartitionID, from starling.NodeID, msgs []wire.Message) {
	if a := (*k.actors.Load())[p]; a != nil {
		k.tell(a, from, msgs)
	} else if !k.early(p, from, msgs) && !k.await(p, from, msgs) {
		k.strange(p, from, msgs)
	}
}

// refuse answers the calls of a batch that no scheduler will see.
func (k *Keeper) refuse(p starling.PartitionID, from starling.NodeID, msgs []wire.Message, kind starling.Kind, reason, text string) {
	for _, m := range msgs {
		to := from
		if r, ok := m.(*wire.Relay); ok {
			to, m = r.From, r.Body
		}
		if q, ok := m.(*wire.Acquire); ok {
			r := &wire.Reject{Call: q.Call, Partition: p, Reject: kind, Reason: reason, Message: text}
			if kind == starling.Overloaded {
				r.After = 100 * time.Millisecond
			}
			k.cfg.Post.Send(wire.Address{Node: to}, r)
		}
	}
}
