// Package tunnel is a host's way to the gateways: the grants of its instances, and one connection for each network that
// they use.
package tunnel

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/internal/run"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/place"
)

const (
	dialTime   = 4 * time.Second        // for a connection to be made: a gateway that is overrun takes long
	silentTime = 500 * time.Millisecond // in which a gateway says nothing at all, or makes no connection, before a flow tries the next
	answerTime = 15 * time.Second       // for a gateway to have connected
	readTime   = 50 * time.Millisecond  // for what has come to be read, when it was this process that stood still
	shunTime   = time.Second            // a gateway that did not answer is not tried first again for so long
	idleTime   = time.Minute            // after which a connection without flows ends
	triesMax   = 3                      // gateways tried for one flow
)

// Grants is where grants come from; desk.Client is one.
type Grants interface {
	Grant(ctx context.Context, version starling.VersionID, instance starling.InstanceID) ([]byte, error)
	Renew(ctx context.Context, old []byte) ([]byte, error)
}

// Config is what a tunnel needs; all of it.
type Config struct {
	Dial     transport.Tunneler
	Gateways func() []starling.Node // that are alive
	Grants   Grants
	Log      *slog.Logger
}

// A Tunnel carries the flows of one host. Create it with New and Close it; it has a goroutine for each question to a manager
// and each connection that is being made, and Close waits for them.
type Tunnel struct {
	cfg   Config
	group *run.Group
	set   *metrics.Set
	m     counters

	mu    sync.Mutex // guards the rest; a leaf
	lines map[lineKey]*line
	shuns map[starling.NodeID]time.Time // until when a gateway that did not answer is tried last
}

// New returns a tunnel without connections.
func New(cfg Config) *Tunnel {
	t := &Tunnel{cfg: cfg, group: run.New(context.Background()), set: metrics.NewSet(), lines: map[lineKey]*line{}, shuns: map[starling.NodeID]time.Time{}}
	t.m = newCounters(t.set)
	t.set.NewGauge("starling_tunnel_connections", func() float64 {
		t.mu.Lock()
		defer t.mu.Unlock()
		return float64(len(t.lines))
	})
	return t
}

// Metrics returns the tunnel's numbers.
func (t *Tunnel) Metrics() *metrics.Set { return t.set }

// Close ends every connection.
func (t *Tunnel) Close() error {
	t.group.Stop()
	t.mu.Lock()
	lines := t.lines
	t.lines = map[lineKey]*line{}
	t.mu.Unlock()
	for _, l := range lines {
		l.end()
	}
	return nil
}

var errNone = starling.Errorf(starling.Unavailable, "open flow", "no gateway is alive")

// open tries the gateways of a network in order, and returns the answer of the last.
func (t *Tunnel) open(ctx context.Context, network starling.NetworkRef, h header.Header) (transport.Stream, header.Answer, error) {
	var last error = errNone
	answer := header.Open
	gateways := t.candidates(network)
	gateways = gateways[:min(len(gateways), triesMax)]
	for i, g := range gateways {
		if ctx.Err() != nil {
			break
		}
		var f *flow
		f, answer, last = t.try(ctx, lineKey{network: network, gateway: g.ID}, g.Addr, better(gateways[i+1:]), func(watched bool) []byte {
			h := h
			if watched {
				h.Version = header.Movable
			}
			return header.Append(nil, h)
		})
		switch {
		case last == nil && answer == header.Open:
			s, err := f.begin(h.Kind)
			return s, answer, err
		case last == nil && answer != header.NoUplink:
			return nil, answer, nil
		}
	}
	return nil, answer, last
}

// candidates returns the living gateways in the network's order, those that did not answer a moment ago behind them, and those that are
// being emptied last: who drains one counts on it that nothing comes while another is there.
func (t *Tunnel) candidates(network starling.NetworkRef) []starling.Node {
	byID := map[starling.NodeID]starling.Node{}
	var ids []starling.NodeID
	for _, n := range t.cfg.Gateways() {
		byID[n.ID] = n
		ids = append(ids, n.ID)
	}
	var order [4][]starling.Node
	for _, id := range place.Rank(network, ids) {
		n, behind := byID[id], 0
		if n.Draining {
			behind = 2
		}
		if t.shunned(id) {
			behind++
		}
		order[behind] = append(order[behind], n)
	}
	return slices.Concat(order[:]...)
}

// better reports whether one of the gateways is not being emptied.
func better(gateways []starling.Node) bool {
	return slices.ContainsFunc(gateways, func(n starling.Node) bool { return !n.Draining })
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

// try opens one stream and reads the gateway's answer; head is told whether the gateway can ask for a move. With another to turn to it gives
// up a gateway of which nothing at all is heard. After an error nothing was let through, or it ends with the stream. The stream's reads have
// a deadline still.
func (t *Tunnel) try(ctx context.Context, k lineKey, addr string, another bool, head func(watched bool) []byte) (*flow, header.Answer, error) {
	l, err := t.line(ctx, k, addr, another)
	if err != nil {
		return nil, 0, err
	}
	s, err := l.tunnel.Open(ctx, transport.ChannelTunnel)
	if err != nil {
		l.release()
		return nil, 0, err
	}
	f := &flow{Stream: s, line: l}
	defer context.AfterFunc(ctx, s.Cancel)()
	var d *doubt
	if another {
		d = l.doubt(s)
	}
	var b [1]byte
	_ = s.SetReadDeadline(time.Now().Add(answerTime)) // fails on a stream that has ended, which the reading says
	if _, err = s.Write(head(l.watched)); err == nil {
		_, err = io.ReadFull(s, b[:])
	}
	if d != nil && d.end() && err == nil {
		err = starling.Errorf(starling.Unavailable, "open flow", "nothing was heard of %s for %v", k.gateway, silentTime)
	}
	if err != nil || header.Answer(b[0]) != header.Open {
		f.Cancel()
		return nil, header.Answer(b[0]), err
	}
	return f, header.Open, nil
}
