package tunnel

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/transport"
)

// A lineKey names the connection of one network to one gateway.
type lineKey struct {
	network starling.NetworkRef
	gateway starling.NodeID
}

// A line is one connection, being made, in use, idle or failed. Its fields are guarded by the tunnel's lock.
type line struct {
	owner  *Tunnel
	key    lineKey
	made   chan struct{} // closed when tunnel or err is set
	tunnel transport.Tunnel
	err    error
	failed time.Time
	flows  int
	idle   *time.Timer // ends it; nil while there are flows
}

// line returns a connection that counts one flow more, for release.
func (t *Tunnel) line(ctx context.Context, k lineKey, addr string) (*line, error) {
	t.mu.Lock()
	l := t.lines[k]
	if l == nil || l.over() {
		l = &line{owner: t, key: k, made: make(chan struct{})}
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
	select {
	case <-l.made:
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

func (l *line) dial(ctx context.Context, addr string) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := l.owner.cfg.Dial.Dial(ctx, addr)
	l.owner.mu.Lock()
	l.tunnel, l.err = c, err
	if err != nil {
		l.failed = time.Now()
	}
	l.owner.mu.Unlock()
	close(l.made)
}

// shuns reports whether a gateway did not answer a moment ago.
func (t *Tunnel) shuns(k lineKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lines[k]
	return l != nil && !l.failed.IsZero() && time.Since(l.failed) < shunTime
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
		c.Close()
	}
}

// A flow is a stream that counts on its line until it is given up or both of its directions have ended.
type flow struct {
	transport.Stream
	line *line
	ends atomic.Int32 // directions that have ended well
	once sync.Once
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
