package cluster

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/cluster/partmap"
	"starling/internal/run"
	"starling/transport"
)

// A Dialer opens streams to other nodes; every transport.Endpoint is one.
type Dialer interface {
	Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error)
}

// A Local is the manager in this process. Its streams are streams of ChannelControl that cross no network.
type Local interface {
	Stream() (transport.Stream, error)
}

// ViewConfig says what a View needs.
type ViewConfig struct {
	Node     starling.Node // this node; its ID is its certificate's. A changed name or address is proposed to the cluster
	Dialer   Dialer
	Managers []string              // addresses of managers to ask until a topology tells better; at least one, or Local
	Local    Local                 // the manager in this process; nil for none
	Load     func() Load           // what the heartbeats say; nil for nothing
	Report   func() []partmap.Load // of the busiest partitions here, at most partmap.LoadMax, every ReportInterval; nil for none
	Settled  func() uint64         // index of the topology that this node's parts act on; nil when they look it up each time
	CacheMax int                   // entries of each kind in the cache; 0 for 65,536
	Log      *slog.Logger
	Now      func() time.Time // a monotonic clock; nil for time.Now
}

// A View is what one node knows of the cluster: the newest topology, who is alive, until when the node itself
// may act for its partitions, and a cache of the catalog. It keeps one session with the manager that leads
// and finds the next one when that fails; without any, all that it knows stays readable.
//
// Create it with NewView, start it with Open, and Close it. It runs three goroutines: two for the session and
// one that tells the cluster of a changed address.
type View struct {
	cfg      ViewConfig
	base     time.Time // what lease counts from; carries the monotonic clock
	metrics  viewMetrics
	cache    *catalog
	orders   orderBox
	group    *run.Group
	state    atomic.Pointer[viewState]
	lease    atomic.Int64 // nanoseconds after base until which the node lease runs; 0 for never
	stopping atomic.Bool  // the node will leave soon
	whole    atomic.Bool  // the next session must push a whole topology: a delta did not fit
	mu       sync.Mutex   // a leaf: guards what follows and the replacement of state and lease
	closing  bool
	leader   leader
	since    uint64        // of the leader's last renewal
	found    chan struct{} // closed and replaced when leader changes
	claim    uint64        // the highest seen: a manager with a lower one is deposed and does not know it
	kick     chan struct{} // asks for a heartbeat now
}

// A leader is where questions go; the zero leader is nobody.
type leader struct {
	addr  string
	local bool
}

// A viewState is one immutable picture of the cluster.
type viewState struct {
	topology *Topology
	alive    []starling.NodeID // in order
	nodes    []starling.Node   // those of topology that are alive
	changed  chan struct{}     // closed when a newer picture replaces this one
}

var (
	_ Client  = (*View)(nil)
	_ Catalog = (*View)(nil)
)

// NewView returns a view that knows nothing.
func NewView(cfg ViewConfig) *View {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.CacheMax == 0 {
		cfg.CacheMax = 65_536
	}
	v := &View{cfg: cfg, base: cfg.Now().Add(-time.Second), found: make(chan struct{}),
		kick: make(chan struct{}, 1), orders: orderBox{queue: make(chan Order, orderMax)}, group: run.New(context.Background())}
	v.state.Store(&viewState{topology: &Topology{Map: &partmap.Map{}}, changed: make(chan struct{})})
	v.metrics.init(v)
	v.cache = newCatalog(v, cfg.CacheMax)
	return v
}

// Open starts looking for the manager that leads. It does not wait: Ready and Changed tell.
func (v *View) Open() {
	v.group.Go(v.run)
	v.group.Go(v.announce)
}

// Close gives up the node lease at once, tells the leader so that it need not wait for its end, and returns
// when nothing of the view runs. Stop what acts for partitions before.
func (v *View) Close() error {
	v.mu.Lock()
	v.closing = true
	v.lease.Store(0)
	v.mu.Unlock()
	v.group.Stop()
	return nil
}

// Topology returns the newest topology; its Index never falls. It is shared: do not change it.
func (v *View) Topology() *Topology { return v.state.Load().topology }

// Map returns the newest partition map, empty until the first topology came. It is shared: do not change it.
func (v *View) Map() *partmap.Map { return v.state.Load().topology.Map }

// Changed returns a channel that is closed when the topology or who is alive changes next. Take it before
// reading what it guards, or a change between the two is missed.
func (v *View) Changed() <-chan struct{} { return v.state.Load().changed }

// Node returns a member, the zero Node for one that is none, and whether the leader hears it.
func (v *View) Node(id starling.NodeID) (n starling.Node, alive bool) {
	s := v.state.Load()
	n, ok := s.topology.Node(id)
	if !ok {
		return n, false
	}
	_, alive = slices.BinarySearch(s.alive, id)
	return n, alive
}

// Alive returns the members that the leader hears, by id. It is shared: do not change it.
func (v *View) Alive() []starling.Node { return v.state.Load().nodes }

// Members returns all nodes of the cluster, by id. It is shared: do not change it.
func (v *View) Members() []starling.Node { return v.Topology().Nodes }

// Revoked reports whether the node was a member and was removed: its certificate is worthless.
func (v *View) Revoked(id starling.NodeID) bool {
	t := v.Topology()
	if id > t.Last {
		return false // newer than what we know
	}
	_, ok := t.Node(id)
	return !ok
}

// LeaseUntil returns when this node's lease ends, by its own monotonic clock; a time in the past when it has
// none. An owner acts for its partitions only until starling.NodeLeaseGuard before that. The lease counts from
// the moment at which the heartbeat was sent that earned it, so it ends here before the leader's wait does.
func (v *View) LeaseUntil() time.Time { return v.base.Add(time.Duration(v.lease.Load())) }

// Ready reports whether the view has a topology with this node in it, and a lease that runs.
func (v *View) Ready() bool {
	_, ok := v.Topology().Node(v.cfg.Node.ID)
	return ok && v.cfg.Now().Before(v.LeaseUntil())
}

// Managers returns the addresses of all nodes that hold the replicated state, for the next start.
func (v *View) Managers() []string {
	var addrs []string
	for _, n := range v.Topology().Nodes {
		if n.Replica != 0 {
			addrs = append(addrs, n.Addr)
		}
	}
	return addrs
}

// Metrics returns the view's metrics.
func (v *View) Metrics() *metrics.Set { return v.metrics.set }

// install takes a push. A topology older than the one in hand is dropped; who is alive is always taken,
// because only the newest leader's session gets here.
func (v *View) install(p TopologyPush) {
	v.mu.Lock()
	old := v.state.Load()
	t := p.Topology
	if t == nil || t.Map == nil || t.Index <= old.topology.Index {
		t = old.topology
	}
	s := &viewState{topology: t, alive: p.Alive, changed: make(chan struct{})}
	for _, id := range p.Alive {
		if n, ok := t.Node(id); ok {
			s.nodes = append(s.nodes, n)
		}
	}
	v.state.Store(s)
	v.mu.Unlock()
	close(old.changed)
	v.beat()
}

// patch takes a push of what changed. One that does not fit the topology in hand is an error: the next session begins with
// a whole one.
func (v *View) patch(d TopologyDelta) error {
	old := v.state.Load()
	p := TopologyPush{Alive: d.Alive}
	if d.Same {
		p.Alive = old.alive
	}
	if d.Index > old.topology.Index {
		var err error
		if p.Topology, err = old.topology.Patch(d); err != nil {
			v.whole.Store(true)
			return err
		}
	}
	v.install(p)
	return nil
}

// beat asks for a heartbeat now, not at the next tick: the leader waits for our word that we act on what it
// pushed.
func (v *View) beat() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// extend takes a lease that was earned by a heartbeat sent at the given instant.
func (v *View) extend(sent time.Time, r Renewal) {
	length := min(time.Duration(r.Lease)*time.Microsecond, starling.NodeLease)
	if length <= 0 || r.Index > v.Topology().Index {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if until := int64(sent.Add(length).Sub(v.base)); !v.closing && until > v.lease.Load() {
		v.lease.Store(until)
	}
}

// names notes from which index on the leader lets proposals name their request; 0 when it does not.
func (v *View) names(since uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.since = since
}

// seen returns the index of the topology that this node acts on.
func (v *View) seen() uint64 {
	index := v.Topology().Index
	if v.cfg.Settled != nil {
		index = min(index, v.cfg.Settled())
	}
	return index
}

// lead records who leads; the zero leader when the session ended.
func (v *View) lead(l leader) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.leader, v.since = l, 0
	close(v.found)
	v.found = make(chan struct{})
}

// leading returns who leads and a channel that is closed when that changes.
func (v *View) leading() (leader, uint64, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.leader, v.since, v.found
}

// deposed reports whether a manager with this claim has a successor; otherwise it remembers the claim.
func (v *View) deposed(claim uint64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if claim < v.claim {
		return true
	}
	v.claim = claim
	return false
}
