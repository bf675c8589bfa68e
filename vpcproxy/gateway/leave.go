package gateway

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"sync"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/handover"
	"starling/vpcproxy/header"
	"starling/vpcproxy/resume"
	"starling/vpcproxy/splice"
)

// Handover is what a gateway needs to give its flows to another of the same machine, and to take those of another.
type Handover struct {
	Dir  string // in which the gateways of this machine find each other; "" for no hand-over. One cluster's
	Self starling.NodeID
	// Successors returns the living gateways that could go on with flows while this one is to be emptied, and false when it is not.
	Successors func() ([]starling.NodeID, bool)
}

const (
	askEvery   = 200 * time.Millisecond // how often the operator's word is asked for
	partTime   = 5 * time.Second        // for the host to have had all that was under way, when its flow has gone
	noticeTime = time.Second            // for a notice to be written
)

func newToken() (t resume.Token) {
	_, _ = rand.Read(t[:]) // which never fails
	return t
}

// openHandover begins to answer other gateways, and to look for one when this is to be emptied.
func (g *Gateway) openHandover() error {
	h := g.cfg.Handover
	if h.Dir == "" {
		return nil
	}
	var err error
	if g.desk, err = handover.Listen(h.Dir, h.Self, g.answer); err != nil {
		return err
	}
	g.group.Go(g.mindSuccessor)
	return nil
}

// mindSuccessor tells hosts where their flows should go on while the gateway is to be emptied and another is there to take them.
func (g *Gateway) mindSuccessor(ctx context.Context) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ids, leaving := g.cfg.Handover.Successors()
		next := starling.NodeID(0)
		for _, id := range ids {
			if leaving && id != g.cfg.Handover.Self && handover.Here(g.cfg.Handover.Dir, id) {
				next = id
				break
			}
		}
		g.name(next)
	}
}

// name makes id the successor, 0 for none, and tells the hosts, when it is another than before.
func (g *Gateway) name(id starling.NodeID) {
	g.mu.Lock()
	var tell []*watch
	if id != g.successor {
		g.successor = id
		for w := range g.watches {
			tell = append(tell, w)
		}
	}
	g.mu.Unlock()
	for _, w := range tell {
		w.tell(id)
	}
}

// A watch is a connection of a host that asked to be told.
type watch struct {
	mu     sync.Mutex // guards writing to stream
	stream transport.Stream
}

func (w *watch) tell(successor starling.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.stream.SetWriteDeadline(time.Now().Add(noticeTime)) // both fail when the host is gone, and its flows with it
	_, _ = w.stream.Write(header.AppendNotice(nil, successor))
}

// serveWatch keeps a host's watch until its connection ends.
func (g *Gateway) serveWatch(s transport.Stream) {
	w := &watch{stream: s}
	if _, err := s.Write([]byte{byte(header.Open)}); err != nil {
		return
	}
	g.mu.Lock()
	g.watches[w] = struct{}{}
	id := g.successor
	g.mu.Unlock()
	if id != 0 {
		w.tell(id)
	}
	stop := context.AfterFunc(g.group.Context(), s.Cancel)
	_, _ = io.Copy(io.Discard, s) // a host says nothing: it ends
	stop()
	g.mu.Lock()
	delete(g.watches, w)
	g.mu.Unlock()
}

// A movable is a flow of this gateway that another may take.
type movable struct {
	*attempt
	joint *splice.Joint
	conn  *net.TCPConn
	wish  chan *wish // of one who wants it
	over  chan struct{}
}

// A wish is a successor's conversation about one flow.
type wish struct {
	conn *handover.Conn
	sent uint64 // bytes that the host has sent in all
	done chan struct{}
}

// lend notes that a flow may be asked for, until end.
func (g *Gateway) lend(f *attempt, j *splice.Joint, c *net.TCPConn) *movable {
	m := &movable{f, j, c, make(chan *wish), make(chan struct{})}
	g.mu.Lock()
	g.movables[f.token] = m
	g.mu.Unlock()
	return m
}

func (m *movable) end() {
	g := m.gateway
	g.mu.Lock()
	if g.movables[m.token] == m {
		delete(g.movables, m.token)
	}
	g.mu.Unlock()
	close(m.over)
}

// answer is asked by another gateway: whether this one is here, or for a flow.
func (g *Gateway) answer(c *handover.Conn) {
	var q resume.Question
	if _, err := c.Hear(&q); err != nil {
		return
	}
	g.mu.Lock()
	m := g.movables[q.Token]
	g.mu.Unlock()
	if q.Token == (resume.Token{}) {
		_ = c.Say(resume.Offer{Here: true}) // who asked may be gone
		return
	}
	if m == nil || m.host != q.Host {
		_ = c.Say(resume.Offer{})
		return
	}
	if c.Say(resume.Offer{Here: true, Network: m.grant.Ref()}) != nil {
		return
	}
	var w resume.Wanted
	if _, err := c.Hear(&w); err != nil || !w.Wanted {
		return
	}
	m.joint.Pause()
	mine := &wish{c, q.Sent, make(chan struct{})}
	select {
	case m.wish <- mine:
		<-mine.done
	case <-m.over:
	}
}

// leave gives a paused flow to who wants it. It has ended here then: moved, or reset when that failed half-way.
func (m *movable) leave(s transport.Stream) {
	w := <-m.wish // whoever paused it is there
	defer close(w.done)
	if err := m.hand(s, w); err != nil {
		m.gateway.m.lost.Inc()
		m.gateway.cfg.Log.Warn("flow not handed over", "to", m.To, "network", m.grant.Ref(), "function", m.grant.Function, "error", err)
		m.joint.Abort()
		return
	}
	if m.joint.Release() {
		m.gateway.m.handed.Inc()
	}
	// What is under way to the host would be lost with the stream. The host gives it up when it has all; that it said its last tells nothing.
	if u, ok := s.(transport.Unread); ok {
		select {
		case <-u.Unread():
		case <-time.After(partTime):
		case <-m.gateway.group.Context().Done():
		}
	}
	s.Cancel()
}

// hand sends the flow's socket and all that is under way.
func (m *movable) hand(s transport.Stream, w *wish) error {
	if err := m.joint.Take(s, w.sent); err != nil {
		return err
	}
	a := m.joint.Account()
	unsent, unwritten := a.Unsent(), a.Unwritten()
	g := m.grant
	record := resume.Flow{Function: g.Function, Network: g.Network, Version: g.Version, Instance: g.Instance, To: m.To, Began: m.began.UnixMilli(),
		Sent: a.Sent(), Taken: a.Taken(), Unsent: len(unsent), Unwritten: len(unwritten)}
	raw, err := m.conn.SyscallConn()
	if err != nil {
		return err
	}
	var said error
	if err := raw.Control(func(fd uintptr) { said = w.conn.Say(record, int(fd)) }); err != nil {
		return err
	}
	if said != nil {
		return said
	}
	if err := w.conn.Send(unsent); err != nil {
		return err
	}
	if err := w.conn.Send(unwritten); err != nil {
		return err
	}
	var had resume.Wanted
	if _, err := w.conn.Hear(&had); err != nil {
		return err
	}
	if !had.Wanted {
		return starling.Errorf(starling.Denied, "hand flow over", "the successor does not take it")
	}
	return nil
}
