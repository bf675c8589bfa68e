package cluster

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"starling"
	"starling/transport"
)

const (
	silenceMax   = starling.HeartbeatInterval * 5 / 2 // a leader that answers nothing for so long is given up
	backOffMin   = 20 * time.Millisecond              // from one round through the managers to the next, and for its answers
	backOffMax   = 200 * time.Millisecond
	heartbeatMax = 32 // heartbeats on their way whose sending time is remembered
)

// run keeps one session with the leader until ctx ends. A round through the managers begins each time the pause is over,
// whether the last one had all its answers or not.
func (v *View) run(ctx context.Context) {
	pause := backOffMin
	for ctx.Err() == nil {
		began := time.Now()
		if v.search(ctx, pause) {
			pause = backOffMin
			continue
		}
		v.metrics.searches.Inc()
		if !sleep(ctx, pause-time.Since(began)) {
			return
		}
		pause = min(pause*3/2, backOffMax)
	}
}

// A greeting is what one manager answered to Hello.
type greeting struct {
	leader   leader
	stream   transport.Stream // an open session; nil when the manager does not lead
	redirect string           // who leads according to a manager that does not
}

// search asks all managers at once, and whom they name, so that a dead one holds nobody up, until one leads or patience is
// over; it attends that session to its end and returns true.
func (v *View) search(ctx context.Context, patience time.Duration) (attended bool) {
	round, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answers := make(chan greeting)
	var asked []string
	open := 0
	ask := func(addr string) {
		if slices.Contains(asked, addr) {
			return
		}
		asked = append(asked, addr)
		open++
		go func() { answers <- v.greet(round, addr) }()
	}
	for _, addr := range v.candidates() {
		ask(addr)
	}
	var won greeting
	for ; open > 0; open-- {
		switch g := <-answers; {
		case g.stream != nil && won.stream == nil:
			won = g
			cancel() // the others have nothing to tell
		case g.stream != nil:
			g.stream.Cancel()
		case g.redirect != "" && won.stream == nil:
			ask(g.redirect)
		}
	}
	if won.stream == nil {
		return false
	}
	v.session(ctx, won.stream, won.leader)
	return true
}

// sleep waits for d; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// candidates returns where a manager may be: this process, those that the topology names, those of the
// configuration.
func (v *View) candidates() []string {
	var list []string
	if v.cfg.Local != nil {
		list = append(list, v.cfg.Node.Addr)
	}
	for _, addr := range append(v.Managers(), v.cfg.Managers...) {
		if addr != v.cfg.Node.Addr {
			list = append(list, addr)
		}
	}
	return list
}

// dial opens a control stream to a manager; to the one in this process without the network.
func (v *View) dial(ctx context.Context, l leader) (transport.Stream, error) {
	if l.local {
		return v.cfg.Local.Stream()
	}
	return v.cfg.Dialer.Open(ctx, l.addr, transport.ChannelControl)
}

// greet asks one manager for a session until ctx ends.
func (v *View) greet(ctx context.Context, addr string) (g greeting) {
	g.leader = leader{addr: addr, local: v.cfg.Local != nil && addr == v.cfg.Node.Addr}
	stream, err := v.dial(ctx, g.leader)
	if err != nil {
		return g
	}
	stop := context.AfterFunc(ctx, stream.Cancel)
	err = WriteMessage(stream, MessageHello, v.hello())
	if err != nil {
		stream.Cancel()
		return g
	}
	kind, body, err := ReadMessage(stream, MessageMax)
	if err != nil || !stop() {
		stream.Cancel()
		return g
	}
	switch kind {
	case MessageRedirect:
		var r Redirect
		if DecodeMessage(body, &r) == nil {
			g.redirect = r.Addr
		}
	case MessageWelcome:
		var w Welcome
		if DecodeMessage(body, &w) == nil && !v.deposed(w.Claim) {
			g.stream = stream
			return g
		}
	}
	stream.Cancel()
	return g
}

// hello says what this node knows already.
func (v *View) hello() Hello {
	h := Hello{Fresh: v.lease.Load() == 0, Feed: v.cache.reached(), Level: LevelNow, Deltas: true}
	if !v.whole.Load() {
		h.Topology = v.Topology().Index
	}
	return h
}

// session sends heartbeats and takes what is pushed until the stream fails, the leader falls silent or ctx
// ends.
func (v *View) session(ctx context.Context, stream transport.Stream, l leader) {
	v.lead(l)
	v.metrics.sessions.Inc()
	began := v.cfg.Now()
	s := &session{view: v, stream: stream}
	ended := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { s.write(ctx, ended) })
	err := s.read()
	close(ended)
	stream.Cancel()
	writer.Wait()
	v.lead(leader{})
	if ctx.Err() == nil {
		v.cfg.Log.Info("session with the leading manager ended", slog.String("leader", l.addr),
			slog.Duration("after", v.cfg.Now().Sub(began)), slog.Any("error", err))
	}
}

// A session is one stream to the leader.
type session struct {
	view     *View
	stream   transport.Stream
	reported time.Time  // when partitions were last reported; the writer's own
	mu       sync.Mutex // a leaf: guards what follows
	seq      uint64
	sent     [heartbeatMax]time.Time // when heartbeat seq%heartbeatMax was sent
}

// write sends a heartbeat every interval, and at once when asked, until the session ends; when ctx ends it
// says farewell first.
func (s *session) write(ctx context.Context, ended <-chan struct{}) {
	tick := time.NewTicker(starling.HeartbeatInterval)
	defer tick.Stop()
	for {
		if err := s.heartbeat(false); err != nil {
			s.stream.Cancel()
			return
		}
		select {
		case <-ended:
			return
		case <-ctx.Done():
			// The leader ends the session when it has read the farewell; the reader's deadline bounds that.
			if s.heartbeat(true) != nil {
				s.stream.Cancel()
			}
			return
		case <-tick.C:
		case <-s.view.kick:
		}
	}
}

func (s *session) heartbeat(leaving bool) error {
	now := s.view.cfg.Now()
	h := Heartbeat{Seen: s.view.seen(), Leaving: leaving, Takes: s.view.orders.taken.Load(), Stopping: s.view.stopping.Load(), Done: s.view.orders.outcomes()}
	if s.view.cfg.Load != nil {
		h.Load = s.view.cfg.Load()
	}
	if s.view.cfg.Report != nil && now.Sub(s.reported) >= ReportInterval {
		s.reported = now
		h.Report = &Report{Rows: s.view.cfg.Report()}
	}
	s.mu.Lock()
	s.seq++
	h.Seq = s.seq
	s.sent[h.Seq%heartbeatMax] = now
	s.mu.Unlock()
	if err := s.stream.SetWriteDeadline(time.Now().Add(silenceMax)); err != nil {
		return err
	}
	return WriteMessage(s.stream, MessageHeartbeat, h)
}

// sentAt returns when a heartbeat was sent; false when it was never or too long ago.
func (s *session) sentAt(seq uint64) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[seq%heartbeatMax], seq <= s.seq && seq+heartbeatMax > s.seq
}

// read takes what the leader sends until the stream fails or nothing came for silenceMax.
func (s *session) read() error {
	for {
		if err := s.stream.SetReadDeadline(time.Now().Add(silenceMax)); err != nil {
			return err
		}
		kind, body, err := ReadMessage(s.stream, MessageMax)
		if err != nil {
			return err
		}
		if err := s.take(kind, body); err != nil {
			return err
		}
	}
}

func (s *session) take(kind MessageKind, body []byte) error {
	switch kind {
	case MessageTopology:
		var p TopologyPush
		if err := DecodeMessage(body, &p); err != nil {
			return err
		}
		if p.Topology != nil && p.Topology.Map != nil {
			p.Topology.Map.Complete()
		}
		s.view.whole.Store(false)
		s.view.install(p)
	case MessageDelta:
		var d TopologyDelta
		if err := DecodeMessage(body, &d); err != nil {
			return err
		}
		return s.view.patch(d)
	case MessageFeed:
		var p FeedPush
		if err := DecodeMessage(body, &p); err != nil {
			return err
		}
		s.view.cache.take(p)
	case MessageRenewal:
		var r Renewal
		if err := DecodeMessage(body, &r); err != nil {
			return err
		}
		s.view.names(r.Since)
		if sent, ok := s.sentAt(r.Seq); ok {
			s.view.extend(sent, r)
		}
	case MessageOrder:
		var o Order
		if err := DecodeMessage(body, &o); err != nil {
			return err
		}
		s.view.take(o)
	case MessageRedirect:
		return starling.Errorf(starling.Moved, "attend session", "the manager stopped leading")
	}
	return nil // a kind that a newer manager added is nothing to us
}

// announce tells the cluster when this node's name, address or zone are not what the cluster believes.
func (v *View) announce(ctx context.Context) {
	for {
		changed := v.Changed()
		known, ok := v.Topology().Node(v.cfg.Node.ID)
		n := v.cfg.Node
		if ok && (known.Addr != n.Addr || known.HTTP != n.HTTP || known.Zone != n.Zone || n.Name != "" && known.Name != n.Name) {
			bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
			_, err := v.Propose(bounded, UpdateNode{Node: n})
			cancel()
			if err != nil && ctx.Err() == nil {
				v.cfg.Log.Warn("the cluster could not be told of this node's address", slog.Any("error", err))
				if !sleep(ctx, time.Second) {
					return
				}
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
