// Package gateway is the end of the tunnel at which flows leave the cluster: it checks whose they are and where they go, and dials
// in the one network namespace that belongs to their network.
package gateway

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"starling"
	"starling/internal/run"
	"starling/transport"
	"starling/vpcproxy/flowtable"
	"starling/vpcproxy/grant"
	"starling/vpcproxy/handover"
	"starling/vpcproxy/header"
	"starling/vpcproxy/plugboard"
	"starling/vpcproxy/resume"
	"starling/vpcproxy/splice"
	"starling/vpcproxy/uplink"
)

const (
	headTime  = 5 * time.Second        // from the opening of a stream to its header
	keyEvery  = time.Minute            // how often managers are asked for the key and the time
	keySoon   = 100 * time.Millisecond // and after a failure
	grantsMax = 8192                   // grants that are remembered as good
)

// Config is what a gateway works with. Limits, times and Now have defaults.
type Config struct {
	// Uplinks by network at the start; that of starling.Internet has no account. Each has been validated.
	Uplinks map[starling.NetworkRef]uplink.Uplink
	// Board is where they are plugged in; without a folder only namespaces of the operator are. Its home is this process's namespace when it has none.
	Board plugboard.Board
	// Network returns what the catalog says of a network; shared, not changed. NotFound when there is none.
	Network func(ctx context.Context, ref starling.NetworkRef) (*starling.Network, error)
	// Key returns what grants are signed with, and what a manager's clock says.
	Key func(ctx context.Context) (ed25519.PublicKey, time.Time, error)
	// Cluster returns the addresses of all nodes, which nobody may dial, and a number that rises with each change of them.
	Cluster func() ([]netip.Addr, uint64)

	AccountLimits  flowtable.Limits // of one account over all its networks
	FunctionLimits flowtable.Limits
	InternetLimits flowtable.Limits // of one account's flows to internet
	DialTime       time.Duration    // for a connection; 0 means 10 s
	IdleTime       time.Duration    // of a flow in which nothing moves; 0 means 10 min
	DgramTime      time.Duration    // the same for datagrams; 0 means 1 min
	FlowTime       time.Duration    // of any flow; 0 means grant.LifeMax
	TryTime        time.Duration    // between tries to plug in what could not be; 0 means 2 s
	Log            *slog.Logger
	Now            func() time.Time

	// Handover is how flows go on at another gateway of this machine; the zero one is: they do not.
	Handover Handover
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	limit := func(l *flowtable.Limits, conns, rate int) {
		if *l == (flowtable.Limits{}) {
			*l = flowtable.Limits{Conns: conns, Rate: rate}
		}
	}
	set(&c.DialTime, 10*time.Second)
	set(&c.IdleTime, 10*time.Minute)
	set(&c.DgramTime, time.Minute)
	set(&c.FlowTime, grant.LifeMax)
	set(&c.TryTime, 2*time.Second)
	limit(&c.AccountLimits, 20_000, 2_000)
	limit(&c.FunctionLimits, 10_000, 1_000)
	limit(&c.InternetLimits, starling.NetworkConnNormal, starling.NetworkRateNormal)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// A Gateway lets flows out. Create it with New, start it with Open, and Close it; it has one goroutine that keeps the key, one that keeps the
// uplinks, and two for each flow, of which one is the endpoint's. With Handover it has two more, and one for each flow that another gateway
// takes. Close ends every flow and waits for its own.
type Gateway struct {
	cfg    Config
	group  *run.Group
	m      *meters
	plugs  atomic.Pointer[map[starling.NetworkRef]*plug] // those that are plugged in; replaced whole
	own    atomic.Pointer[own]                           // this machine's addresses
	key    atomic.Pointer[key]
	orders chan order // to the goroutine that keeps the uplinks

	home   *os.File                        // this process's namespace; nil when the configuration names one
	wanted map[starling.NetworkRef]*wanted // every uplink that is wanted; of Open, then of the goroutine that keeps them, then of Close
	desk   *handover.Listener              // nil without Handover

	mu        sync.Mutex // guards the rest; a leaf
	table     *flowtable.Table
	grants    map[string]grant.Grant // that were checked, by their bytes
	quiet     time.Time              // when seldom last wrote
	movables  map[resume.Token]*movable
	watches   map[*watch]struct{}
	successor starling.NodeID // where flows should go on; 0 for here
	states    []State         // of all uplinks, in the order of names; replaced whole
}

// A key is what grants are judged by.
type key struct {
	public ed25519.PublicKey
	ahead  time.Duration // of the managers' clock against ours
}

// New returns a gateway that does nothing yet.
func New(cfg Config) *Gateway {
	g := &Gateway{cfg: cfg.withDefaults(), group: run.New(context.Background()), orders: make(chan order), wanted: map[starling.NetworkRef]*wanted{}, grants: map[string]grant.Grant{},
		movables: map[resume.Token]*movable{}, watches: map[*watch]struct{}{}}
	g.plugs.Store(&map[starling.NetworkRef]*plug{})
	g.table = flowtable.New(g.cfg.AccountLimits, g.cfg.FunctionLimits)
	g.m = newMeters(g)
	return g
}

// Open plugs the gateway into its networks and begins to keep the key. What cannot be plugged in is tried again, and Uplinks says why: the
// others' networks do not wait for it, and hosts ask another gateway.
func (g *Gateway) Open() error {
	if err := g.openUplinks(); err != nil {
		return errors.Join(err, g.Close())
	}
	g.group.Go(g.keepKey)
	g.group.Go(g.keepUplinks)
	if err := g.openHandover(); err != nil {
		return errors.Join(err, g.Close())
	}
	return nil
}

// Close ends every flow.
func (g *Gateway) Close() error {
	var errs []error
	if g.desk != nil {
		errs = append(errs, g.desk.Close())
	}
	g.group.Stop()
	errs = append(errs, g.closeUplinks())
	return errors.Join(errs...)
}

// keepKey asks for the key and the managers' time.
func (g *Gateway) keepKey(ctx context.Context) {
	for {
		wait := keyEvery
		public, now, err := g.cfg.Key(ctx)
		if err != nil {
			wait = keySoon
			g.cfg.Log.Debug("no key for grants", "error", err)
		} else {
			g.key.Store(&key{public, now.Sub(g.cfg.Now())})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Ready reports whether grants can be judged: from the first answer of a manager on.
func (g *Gateway) Ready() bool { return g.key.Load() != nil }

// Serve carries the flow of one stream of transport.ChannelTunnel.
func (g *Gateway) Serve(s transport.Stream) {
	if s.SetReadDeadline(time.Now().Add(headTime)) != nil {
		return
	}
	h, err := header.Read(s)
	if err != nil {
		if starling.KindOf(err) == starling.Invalid {
			g.refuse(s, header.Malformed)
		}
		return
	}
	_ = s.SetReadDeadline(time.Time{}) // fails on a stream that has ended, which the first reading says
	switch h.Kind {
	case header.Watch:
		g.serveWatch(s)
		return
	case header.Resume:
		g.serveResume(s, h)
		return
	}
	f := &attempt{gateway: g, Header: h, host: s.Peer().Node, began: g.cfg.Now()}
	g.serveFlow(s, f)
}

// serveFlow carries a new flow, when it may begin.
func (g *Gateway) serveFlow(s transport.Stream, f *attempt) {
	ctx, cancel := context.WithTimeout(g.group.Context(), g.cfg.FlowTime)
	defer cancel()
	defer context.AfterFunc(ctx, s.Cancel)()
	if answer := f.admit(ctx); answer != header.Open {
		g.refuse(s, answer)
		return
	}
	defer f.end()
	defer context.AfterFunc(f.plug.ctx, cancel)()
	if f.Kind == header.DNS {
		f.serveName(s)
		return
	}
	c, answer := f.dial()
	if answer != header.Open {
		f.note(slog.LevelDebug, "flow not connected", answer.String())
		g.refuse(s, answer)
		return
	}
	open := []byte{byte(header.Open)}
	if f.Version == header.Movable && f.Kind == header.TCP {
		f.token = newToken()
		open = append(open, f.token[:]...)
	}
	if _, err := s.Write(open); err != nil {
		c.Close()
		return
	}
	f.carry(ctx, s, c)
}

// refuse answers why not.
func (g *Gateway) refuse(s transport.Stream, a header.Answer) {
	g.m.refused(a)
	if _, err := s.Write([]byte{byte(a)}); err == nil { // a host that is gone needs no answer
		_ = s.CloseWrite()
	}
}

// carry carries what a flow brings until it ends.
func (f *attempt) carry(ctx context.Context, s transport.Stream, c net.Conn) {
	f.gateway.m.begun(f.Kind)
	switch tcp, ok := c.(*net.TCPConn); {
	case f.Kind == header.Test:
		c.Close()
		_ = s.CloseWrite() // the answer is all there is
	case ok:
		f.carryTCP(ctx, s, tcp, resume.Account{})
	default:
		defer context.AfterFunc(ctx, func() { c.Close() })()
		f.exchange(s, c)
	}
}

// carryTCP carries a connection until it ends, here or by going on at another gateway.
func (f *attempt) carryTCP(ctx context.Context, s transport.Stream, c *net.TCPConn, account resume.Account) {
	// what goes to the tunnel is what comes in for the function
	j := splice.Resumed(splice.Conn(c), f.gateway.cfg.IdleTime, splice.Counter{Sent: f.plug.flows.down, Taken: f.plug.flows.up}, account)
	defer context.AfterFunc(ctx, j.Abort)()
	if f.token == (resume.Token{}) {
		j.Carry(s)
	} else {
		m := f.gateway.lend(f, j, c)
		if !j.Carry(s) {
			m.leave(s)
		}
		m.end()
	}
	f.gateway.m.ends[j.End()].Inc()
	if j.End() != splice.Done {
		f.note(slog.LevelDebug, "flow over", string(j.End()))
	}
}

// answerOf says what a failed connection means to the host.
func answerOf(err error) header.Answer {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return header.Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return header.TimedOut
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS):
		return header.Limit // the network's ports for this destination, or the gateway's descriptors or memory
	}
	return header.Unreachable
}
