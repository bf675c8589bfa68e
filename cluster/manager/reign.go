package manager

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/partmap"
)

const (
	confirmTimeMax = 300 * time.Millisecond
	proposeTimeMax = 2 * time.Second
	heldTime       = starling.NodeLease     // for which no orders could be given before partitions are taken from their owners instead
	reconcileTime  = 500 * time.Millisecond // between two looks at the voting replicas
	pulseInterval  = 50 * time.Millisecond  // between two proofs that this process runs
)

// A reign is the time in which this manager leads: from its claim to the moment at which it finds that the
// claim is not the newest, or can no longer tell.
type reign struct {
	manager *Manager
	replica Replica
	self    uint64 // the replica's id
	claim   uint64
	ended   chan struct{} // closed when the reign is over
	wake    chan struct{} // asks for a round now
	joined  chan struct{} // asks for a look at the voting replicas now: a node was heard for the first time
	mu      sync.Mutex    // a leaf: guards what follows
	ledger  *Ledger
	nodes   map[starling.NodeID]*session
	alive   []starling.NodeID // as last pushed, in order
	turn    uint64            // counts the changes of alive
	news    chan struct{}     // closed and replaced when alive changes
	moved   time.Time         // when partitions were last taken from a living owner
	desk    *Desk
	planner *balance.Planner
	ordered time.Time // when orders could last be given, or the reign began
	looked  time.Time // when the planner last looked
	stepped time.Time // when this manager last tried to hand the lead on
	names   bool      // all replicas know requests: they say so, or the state holds some already
	ran     time.Time // when this process was last known to run
	pushes  pushes    // has a lock of its own
}

// run leads whenever the local replica does, until ctx ends. It is the manager's only lasting goroutine.
func (m *Manager) run(ctx context.Context, r Replica, self uint64) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if leader, _, ok := r.Leader(); ok && leader == self {
			m.rule(ctx, r, self)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-m.look:
		}
	}
}

// rule claims the lead and reigns until it is lost.
func (m *Manager) rule(ctx context.Context, r Replica, self uint64) {
	began := m.cfg.Now()
	bounded, cancel := context.WithTimeout(ctx, proposeTimeMax)
	reply, err := Propose(bounded, r, cluster.ClaimLead{Node: m.cfg.Node})
	cancel()
	if err != nil || reply.Claim == nil {
		return
	}
	g := &reign{manager: m, replica: r, self: self, claim: reply.Claim.Index, ended: make(chan struct{}), wake: make(chan struct{}, 1), joined: make(chan struct{}, 1),
		ledger: NewLedger(m.cfg.Node, m.cfg.Now(), began), nodes: map[starling.NodeID]*session{}, news: make(chan struct{}),
		desk: NewDesk(reply.Claim.Index), planner: balance.NewPlanner(m.cfg.Balance), ordered: began, ran: m.cfg.Now()}
	m.metrics.reigns.Inc()
	m.cfg.Log.Info("this manager leads", slog.Uint64("claim", g.claim), slog.Duration("claimed in", m.cfg.Now().Sub(began)))
	m.reign.Store(g)
	ctx, cancel = context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() { defer cancel(); g.confirm(ctx) })
	group.Go(func() { g.keepReplicas(ctx) })
	group.Go(func() { g.pulse(ctx) })
	g.rounds(ctx)
	cancel()
	m.reign.Store(nil)
	close(g.ended)
	group.Wait()
	m.cfg.Log.Info("this manager no longer leads", slog.Uint64("claim", g.claim))
}

// confirm proves again and again that the claim is the newest, and returns when it is not, or when that could
// not be proven for the length of a lease: by then nobody holds a lease of this reign.
func (g *reign) confirm(ctx context.Context) {
	tick := time.NewTicker(starling.HeartbeatInterval)
	defer tick.Stop()
	for {
		began := g.manager.cfg.Now()
		bounded, cancel := context.WithTimeout(ctx, confirmTimeMax)
		answer, err := g.replica.Read(bounded, cluster.Query{What: cluster.QueryClaim})
		cancel()
		if a, ok := answer.(cluster.Answer); err == nil && ok && a.Err == nil {
			if a.Reply.Claim.Index != g.claim {
				return
			}
			g.mu.Lock()
			g.ledger.Confirmed = began
			g.mu.Unlock()
		}
		g.mu.Lock()
		lost := g.manager.cfg.Now().Sub(g.ledger.Confirmed) > starling.NodeLease
		g.mu.Unlock()
		if lost {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// rounds looks at the cluster every pollInterval, at once when something happened, and when a silent node's lease ends, until
// ctx ends, another replica leads or the outcome of a proposal is lost.
func (g *reign) rounds(ctx context.Context) {
	tick, lease := time.NewTicker(pollInterval), time.NewTimer(pollInterval)
	defer tick.Stop()
	defer lease.Stop()
	for ctx.Err() == nil {
		if leader, _, ok := g.replica.Leader(); !ok || leader != g.self {
			return
		}
		now := g.awake()
		if err := g.round(ctx, now); err != nil {
			if ctx.Err() == nil {
				g.manager.cfg.Log.Warn("a change of the partition map has no certain outcome; leading begins anew", slog.Any("error", err))
			}
			return
		}
		g.handOn(ctx)
		g.mu.Lock()
		lease.Reset(g.ledger.NextDeath(g.manager.cfg.Now()))
		g.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-lease.C:
		case <-g.wake:
		}
	}
}

// awake notes that this process runs and returns when. If it stood still before, the wait for silent nodes begins anew. Both
// rounds and pulse call it: whichever comes first after a standstill, wherever in a round that was, no round sees the silence
// before it is forgiven.
func (g *reign) awake() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.manager.cfg.Now()
	if now.Sub(g.ran) > starling.NodeLease/2 {
		g.ledger.Thaw(now)
	}
	g.ran = now
	return now
}

// pulse proves that this process runs while a round waits for the replicas.
func (g *reign) pulse(ctx context.Context) {
	tick := time.NewTicker(pulseInterval)
	defer tick.Stop()
	for {
		g.awake()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round pushes who is alive, plans on one picture of the cluster, proposes the plan and notes what came of it.
// An error means that the plan may or may not come true later: the caller must not lead on under this claim.
func (g *reign) round(ctx context.Context, now time.Time) error {
	m := g.manager
	t := m.cfg.Machine.Topology()
	g.mu.Lock()
	g.dismiss(t)
	g.count(t, now)
	g.desk.follow(t.Map, m.cfg.Now().UnixMilli())
	g.expire(t, now)
	g.names = m.cfg.Machine.Named() || g.ledger.behind(t, cluster.LevelOnce, now) == 0
	picture := g.ledger.Picture(t, now)
	picture.Busy = g.desk.busy()
	moves := 0
	if g.held(t, now) == "" {
		g.ordered = now
		g.command(picture, now)
	} else if now.Sub(g.ordered) >= heldTime && now.Sub(g.moved) >= m.cfg.MovePause {
		moves = m.cfg.MoveMax
	}
	plan := balance.Plan(picture, moves)
	for _, c := range plan {
		g.desk.note(c, g.ledger.whyAssign(t, c))
	}
	g.ledger.Fence(t.Map, plan)
	m.metrics.flying.Set(float64(len(g.desk.open)))
	g.mu.Unlock()
	m.metrics.unowned.Set(float64(len(picture.Claims) - held(picture.Claims)))

	if len(plan) > 0 {
		if err := g.propose(ctx, plan); err != nil {
			return err
		}
	}
	after := m.cfg.Machine.Topology()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ledger.Settle(t.Map, after, plan)
	if slices.ContainsFunc(plan, func(c partmap.Change) bool { return c.To == 0 }) {
		g.moved = now
	}
	return nil
}

func held(claims []balance.Claim) (n int) {
	for _, c := range claims {
		if c == balance.Held {
			n++
		}
	}
	return n
}

func (g *reign) propose(ctx context.Context, plan []partmap.Change) error {
	m := g.manager
	bounded, cancel := context.WithTimeout(ctx, proposeTimeMax)
	defer cancel()
	raw, err := cluster.EncodeCommand(cluster.ChangeMap{Changes: plan, Claim: g.claim})
	if err != nil {
		return err
	}
	began := m.cfg.Now()
	encoded, _, err := g.replica.Propose(bounded, raw) // once only: a second try would race the first
	if err != nil {
		return err
	}
	reply, err := cluster.DecodeReply(encoded)
	if err != nil {
		return err // Moved: there is a newer claim
	}
	m.metrics.assigned.Add(len(plan) - len(reply.Refused))
	level := slog.LevelInfo
	if g.evens(plan) {
		level = slog.LevelDebug // a few at a time, for seconds: not worth a line each
	}
	m.cfg.Log.Log(ctx, level, "partitions got new owners", slog.Int("partitions", len(plan)-len(reply.Refused)), slog.Int("refused", len(reply.Refused)),
		slog.Duration("took", m.cfg.Now().Sub(began)))
	return nil
}

// evens reports whether all of a plan moves partitions between living nodes.
func (g *reign) evens(plan []partmap.Change) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !slices.ContainsFunc(plan, func(c partmap.Change) bool {
		_, released := g.ledger.released[c.Partition]
		return c.To != 0 && !released
	})
}

// dismiss ends the sessions of nodes that were removed. The caller holds the lock.
func (g *reign) dismiss(t *cluster.Topology) {
	for id, s := range g.nodes {
		if _, ok := t.Node(id); !ok {
			delete(g.nodes, id)
			s.stream.Cancel()
		}
	}
}

// count finds who is alive and wakes the sessions when that changed. The caller holds the lock.
func (g *reign) count(t *cluster.Topology, now time.Time) {
	var alive []starling.NodeID
	for _, n := range t.Nodes {
		if g.ledger.Alive(n.ID, now) {
			alive = append(alive, n.ID)
		}
	}
	if g.turn > 0 && slices.Equal(alive, g.alive) {
		return
	}
	for _, id := range g.alive {
		if _, member := t.Node(id); !member || slices.Contains(alive, id) {
			continue
		}
		if g.ledger.member(id).leaving {
			g.manager.cfg.Log.Info("node left", slog.String("node", id.String()))
			continue
		}
		g.manager.metrics.deaths.Inc()
		g.manager.cfg.Log.Warn("node is dead: it was not heard for a whole lease; its partitions go to others", slog.String("node", id.String()))
	}
	g.alive = alive
	g.turn++
	close(g.news)
	g.news = make(chan struct{})
}

// stir asks for a round now.
func (g *reign) stir() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// status returns the soft state for operators.
func (g *reign) status() cluster.Status {
	now := g.manager.cfg.Now()
	t := g.manager.cfg.Machine.Topology()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := cluster.Status{Leader: g.manager.cfg.Node, Claim: g.claim, Orders: g.desk.planned(), Imbalance: g.planner.Imbalance()}
	for _, n := range t.Nodes {
		ns := cluster.NodeStatus{Node: n, Alive: g.ledger.Alive(n.ID, now), Heard: -1}
		if m := g.ledger.nodes[n.ID]; m != nil && !m.heard.IsZero() {
			ns.Level, ns.Takes = m.level, m.takes
			ns.Heard, ns.Seen, ns.Load = now.Sub(m.heard).Milliseconds(), m.seen, m.load
		}
		s.Nodes = append(s.Nodes, ns)
	}
	return s
}
