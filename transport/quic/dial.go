package quic

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"starling"
	"starling/transport"
)

const peersMax = 8192 // addresses known at once; those that are down make room

// A peer is what this endpoint knows of one address it dials.
type peer struct {
	conn    *quicgo.Conn   // nil while down or dialling
	who     transport.Peer // of conn
	dialing chan struct{}  // closed when the dial under way ends; nil when there is none
	backoff transport.Backoff
	err     error // why the last dial failed
}

// dialTLS is how this node shows itself to others and what it asks of them.
func (e *Endpoint) dialTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protoNode}, ServerName: "starling",
		InsecureSkipVerify: true, // names are node ids, not hosts: VerifyConnection checks chain, cluster and expiry
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := e.verify(s)
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return e.cfg.Identity.Certificate(), nil },
	}
}

// Open opens a stream on a channel of the node at addr. While that node is down it fails at once with
// Unavailable; one caller per back-off pays for the next try.
func (e *Endpoint) Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error) {
	c, who, err := e.connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	s, err := openStream(ctx, c, ch)
	if err != nil {
		if ctx.Err() != nil {
			return nil, starling.Errorf(starling.Timeout, "reach "+addr, "no stream in time: %w", ctx.Err())
		}
		return nil, translate(err, addr)
	}
	e.counters.opened.Inc()
	return &stream{Stream: s, peer: who}, nil
}

func openStream(ctx context.Context, c *quicgo.Conn, ch transport.Channel) (*quicgo.Stream, error) {
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	prioritise(s, ch)
	if _, err := s.Write([]byte{byte(ch)}); err != nil {
		s.CancelRead(codeCancel)
		return nil, err
	}
	return s, nil
}

// connect returns the live connection to addr or makes one.
func (e *Endpoint) connect(ctx context.Context, addr string) (*quicgo.Conn, transport.Peer, error) {
	e.mu.Lock()
	if e.closed || e.group == nil {
		e.mu.Unlock()
		return nil, transport.Peer{}, starling.Errorf(starling.Unavailable, "reach "+addr, "this node's port is not open")
	}
	p := e.peers[addr]
	if p == nil {
		if len(e.peers) >= peersMax && !e.makeRoom() {
			e.mu.Unlock()
			return nil, transport.Peer{}, starling.Errorf(starling.Overloaded, "reach "+addr, "%d addresses are in use, which is the limit", peersMax)
		}
		p = &peer{}
		e.peers[addr] = p
	}
	if p.conn != nil && p.conn.Context().Err() == nil {
		c, who := p.conn, p.who
		e.mu.Unlock()
		return c, who, nil
	}
	p.conn = nil
	now := time.Now()
	if p.backoff.Down() && (p.dialing != nil || !p.backoff.Ready(now)) {
		down := starling.Errorf(starling.KindOf(p.err), "", "%w", p.err).RetryAfter(p.backoff.Wait(now))
		e.mu.Unlock()
		return nil, transport.Peer{}, down
	}
	if p.dialing == nil {
		p.dialing = make(chan struct{})
		e.group.Go(func(ctx context.Context) { e.dial(ctx, addr, p) })
	}
	done := p.dialing
	e.mu.Unlock()

	select {
	case <-done:
	case <-ctx.Done():
		return nil, transport.Peer{}, starling.Errorf(starling.Unavailable, "reach "+addr, "no connection in time: %w", ctx.Err())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.conn != nil {
		return p.conn, p.who, nil
	}
	return nil, transport.Peer{}, p.err
}

// makeRoom forgets an address that is down; the caller holds mu.
func (e *Endpoint) makeRoom() bool {
	for addr, p := range e.peers {
		if p.dialing == nil && (p.conn == nil || p.conn.Context().Err() != nil) {
			delete(e.peers, addr)
			return true
		}
	}
	return false
}

// dial makes the connection of one peer. It does not belong to the caller that wanted it first, so that the
// others do not fail with that caller's deadline.
func (e *Endpoint) dial(ctx context.Context, addr string, p *peer) {
	start := time.Now()
	e.counters.dials.Inc()
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	c, who, err := e.handshake(ctx, addr, quicConfig(idleNode, keepAlive))
	if err != nil {
		e.counters.failures.Inc()
	} else {
		e.counters.dialTime.Update(time.Since(start).Seconds())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	close(p.dialing)
	p.dialing = nil
	switch {
	case err != nil:
		p.err = err
		p.backoff.Fail(time.Now())
	case e.closed:
		c.CloseWithError(codeBye, "the node closes")
		p.err = starling.Errorf(starling.Unavailable, "reach "+addr, "this node's port is closed")
	default:
		p.conn, p.who, p.err = c, who, nil
		p.backoff.Succeed()
	}
}

// handshake dials addr and waits until it has taken our certificate. The caller's deadline bounds it.
func (e *Endpoint) handshake(ctx context.Context, addr string, cfg *quicgo.Config) (*quicgo.Conn, transport.Peer, error) {
	ua, err := resolve(ctx, addr)
	if err != nil {
		return nil, transport.Peer{}, err
	}
	c, err := e.port.Dial(ctx, ua, e.tlsNode, cfg)
	if err != nil {
		return nil, transport.Peer{}, dialError(err, addr)
	}
	if err := awaitWelcome(ctx, c); err != nil {
		c.CloseWithError(codeBye, "no welcome")
		return nil, transport.Peer{}, dialError(err, addr)
	}
	who, err := e.cfg.Identity.Verify(c.ConnectionState().TLS.PeerCertificates, time.Now())
	if err != nil {
		c.CloseWithError(codeDenied, "certificate refused")
		return nil, transport.Peer{}, err
	}
	who.Addr = addr
	return c, who, nil
}

func resolve(ctx context.Context, addr string) (*net.UDPAddr, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "reach "+addr, "it is no host:port: %w", err)
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "udp", port)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "reach "+addr, "%q is no port: %w", port, err)
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(ips) == 0 {
		return nil, starling.Errorf(starling.Unavailable, "reach "+addr, "the host has no address: %w", err)
	}
	return net.UDPAddrFromAddrPort(addrPort(ips[0], n)), nil
}

// awaitWelcome waits for the byte that says that the other side has taken us.
func awaitWelcome(ctx context.Context, c *quicgo.Conn) error {
	s, err := c.AcceptUniStream(ctx)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	s.SetReadDeadline(deadline)
	var b [1]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return err
	}
	s.CancelRead(codeBye)
	return nil
}

// dialError tells a peer that is not there from one that refuses us.
func dialError(err error, addr string) error {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return starling.Errorf(starling.Unavailable, "reach "+addr, "no answer in time")
	}
	return translate(err, addr)
}
