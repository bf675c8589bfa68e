package tunnel

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/resume"
	"starling/vpcproxy/splice"
)

// A lineKey names a connection of one network to one gateway.
type lineKey struct {
	network starling.NetworkRef
	gateway starling.NodeID
	number  int // from 0: there is a next one when lineFlows flows are on this
}

// lineFlows is how many flows share a connection. So many of the largest windows fill half of the connection's, of which the other end
// hears anew only when a quarter has been read: flows that nobody reads hold up no other.
const lineFlows = 128

// A line is one connection, being made, in use, idle or failed. Its fields are guarded by the tunnel's lock.
type line struct {
	owner  *Tunnel
	key    lineKey
	made   chan struct{} // closed when tunnel or err is set
	tunnel transport.Tunnel
	err    error
	flows  int
	idle   *time.Timer // ends it; nil while there are flows

	watched   bool               // the gateway can ask for a move: set before made is closed
	moving    context.Context    // ends when it has
	move      context.CancelFunc // ends it
	successor starling.NodeID    // where to
}

// line returns a connection that counts one flow more, for release. With another gateway to turn to it waits no longer than silentTime for
// one that is being made.
func (t *Tunnel) line(ctx context.Context, k lineKey, addr string, another bool) (*line, error) {
	t.mu.Lock()
	l := t.lines[k]
	for l != nil && !l.over() && l.flows >= lineFlows {
		k.number++
		l = t.lines[k]
	}
	if l == nil || l.over() {
		l = &line{owner: t, key: k, made: make(chan struct{})}
		l.moving, l.move = context.WithCancel(context.Background())
		t.lines[k] = l
		if !t.group.Go(func(ctx context.Context) { l.dial(ctx, addr) }) {
			delete(t.lines, k)
			t.mu.Unlock()
			return nil, starling.Errorf(starling.Unavailable, "open flow", "the host is closing")
		}
	}
	l.flows++
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
	t.mu.Unlock()
	var enough <-chan time.Time
	if another {
		enough = time.After(silentTime)
	}
	select {
	case <-l.made:
	case <-enough:
		t.shun(k.gateway)
		l.release()
		return nil, starling.Errorf(starling.Unavailable, "open flow", "no connection to %s in %v", k.gateway, silentTime)
	case <-ctx.Done():
		l.release()
		return nil, starling.Errorf(starling.Timeout, "open flow", "no connection to a gateway in time")
	}
	if l.err != nil {
		return nil, l.err
	}
	return l, nil
}

// over reports whether a line is of no more use. The caller holds the tunnel's lock.
func (l *line) over() bool {
	select {
	case <-l.made:
	default:
		return false
	}
	if l.err != nil {
		return true
	}
	select {
	case <-l.tunnel.Done():
		return true
	default:
		return false
	}
}

// dial makes the connection and hears from then on what the gateway has to say about it.
func (l *line) dial(ctx context.Context, addr string) {
	dialling, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := l.owner.cfg.Dial.Dial(dialling, addr)
	var watch transport.Stream
	if err == nil {
		watch, err = l.watch(dialling, c)
	}
	l.owner.mu.Lock()
	l.tunnel, l.err, l.watched = c, err, watch != nil
	l.owner.mu.Unlock()
	if err != nil {
		l.owner.shun(l.key.gateway)
	}
	close(l.made)
	if watch != nil {
		l.hear(ctx, watch)
	}
	if err != nil {
		return
	}
	select { // nothing to hear, or it was the connection's end
	case <-c.Done():
	case <-ctx.Done():
	}
	if err := c.Err(); err != nil {
		l.owner.cfg.Log.Warn("a connection to a gateway ended, and its flows with it", "network", l.key.network, "gateway", l.key.gateway, "error", err)
	}
}

// watch asks to be told when flows should move; nil when the gateway is of an older release and does not know how.
func (l *line) watch(ctx context.Context, c transport.Tunnel) (transport.Stream, error) {
	s, err := c.Open(ctx, transport.ChannelTunnel)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, s.Cancel)()
	var b [1]byte
	if _, err = s.Write(header.Append(nil, header.Header{Version: header.Movable, Kind: header.Watch})); err == nil {
		_, err = io.ReadFull(s, b[:])
	}
	if err != nil || header.Answer(b[0]) != header.Open {
		s.Cancel()
		return nil, err
	}
	return s, nil
}

// hear notes where the gateway wants the connection's flows to go on, until the connection ends.
func (l *line) hear(ctx context.Context, watch transport.Stream) {
	defer watch.Cancel()
	defer context.AfterFunc(ctx, watch.Cancel)()
	for {
		id, err := header.ReadNotice(watch)
		if err != nil {
			return
		}
		l.owner.mu.Lock()
		if l.successor = id; id == 0 && l.moving.Err() != nil {
			l.moving, l.move = context.WithCancel(context.Background()) // it was called off
		}
		move := l.move
		l.owner.mu.Unlock()
		if id != 0 {
			move()
		}
	}
}

// shun has a gateway that does not answer be tried last for a while.
func (t *Tunnel) shun(id starling.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shuns[id] = time.Now().Add(shunTime)
}

// shunned reports whether a gateway did not answer a moment ago.
func (t *Tunnel) shunned(id starling.NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until, ok := t.shuns[id]
	if ok && time.Now().After(until) {
		delete(t.shuns, id)
		ok = false
	}
	return ok
}

// release gives a flow's place back. The last one lets the connection end after a while.
func (l *line) release() {
	l.owner.mu.Lock()
	defer l.owner.mu.Unlock()
	l.flows--
	if l.flows == 0 && l.idle == nil {
		l.idle = time.AfterFunc(idleTime, l.expire)
	}
}

// expire ends a connection without flows.
func (l *line) expire() {
	l.owner.mu.Lock()
	gone := l.flows == 0
	if gone && l.owner.lines[l.key] == l {
		delete(l.owner.lines, l.key)
	}
	l.owner.mu.Unlock()
	if gone {
		l.end()
	}
}

// end closes the connection, if one was made.
func (l *line) end() {
	l.owner.mu.Lock()
	c := l.tunnel
	if l.idle != nil {
		l.idle.Stop()
	}
	l.owner.mu.Unlock()
	if c != nil {
		c.Close() // which ends hear, too
	}
}

// A flow is a stream that counts on its line until it is given up or both of its directions have ended.
type flow struct {
	transport.Stream
	line *line
	ends atomic.Int32 // directions that have ended well
	once sync.Once

	token resume.Token // zero when it ends with its gateway
}

// Read is as the stream's.
func (f *flow) Read(p []byte) (int, error) {
	n, err := f.Stream.Read(p)
	if err == io.EOF {
		f.end()
	}
	return n, err
}

// CloseWrite is as the stream's.
func (f *flow) CloseWrite() error {
	err := f.Stream.CloseWrite()
	f.end()
	return err
}

func (f *flow) end() {
	if f.ends.Add(1) == 2 {
		f.once.Do(f.line.release)
	}
}

// Cancel abandons the stream.
func (f *flow) Cancel() {
	f.Stream.Cancel()
	f.once.Do(f.line.release)
}

// A movable is a flow that can go on at another gateway.
type movable struct{ *flow }

var _ splice.Movable = movable{}

// Moving ends when the gateway asks for it.
func (f movable) Moving() context.Context {
	f.line.owner.mu.Lock()
	defer f.line.owner.mu.Unlock()
	return f.line.moving
}

// Resume goes on with the flow at the gateway that the present one named.
func (f movable) Resume(ctx context.Context, sent uint64) (transport.Stream, uint64, error) {
	t := f.line.owner
	t.mu.Lock()
	successor := f.line.successor
	t.mu.Unlock()
	next, theirs, err := t.resume(ctx, f, successor, sent)
	if err != nil {
		t.m.stayed.Inc()
		return nil, 0, err
	}
	t.m.moved.Inc()
	return next, theirs, nil
}

func (t *Tunnel) resume(ctx context.Context, f movable, successor starling.NodeID, sent uint64) (transport.Stream, uint64, error) {
	addr := ""
	for _, g := range t.cfg.Gateways() {
		if g.ID == successor {
			addr = g.Addr
		}
	}
	if addr == "" {
		return nil, 0, starling.Errorf(starling.Unavailable, "resume flow", "%s is no living gateway", successor)
	}
	head := header.Append(nil, header.Header{Version: header.Movable, Kind: header.Resume, From: f.line.key.gateway, Token: f.token, Sent: sent})
	next, answer, err := t.try(ctx, lineKey{network: f.line.key.network, gateway: successor}, addr, false, func(bool) []byte { return head })
	if err != nil {
		return nil, 0, err
	}
	if answer != header.Open {
		return nil, 0, refusal(answer)
	}
	theirs, err := header.ReadSent(next)
	if err != nil {
		next.Cancel()
		return nil, 0, err
	}
	_ = next.SetReadDeadline(time.Time{}) // fails on a stream that has ended, which the reading says
	next.token = f.token
	return movable{next}, theirs, nil
}
