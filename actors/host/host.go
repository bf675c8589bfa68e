// Package host is the shell of vmpool on the wire: it starts and stops instances for partitions, runs calls
// that show a lease, and answers fences. One per machine. What it decides is only what nobody else can: whether
// there is room, whether a message or a lease is of a past epoch, whether a slot is free.
package host

import (
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/host/guard"
	"starling/actors/wire"
	"starling/cluster"
	"starling/internal/audit"
	"starling/internal/run"
	"starling/metrics/profile"
	"starling/store/code"
	"starling/vmpool"
)

// CodeStore gives the code of a version on this host, as a folder or as a mount. Both stay until release is called.
type CodeStore interface {
	Take(ctx context.Context, v *starling.Version) (at code.Taken, release func(), err error)
}

// Config is what a host works with and what it may use.
type Config struct {
	Node        starling.NodeID
	Zone        starling.Zone
	Region      string                              // AWS_REGION of functions
	Pools       map[starling.Isolation]*vmpool.Pool // one for each isolation that this host gives; at least one
	Catalog     cluster.Catalog
	Code        CodeStore
	Post        actors.Post
	Logs        vmpool.LogSink
	Schedulers  func() []starling.NodeID // whom to report to
	Stopping    func() bool              // the node is to be empty: reports say so, and no new instances are placed here; nil for never
	MemoryMiB   int                      // sum of the memory of all instances at most
	InstanceMax int                      // instances at most, starting ones included
	StartMax    int                      // instances started at once; 0 means 8
	StartTime   time.Duration            // longest start with code fetch and initialisation; 0 means 60 s
	InitTimeout time.Duration            // the function's own initialisation; 0 means 10 s
	LifeMax     time.Duration            // of one instance; 0 means 2 h
	Rouse       func()                   // told when a start begins and when it ended, to keep the cores awake for it and for the first call; nil for nobody
	Crowd       func() float64           // threads that want to run for each processor now; nil for those of this machine
	Processors  int                      // of the machine; 0 means as many as the runtime sees
	Log         *slog.Logger
	Audit       *audit.Log // of the leases that are accepted; nil for none
}

func (c Config) withDefaults() Config {
	if c.StartMax == 0 {
		c.StartMax = 8
	}
	if c.Processors == 0 {
		c.Processors = runtime.NumCPU()
	}
	if c.StartTime == 0 {
		c.StartTime = time.Minute
	}
	if c.Stopping == nil {
		c.Stopping = func() bool { return false }
	}
	if c.Rouse == nil {
		c.Rouse = func() {}
	}
	if c.Schedulers == nil {
		c.Schedulers = func() []starling.NodeID { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

const (
	shardCount   = 64
	endedKept    = 1024 // ended instances remembered, so that a repeated Start or Stop gets the same answer
	versionsKept = 64
)

// A Host runs instances. Create it with New, start it with Open, and Close it. It has one goroutine for reports, one that looks at the machine, one for each
// start under way, and those of its instances; Close waits for all. It closes neither pool nor post.
type Host struct {
	cfg      Config
	group    *run.Group
	book     *profile.Book // what calls of each version used
	starts   chan struct{} // one token for each start at work
	accounts accounts
	nudge    chan struct{} // capacity 1: the room changed
	meters   *meters
	shards   [shardCount]shard

	served   sync.Pool // of *served: calls of other nodes
	inflight atomic.Int64
	draining atomic.Bool

	mu       sync.Mutex // guards what follows; taken before an entry's, never while calling out
	fences   guard.Fences
	used     int // MiB of all entries
	count    int // entries
	starting int
	ended    map[starling.InstanceID]string // why
	endedAt  []starling.InstanceID          // ring over the keys of ended
	endedPos int
	versions []starling.VersionID // whose code is here, most recent first
}

// shard is a part of the entries, so that calls of different instances rarely meet at a lock.
type shard struct {
	mu      sync.RWMutex // guards entries; a leaf
	entries map[starling.InstanceID]*entry
}

// New returns a host that does nothing yet.
func New(cfg Config) *Host {
	h := &Host{cfg: cfg.withDefaults(), nudge: make(chan struct{}, 1), book: profile.NewBook(profile.VersionsMax), ended: map[starling.InstanceID]string{}}
	h.starts = make(chan struct{}, h.cfg.StartMax)
	h.accounts.byID = map[starling.AccountID]*account{}
	h.accounts.processors = h.cfg.Processors
	for i := range h.shards {
		h.shards[i].entries = map[starling.InstanceID]*entry{}
	}
	h.served.New = newServed
	h.meters = newMeters(h)
	return h
}

var _ actors.Receiver = (*Host)(nil)

// Open starts the reports. Starts that arrive before it are refused.
func (h *Host) Open(ctx context.Context) error {
	g := run.New(context.WithoutCancel(ctx))
	h.mu.Lock()
	h.group = g
	h.mu.Unlock()
	g.Go(h.reportLoop)
	g.Go(h.watchLoop)
	return nil
}

// Drain takes no more starts, lets every instance finish its calls and take no further one, and returns when no call is at
// work or ctx ends. Frontends are told Moved and ask for instances elsewhere.
func (h *Host) Drain(ctx context.Context) error {
	h.draining.Store(true)
	h.changed()
	for _, e := range h.all() {
		e.stop(false)
	}
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for h.inflight.Load() > 0 {
		select {
		case <-t.C:
		case <-ctx.Done():
			return starling.Errorf(starling.Timeout, "drain host", "%d calls are still at work", h.inflight.Load())
		}
	}
	return nil
}

// Close ends every instance at once and waits for all goroutines.
func (h *Host) Close() error {
	h.draining.Store(true)
	h.mu.Lock()
	g := h.group
	h.mu.Unlock()
	if g != nil {
		g.Stop() // starts under way end with their context
	}
	for _, e := range h.all() {
		e.stop(true)
	}
	for _, e := range h.all() {
		e.wait()
	}
	return nil
}

// Receive takes the messages for this host. It only sends and starts goroutines.
func (h *Host) Receive(from starling.NodeID, batch []wire.Message) {
	for _, m := range batch {
		switch m := m.(type) {
		case *wire.Start:
			h.start(from, m)
		case *wire.Stop:
			h.stop(from, m)
		case *wire.Fence:
			h.fence(from, m)
		}
	}
}

func (h *Host) shard(id starling.InstanceID) *shard {
	x := uint64(id.Partition)*0x9e3779b97f4a7c15 ^ uint64(id.Epoch)<<32 ^ id.Seq
	x *= 0xff51afd7ed558ccd
	return &h.shards[x>>58]
}

func (h *Host) find(id starling.InstanceID) *entry {
	s := h.shard(id)
	s.mu.RLock()
	e := s.entries[id]
	s.mu.RUnlock()
	return e
}

func (h *Host) all() []*entry {
	var out []*entry
	for i := range h.shards {
		s := &h.shards[i]
		s.mu.RLock()
		for _, e := range s.entries {
			out = append(out, e)
		}
		s.mu.RUnlock()
	}
	return out
}

// changed asks for a report soon.
func (h *Host) changed() {
	select {
	case h.nudge <- struct{}{}:
	default:
	}
}

// fence raises the epoch of a range: from now on instances in it belong to the asking partition, and of leases older than
// its last recovery only those in use are honoured. A fence of a past epoch is not answered: its sender has lost the range.
func (h *Host) fence(from starling.NodeID, m *wire.Fence) {
	h.mu.Lock()
	if !h.fences.Raise(m) {
		h.mu.Unlock()
		h.cfg.Log.Debug("refuse fence of a past epoch", "partition", m.Partition, "epoch", m.Epoch)
		return
	}
	now := time.Now()
	answer := &wire.Fenced{Partition: m.Partition, Epoch: m.Epoch, Host: h.cfg.Node}
	for _, e := range h.all() {
		if m.Range.Contains(e.key) {
			answer.Instances = append(answer.Instances, e.adopt(from, m, now))
		}
	}
	answer.Runs = h.runs(answer.Instances)
	if l := h.cfg.Audit; l != nil { // after the last instance obeys, before the answer lets anybody grant
		l.Write(audit.Record{Kind: audit.Fence, At: l.Instant(time.Now()), Partition: m.Partition, Epoch: m.Epoch, Range: m.Range, Since: min(m.Since, m.Epoch)})
	}
	h.mu.Unlock()
	h.cfg.Post.Send(wire.Address{Node: from, Partition: m.Partition}, answer)
}
