// Package quic is the real transport: one UDP port a node, TLS 1.3 with mutual certificates of the cluster's CA,
// one connection for each peer that this node dials. It is the only importer of quic-go inside the cluster.
package quic

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	quicgo "github.com/quic-go/quic-go"

	"starling"
	"starling/internal/run"
	"starling/transport"
)

// The protocols of a port. Nodes prove who they are; clients and joiners only check the cluster.
const (
	protoNode   = "starling/1"
	protoClient = "starling-client/1"
	protoJoin   = "starling-join/1"
)

const (
	// A peer that says nothing is asked every keepAlive and given up idleNode after its last word, which is
	// under a second from its death. The manager's node lease does not depend on it.
	keepAlive = 150 * time.Millisecond
	idleNode  = 800 * time.Millisecond

	// Connections of flows outlive a spell in which either end, or the machine, stands still: what ends with one cannot be dialled
	// again as a message can be sent again. Who begins a flow need not wait so long to find a gateway dead (Heard).
	keepFlows = 200 * time.Millisecond
	idleFlows = 3 * time.Second

	idleOther     = 30 * time.Second // clients and joiners
	handshakeTime = 2 * time.Second
	channelTime   = 5 * time.Second // from the opening of a stream to its channel byte

	streamsMax  = 16_384 // streams one peer may have open
	clientsMax  = 1024   // connections without a node certificate at once
	strangerMax = 128    // streams at once on one of those
	unproven    = 64     // handshakes under way before source addresses must prove themselves

	windowStream, windowStreamMax = 1 << 20, 16 << 20
	windowConn, windowConnMax     = 4 << 20, 64 << 20

	// Of connections with streams that may never be read: 4,000 fresh ones, or 256 that were fast before, fill one.
	flowStream, flowStreamMax = 64 << 10, 1 << 20
	flowConn, flowConnMax     = 256 << 20, 256 << 20
)

// Codes with which connections and streams end; they are on the wire.
const (
	codeBye        = 0 // the node closes its port
	codeCancel     = 1 // a handler or caller gave the stream up
	codeDenied     = 2 // this peer may not use this channel
	codeNoHandler  = 3 // nothing serves this channel here
	codeRevoked    = 4 // the peer is no longer a member
	codeOverloaded = 5 // a limit of this node
)

// An Identity is where the endpoint gets its certificate and judges those of others. cluster/identity has it.
type Identity interface {
	Certificate() *tls.Certificate // the newest, with the CA's behind it; asked at every handshake
	Verify(chain []*x509.Certificate, now time.Time) (transport.Peer, error)
	ResetKey() [32]byte // the same for every life of the node
}

// Config is what an endpoint needs. Addr and Identity are required.
type Config struct {
	Addr     string // host:port to listen on; port 0 takes a free one
	Identity Identity
	// Allow says whether a peer may open a channel here; nil allows every node every channel but those of
	// clients and joiners. It is asked for each stream.
	Allow func(transport.Peer, transport.Channel) bool
	// Revoked says whether a node has left the cluster; may be nil. It is asked for each stream.
	Revoked func(starling.NodeID) bool
	// Flows says that this node takes tunnels: what it accepts has windows for many streams that may never be read.
	Flows bool
	Log   *slog.Logger
}

// An Endpoint is one node's port. Create it with New, register handlers, start it with Listen, and Close it.
// It has one goroutine that accepts, one for each accepted connection and one for each accepted stream; Close
// waits for all.
type Endpoint struct {
	cfg      Config
	tlsNode  *tls.Config // for dialling
	set      *metrics.Set
	counters counters
	udp      *net.UDPConn
	port     *quicgo.Transport
	listener *quicgo.Listener
	group    *run.Group

	mu       sync.Mutex // guards the rest; a leaf
	closed   bool
	handlers [256]func(transport.Stream)
	accepted map[*quicgo.Conn]transport.Peer
	peers    map[string]*peer
	clients  int // accepted connections without a node certificate
	tunnels  map[*tunnel]struct{}
}

var _ transport.Endpoint = (*Endpoint)(nil)

// New returns an endpoint that does nothing yet.
func New(cfg Config) *Endpoint {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	e := &Endpoint{cfg: cfg, set: metrics.NewSet(), accepted: map[*quicgo.Conn]transport.Peer{}, peers: map[string]*peer{}, tunnels: map[*tunnel]struct{}{}}
	e.counters = newCounters(e)
	e.tlsNode = e.dialTLS()
	return e
}

// Metrics returns the endpoint's numbers.
func (e *Endpoint) Metrics() *metrics.Set { return e.set }

// Handle registers who serves the streams of one channel; nil takes it back. Streams of a channel without a
// handler are refused, and their openers try again.
func (e *Endpoint) Handle(ch transport.Channel, f func(transport.Stream)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handlers[ch] = f
}

// Listen binds the port and begins to accept.
func (e *Endpoint) Listen() error {
	addr, err := net.ResolveUDPAddr("udp", e.cfg.Addr)
	if err != nil {
		return starling.Errorf(starling.Invalid, "open port", "%q is no host:port: %w", e.cfg.Addr, err)
	}
	if e.udp, err = net.ListenUDP("udp", addr); err != nil {
		return starling.Errorf(starling.Internal, "open port", "cannot bind UDP %s: another process may use it: %w", e.cfg.Addr, err)
	}
	key := quicgo.StatelessResetKey(e.cfg.Identity.ResetKey())
	e.port = &quicgo.Transport{Conn: e.udp, ConnectionIDLength: 8, StatelessResetKey: &key,
		VerifySourceAddress: func(net.Addr) bool { return e.counters.handshakes.Load() > unproven },
		ConnContext:         e.countHandshake}
	accepted := quicConfig(idleOther, 0)
	if e.cfg.Flows {
		accepted = flowWindows(accepted)
	}
	if e.listener, err = e.port.Listen(e.listenTLS(), accepted); err != nil {
		return errors.Join(starling.Errorf(starling.Internal, "open port", "cannot listen: %w", err), e.udp.Close())
	}
	e.group = run.New(context.Background())
	e.group.Go(e.accept)
	return nil
}

// quicConfig returns the settings of one side. The shorter idle time of the two ends counts, so that nodes,
// who dial with idleNode, find each other dead soon while clients of the same port may be quiet.
func quicConfig(idle, alive time.Duration) *quicgo.Config {
	return &quicgo.Config{
		HandshakeIdleTimeout: handshakeTime, MaxIdleTimeout: idle, KeepAlivePeriod: alive,
		InitialStreamReceiveWindow: windowStream, MaxStreamReceiveWindow: windowStreamMax,
		InitialConnectionReceiveWindow: windowConn, MaxConnectionReceiveWindow: windowConnMax,
		MaxIncomingStreams: streamsMax, MaxIncomingUniStreams: 1,
	}
}

// flowWindows gives c windows that readers which never read do not exhaust.
func flowWindows(c *quicgo.Config) *quicgo.Config {
	c.InitialStreamReceiveWindow, c.MaxStreamReceiveWindow = flowStream, flowStreamMax
	c.InitialConnectionReceiveWindow, c.MaxConnectionReceiveWindow = flowConn, flowConnMax
	return c
}

// countHandshake counts connections that have not finished their handshake, by which addresses must prove
// themselves under a flood.
func (e *Endpoint) countHandshake(ctx context.Context, _ *quicgo.ClientInfo) (context.Context, error) {
	e.counters.handshakes.Add(1)
	done := &sync.Once{}
	end := func() { done.Do(func() { e.counters.handshakes.Add(-1) }) }
	context.AfterFunc(ctx, end)
	return context.WithValue(ctx, handshakeKey{}, end), nil
}

type handshakeKey struct{}

// Addr is host:port with the port that was bound.
func (e *Endpoint) Addr() string {
	if e.udp == nil {
		return e.cfg.Addr
	}
	return e.udp.LocalAddr().String()
}

// Disconnect ends every connection with a node, for one that has left the cluster.
func (e *Endpoint) Disconnect(node starling.NodeID) {
	e.mu.Lock()
	var conns []*quicgo.Conn
	for c, p := range e.accepted {
		if p.Node == node {
			conns = append(conns, c)
		}
	}
	for _, p := range e.peers {
		if p.conn != nil && p.who.Node == node {
			conns = append(conns, p.conn)
		}
	}
	for t := range e.tunnels {
		if t.who.Node == node {
			conns = append(conns, t.conn)
		}
	}
	e.mu.Unlock()
	for _, c := range conns {
		c.CloseWithError(codeRevoked, "the node has left the cluster")
	}
}

// Close says goodbye to every peer, so that none waits for its idle time, and waits for every handler. It may
// be called twice.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	if e.closed || e.group == nil {
		e.closed = true
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var conns []*quicgo.Conn
	for c := range e.accepted {
		conns = append(conns, c)
	}
	for _, p := range e.peers {
		if p.conn != nil {
			conns = append(conns, p.conn)
		}
	}
	for t := range e.tunnels {
		conns = append(conns, t.conn)
	}
	e.mu.Unlock()
	for _, c := range conns {
		c.CloseWithError(codeBye, "the node closes")
	}
	e.listener.Close()
	e.group.Stop()
	err := errors.Join(e.port.Close(), e.udp.Close())
	if err != nil {
		return starling.Errorf(starling.Internal, "close port", "%w", err)
	}
	return nil
}
