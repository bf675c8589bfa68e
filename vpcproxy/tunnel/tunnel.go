// Package tunnel is a host's way to the gateways: the grants of its instances, and one connection for each network that
// they use.
package tunnel

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/internal/run"
	"starling/transport"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/header"
	"starling/vpcproxy/place"
	"starling/vpcproxy/splice"
)

const (
	dialTime   = 4 * time.Second        // for a connection to be made: a gateway that is overrun takes long
	silentTime = 500 * time.Millisecond // in which a gateway says nothing at all, or makes no connection, before a flow tries the next
	answerTime = 15 * time.Second       // for a gateway to have connected
	readTime   = 50 * time.Millisecond  // for what has come to be read, when it was this process that stood still
	shunTime   = time.Second            // a gateway that did not answer is not tried first again for so long
	idleTime   = time.Minute            // after which a connection without flows ends
	triesMax   = 3                      // gateways tried for one flow
	askTime    = 5 * time.Second        // for a manager's grant
	againTime  = 300 * time.Millisecond // after a refusal until the next question
	lastMinute = time.Minute            // of a grant's life in which it is not shown any more
	limitTime  = 5 * time.Millisecond   // after a limit was met, in which an instance's further flows are refused without asking
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

// A Way is where the flows of one attachment go.
type Way struct {
	tunnel *Tunnel
	as     starling.Attachment

	mu      sync.Mutex // guards the rest; a leaf
	raw     []byte     // the newest grant
	got     time.Time
	asking  chan struct{} // closed when the question under way is answered; nil without one
	err     error         // of the last question
	asked   time.Time
	through bool
	limited time.Time // when a gateway last said that a limit is reached
}

// Way returns where the flows of an attachment go, and asks for its grant at once.
func (t *Tunnel) Way(as starling.Attachment) *Way {
	w := &Way{tunnel: t, as: as}
	w.mu.Lock()
	w.ask()
	w.mu.Unlock()
	return w
}

// Ended counts why a flow of the code inside is over.
func (w *Way) Ended(why splice.End) { w.tunnel.m.ended[why].Inc() }

// Close ends the way; no flow is begun after it.
func (w *Way) Close() {
	w.mu.Lock()
	w.through = true
	w.mu.Unlock()
}

// ask begins to ask for a grant unless somebody asks already. The caller holds mu.
func (w *Way) ask() {
	if w.asking != nil {
		return
	}
	done, old := make(chan struct{}), w.raw
	if !w.tunnel.group.Go(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		var raw []byte
		err := error(nil)
		if old != nil {
			raw, err = w.tunnel.cfg.Grants.Renew(ctx, old)
		} else {
			raw, err = w.tunnel.cfg.Grants.Grant(ctx, w.as.Version, w.as.Instance)
		}
		if err != nil {
			w.tunnel.cfg.Log.Warn("no grant for an instance's network", "instance", w.as.Instance, "function", w.as.Function, "network", w.as.Network, "error", err)
		}
		w.tunnel.m.grants.Inc()
		w.mu.Lock()
		defer w.mu.Unlock()
		if err == nil {
			w.raw, w.got = raw, time.Now()
		}
		w.err, w.asked, w.asking = err, time.Now(), nil
		close(done)
	}) {
		w.err = starling.Errorf(starling.Unavailable, "ask for grant", "the host is closing")
		return
	}
	w.asking = done
}

// grant returns one that is good for a while yet.
func (w *Way) grant(ctx context.Context) ([]byte, error) {
	for {
		w.mu.Lock()
		age := time.Since(w.got)
		switch {
		case w.through:
			w.mu.Unlock()
			return nil, starling.Errorf(starling.Unavailable, "open flow", "the instance ends")
		case w.raw != nil && age < grant.Life-lastMinute:
			if age > grant.Life/2 && time.Since(w.asked) > againTime {
				w.ask()
			}
			raw := w.raw
			w.mu.Unlock()
			return raw, nil
		case w.asking == nil && w.err != nil && time.Since(w.asked) < againTime:
			err := w.err
			w.mu.Unlock()
			return nil, err
		}
		w.ask()
		done, err := w.asking, w.err
		w.mu.Unlock()
		if done == nil {
			return nil, err
		}
		select {
		case <-done:
		case <-ctx.Done():
			return nil, starling.Errorf(starling.Timeout, "open flow", "no grant in time")
		}
	}
}

// Open begins a flow and returns when a gateway has let it through. Refused by it the error is Denied; Unavailable when none is
// there.
func (w *Way) Open(ctx context.Context, kind header.Kind, to netip.AddrPort) (transport.Stream, error) {
	began := time.Now()
	if err := w.within(began); err != nil {
		w.tunnel.m.refuse(header.Limit)
		return nil, err
	}
	raw, err := w.grant(ctx)
	if err != nil {
		w.tunnel.m.failed[failedGrant].Inc()
		return nil, err
	}
	s, answer, err := w.tunnel.open(ctx, w.as.Ref(), header.Header{Kind: kind, Grant: raw, To: to})
	if err != nil {
		w.tunnel.m.fail(err)
		return nil, err
	}
	if answer == header.Limit {
		w.mu.Lock()
		w.limited = time.Now()
		w.mu.Unlock()
	}
	if answer != header.Open {
		w.tunnel.m.refuse(answer)
		return nil, refusal(answer)
	}
	w.tunnel.m.flows.Inc()
	w.tunnel.m.opening.UpdateDuration(began)
	return s, nil
}

// within refuses what a gateway would refuse: an instance that begins flows far faster than it may costs its host and the gateway
// little, and others nothing that they notice.
func (w *Way) within(now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.limited) < limitTime {
		return refusal(header.Limit)
	}
	return nil
}

func refusal(a header.Answer) error {
	return starling.Errorf(starling.Denied, "open flow", "the gateway answers: %s", a).With(a.String())
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

// begin reads what a gateway says after its answer.
func (f *flow) begin(kind header.Kind) (transport.Stream, error) {
	if kind != header.TCP || !f.line.watched {
		_ = f.SetReadDeadline(time.Time{}) // fails on a stream that has ended, which the reading says
		return f, nil
	}
	if _, err := io.ReadFull(f, f.token[:]); err != nil {
		f.Cancel()
		return nil, err
	}
	_ = f.SetReadDeadline(time.Time{})
	return movable{f}, nil
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
