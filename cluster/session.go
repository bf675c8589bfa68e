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
	silenceMax   = 3 * starling.HeartbeatInterval // a leader that answers nothing for so long is given up
	greetTimeMax = 200 * time.Millisecond         // for a manager to say whether it leads
	backOffMin   = 20 * time.Millisecond          // between rounds through the managers
	backOffMax   = 200 * time.Millisecond
	heartbeatMax = 32 // heartbeats on their way whose sending time is remembered
)

// run keeps one session with the leader until ctx ends.
func (v *View) run(ctx context.Context) {
	pause := backOffMin
	for ctx.Err() == nil {
		if v.search(ctx) {
			pause = backOffMin
			continue
		}
		v.metrics.searches.Inc()
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, backOffMax)
	}
}

// search asks every manager once, next always the one that the last answer named, until one leads; it attends
// that session to its end and returns true.
func (v *View) search(ctx context.Context) (attended bool) {
	var asked []string
	for queue := v.candidates(); len(queue) > 0 && ctx.Err() == nil; {
		addr := queue[0]
		queue = queue[1:]
		if slices.Contains(asked, addr) {
			continue
		}
		asked = append(asked, addr)
		redirect, opened := v.attend(ctx, addr)
		if opened {
			return true
		}
		if redirect != "" {
			queue = slices.Insert(queue, 0, redirect)
		}
	}
	return false
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

// attend asks one manager for a session and, when it leads, attends the session to its end. redirect is who
// leads according to a manager that does not.
func (v *View) attend(ctx context.Context, addr string) (redirect string, opened bool) {
	l := leader{addr: addr, local: v.cfg.Local != nil && addr == v.cfg.Node.Addr}
	greet, cancel := context.WithTimeout(ctx, greetTimeMax)
	defer cancel()
	stream, err := v.dial(greet, l)
	if err != nil {
		return "", false
	}
	stop := context.AfterFunc(greet, stream.Cancel)
	defer stream.Cancel()
	err = WriteMessage(stream, MessageHello, Hello{Fresh: v.lease.Load() == 0, Feed: v.cache.reached(), Level: LevelNow})
	if err != nil {
		return "", false
	}
	kind, body, err := ReadMessage(stream, MessageMax)
	if err != nil || !stop() {
		return "", false
	}
	switch kind {
	case MessageRedirect:
		var r Redirect
		if DecodeMessage(body, &r) == nil {
			return r.Addr, false
		}
	case MessageWelcome:
		var w Welcome
		if DecodeMessage(body, &w) == nil && !v.deposed(w.Claim) {
			v.session(ctx, stream, l)
			return "", true
		}
	}
	return "", false
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
		s.view.install(p)
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
