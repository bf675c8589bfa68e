package tunnel

import (
	"context"
	"io"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/header"
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
