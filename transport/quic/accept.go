package quic

import (
	"context"
	"crypto/tls"
	"io"
	"slices"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"starling"
	"starling/transport"
)

// listenTLS picks by protocol what the other end must prove.
func (e *Endpoint) listenTLS() *tls.Config {
	base := func(proto string) *tls.Config {
		return &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{proto}, SessionTicketsDisabled: true,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return e.cfg.Identity.Certificate(), nil },
		}
	}
	node := base(protoNode)
	node.ClientAuth = tls.RequireAnyClientCert
	node.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := e.verify(s)
		return err
	}
	client, join := base(protoClient), base(protoJoin)
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{protoNode, protoClient, protoJoin},
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			switch {
			case slices.Contains(h.SupportedProtos, protoNode):
				return node, nil
			case slices.Contains(h.SupportedProtos, protoJoin):
				return join, nil
			}
			return client, nil // refuses any protocol but its own
		}}
}

// verify judges the certificate of a node at the other end.
func (e *Endpoint) verify(s tls.ConnectionState) (transport.Peer, error) {
	p, err := e.cfg.Identity.Verify(s.PeerCertificates, time.Now())
	if err == nil && e.cfg.Revoked != nil && e.cfg.Revoked(p.Node) {
		err = starling.Errorf(starling.Denied, "verify peer", "%v has left the cluster: it must join again", p.Node).With("Revoked")
	}
	return p, err
}

// accept takes connections until the endpoint closes.
func (e *Endpoint) accept(ctx context.Context) {
	for {
		c, err := e.listener.Accept(ctx)
		if err != nil {
			return
		}
		if end, ok := c.Context().Value(handshakeKey{}).(func()); ok {
			end()
		}
		if !e.group.Go(func(ctx context.Context) { e.serve(ctx, c) }) {
			c.CloseWithError(codeBye, "the node closes")
		}
	}
}

// serve takes the streams of one connection until it ends.
func (e *Endpoint) serve(ctx context.Context, c *quicgo.Conn) {
	state := c.ConnectionState().TLS
	proto := state.NegotiatedProtocol
	who := transport.Peer{Addr: c.RemoteAddr().String()}
	if proto == protoNode {
		p, err := e.cfg.Identity.Verify(state.PeerCertificates, time.Now())
		if err != nil { // it was good a moment ago, in the handshake
			c.CloseWithError(codeDenied, "certificate refused")
			return
		}
		who.Node, who.Roles = p.Node, p.Roles
	}
	if !e.enter(c, who, proto) {
		return
	}
	defer e.leave(c, proto)
	if err := welcome(c); err != nil {
		return
	}
	var slots chan struct{}
	if proto != protoNode {
		slots = make(chan struct{}, strangerMax)
	}
	for {
		s, err := c.AcceptStream(ctx)
		if err != nil {
			return
		}
		if slots != nil {
			select {
			case slots <- struct{}{}:
			default:
				refuse(s, codeOverloaded)
				e.counters.refused.Inc()
				continue
			}
		}
		e.group.Go(func(context.Context) {
			e.serveStream(c, s, who, proto)
			if slots != nil {
				<-slots
			}
		})
	}
}

// enter notes an accepted connection; false when the endpoint closes or has too many strangers.
func (e *Endpoint) enter(c *quicgo.Conn, who transport.Peer, proto string) bool {
	e.mu.Lock()
	closed, full := e.closed, proto != protoNode && e.clients >= clientsMax
	if !closed && !full {
		e.accepted[c] = who
		if proto != protoNode {
			e.clients++
		}
	}
	e.mu.Unlock()
	if closed {
		c.CloseWithError(codeBye, "the node closes")
	} else if full {
		c.CloseWithError(codeOverloaded, "too many clients")
	}
	return !closed && !full
}

func (e *Endpoint) leave(c *quicgo.Conn, proto string) {
	e.mu.Lock()
	delete(e.accepted, c)
	if proto != protoNode {
		e.clients--
	}
	e.mu.Unlock()
	c.CloseWithError(codeBye, "")
}

// welcome tells the dialler that its certificate was taken. In TLS 1.3 a dialler is done before the other side
// has looked at its certificate, and would otherwise learn of a refusal from its first stream.
func welcome(c *quicgo.Conn) error {
	s, err := c.OpenUniStream()
	if err != nil {
		return err
	}
	if _, err := s.Write([]byte{1}); err != nil {
		return err
	}
	_ = s.Close() // fails when the dialler, which has heard the word, wants no more of the stream: that is no fault of the connection
	return nil
}

// serveStream reads the channel of one stream and hands it to its handler.
func (e *Endpoint) serveStream(c *quicgo.Conn, s *quicgo.Stream, who transport.Peer, proto string) {
	var b [1]byte
	s.SetReadDeadline(time.Now().Add(channelTime))
	if _, err := io.ReadFull(s, b[:]); err != nil {
		refuse(s, codeCancel)
		return
	}
	s.SetReadDeadline(time.Time{})
	ch := transport.Channel(b[0])
	code := e.admit(c, who, proto, ch)
	if code != codeBye {
		e.counters.refused.Inc()
		refuse(s, code)
		return
	}
	e.mu.Lock()
	f := e.handlers[ch]
	e.mu.Unlock()
	if f == nil {
		e.counters.refused.Inc()
		refuse(s, codeNoHandler)
		return
	}
	e.counters.served.Inc()
	prioritise(s, ch)
	st := &stream{Stream: s, peer: who}
	defer st.release()
	f(st)
}

// admit returns codeBye for a stream that may pass, else why not.
func (e *Endpoint) admit(c *quicgo.Conn, who transport.Peer, proto string, ch transport.Channel) quicgo.StreamErrorCode {
	switch {
	case proto == protoClient && ch == transport.ChannelClient, proto == protoJoin && ch == transport.ChannelJoin:
		return codeBye
	case proto != protoNode, ch == transport.ChannelJoin, ch == transport.ChannelClient:
		return codeDenied
	}
	if e.cfg.Revoked != nil && e.cfg.Revoked(who.Node) {
		c.CloseWithError(codeRevoked, "the node has left the cluster")
		return codeRevoked
	}
	if e.cfg.Allow != nil && !e.cfg.Allow(who, ch) {
		e.cfg.Log.Warn("refused a stream", "peer", who.Node.String(), "roles", who.Roles.String(), "channel", int(ch))
		return codeDenied
	}
	return codeBye
}

func refuse(s *quicgo.Stream, code quicgo.StreamErrorCode) {
	s.CancelRead(code)
	s.CancelWrite(code)
}
