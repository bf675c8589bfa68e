// Package manager runs on the nodes that hold the replicated state. The one whose replica leads keeps the soft
// state of all nodes from their heartbeats, renews their leases, pushes the topology and the feed of changes,
// and assigns partitions whose owner is gone. Every manager signs the certificates of nodes that join.
package manager

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/transport"
)

// A Replica is this node's copy of the replicated state; the replication library implements it. Its errors mean
// that the outcome is not known; a refusal of the state is a reply.
type Replica interface {
	// Propose returns the encoded reply of the state and the index at which it applied the command here.
	Propose(ctx context.Context, command []byte) (reply []byte, index uint64, err error)
	// Read answers a cluster.Query with a cluster.Answer, linearizably.
	Read(ctx context.Context, q any) (any, error)
	// Leader returns which replica leads in which term, as far as this one knows.
	Leader() (replica, term uint64, ok bool)
	// Members returns the voting replicas.
	Members(ctx context.Context) ([]uint64, error)
	AddReplica(ctx context.Context, replica uint64) error
	RemoveReplica(ctx context.Context, replica uint64) error
	// Transfer has another replica lead in this one's place and waits until it does.
	Transfer(ctx context.Context, replica uint64) error
}

// A Signer is the cluster's certificate authority.
type Signer interface {
	// Sign returns a certificate (DER) for the key of a PKCS #10 request (DER) whose signature it checks.
	Sign(request []byte, node starling.NodeID, roles starling.Roles) ([]byte, error)
	Certificate() []byte      // its own, DER
	Marshal() ([]byte, error) // with its private key, for another manager
}

// Config says what a Manager needs.
type Config struct {
	Node      starling.NodeID    // this node; 0 until it has joined, which is before Open
	Endpoint  transport.Endpoint // not opened yet: New registers the handlers
	Machine   *cluster.Machine   // what Replica applies to
	Signer    Signer
	MoveMax   int            // partitions taken from living owners at once, to even out; 0 for 4
	MovePause time.Duration  // between two such steps; 0 for 500 ms
	Balance   balance.Config // the zero value for balance.DefaultConfig
	Log       *slog.Logger
	Now       func() time.Time // a monotonic clock; nil for time.Now
}

const (
	sessionMax    = 2048                  // nodes at once
	callMax       = 256                   // questions at once
	joinMax       = 16                    // joiners at once
	answerTimeMax = 3 * time.Second       // for one question
	pollInterval  = 20 * time.Millisecond // between two looks at who leads
)

// A Manager serves ChannelControl and ChannelJoin. Create it with New, start it with Open, and Close it; Close
// waits for its loop, the goroutines of its reign and every stream it serves.
type Manager struct {
	cfg     Config
	metrics managerMetrics
	reign   atomic.Pointer[reign]   // nil while this replica does not lead
	replica atomic.Pointer[Replica] // nil before Open
	calls   chan struct{}           // holds one token for each question being answered
	joins   chan struct{}
	backups chan struct{} // holds a token while a backup is taken
	streams chan struct{}
	look    chan struct{} // one token: another replica may lead
	group   sync.WaitGroup
	mu      sync.Mutex // a leaf: guards what follows
	serving sync.WaitGroup
	closed  bool
	cancel  context.CancelFunc
	open    map[transport.Stream]struct{} // served now; Close cancels them
}

// New returns a manager that answers everything with "not the leader" until it is opened.
func New(cfg Config) *Manager {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MoveMax == 0 {
		cfg.MoveMax = 4
	}
	if cfg.MovePause == 0 {
		cfg.MovePause = 500 * time.Millisecond
	}
	if cfg.Balance == (balance.Config{}) {
		cfg.Balance = balance.DefaultConfig()
	}
	m := &Manager{cfg: cfg, calls: make(chan struct{}, callMax), joins: make(chan struct{}, joinMax), backups: make(chan struct{}, 1),
		streams: make(chan struct{}, sessionMax), look: make(chan struct{}, 1), open: map[transport.Stream]struct{}{}}
	m.metrics.init(m)
	cfg.Endpoint.Handle(transport.ChannelControl, func(s transport.Stream) { m.serve(s, s.Peer(), false) })
	cfg.Endpoint.Handle(transport.ChannelJoin, m.serveJoin)
	return m
}

// Open starts to lead whenever the replica does. self is this node's id and its replica's.
func (m *Manager) Open(r Replica, node starling.NodeID, replica uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	m.mu.Lock()
	m.cfg.Node = node
	m.cancel = cancel
	m.mu.Unlock()
	m.replica.Store(&r)
	m.group.Go(func() { m.run(ctx, r, replica) })
}

// LeaderChanged has the manager look at once who leads, not at its next look. It does not block.
func (m *Manager) LeaderChanged() {
	select {
	case m.look <- struct{}{}:
	default:
	}
}

// Close stops leading, ends every stream and waits for all of it.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.cancel != nil {
		m.cancel()
	}
	m.closed = true
	for s := range m.open {
		s.Cancel()
	}
	m.mu.Unlock()
	m.group.Wait()
	m.serving.Wait()
	return nil
}

// Metrics returns the manager's metrics.
func (m *Manager) Metrics() *metrics.Set { return m.metrics.set }

// Leads reports whether this manager leads now.
func (m *Manager) Leads() bool { return m.reign.Load() != nil }

// Stream opens a control stream to this manager without the network. It implements cluster.Local.
func (m *Manager) Stream() (transport.Stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, starling.Errorf(starling.Unavailable, "open stream", "the manager is stopping")
	}
	peer := transport.Peer{Node: m.cfg.Node, Roles: starling.AllRoles}
	near, far := newPipe(peer)
	m.group.Go(func() { m.serve(far, peer, true) })
	return near, nil
}

// admit registers a stream as served; false means that it was ended because of a limit or because the manager
// is closed. done must be called when it is served.
func (m *Manager) admit(s transport.Stream, slots chan struct{}) (done func(), ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	full := false
	select {
	case slots <- struct{}{}:
	default:
		full = true
	}
	if full || m.closed {
		if !full {
			<-slots
		}
		s.Cancel()
		return nil, false
	}
	m.open[s] = struct{}{}
	m.serving.Add(1)
	return func() {
		s.Cancel()
		m.mu.Lock()
		delete(m.open, s)
		m.mu.Unlock()
		<-slots
		m.serving.Done()
	}, true
}

// Propose proposes one command to a replica and decodes the reply; it tries again until ctx ends while no
// leader answers. It is how the first node sets up its cluster, before it is a member that a View could serve.
func Propose(ctx context.Context, r Replica, cmd cluster.Command) (cluster.Reply, error) {
	raw, err := cluster.EncodeCommand(cmd)
	if err != nil {
		return cluster.Reply{}, err
	}
	for {
		reply, _, err := r.Propose(ctx, raw)
		if err == nil {
			return cluster.DecodeReply(reply)
		}
		select {
		case <-ctx.Done():
			return cluster.Reply{}, starling.Errorf(starling.Unavailable, "propose command", "no leader took it in time: %w", err)
		case <-time.After(pollInterval):
		}
	}
}
