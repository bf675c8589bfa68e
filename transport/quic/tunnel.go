package quic

import (
	"context"
	"errors"

	quicgo "github.com/quic-go/quic-go"

	"starling"
	"starling/transport"
)

// A tunnel is a connection of its own to one node. To that node it is like any other connection.
type tunnel struct {
	endpoint *Endpoint
	conn     *quicgo.Conn
	who      transport.Peer
}

var _ transport.Tunneler = (*Endpoint)(nil)

// Dial makes a connection to the node at addr apart from that of Open. It waits for longer than that does, twice handshakeTime: a gateway
// that thousands of connections come to at once answers late.
func (e *Endpoint) Dial(ctx context.Context, addr string) (transport.Tunnel, error) {
	e.mu.Lock()
	closed := e.closed || e.group == nil
	e.mu.Unlock()
	if closed {
		return nil, starling.Errorf(starling.Unavailable, "reach "+addr, "this node's port is not open")
	}
	e.counters.dials.Inc()
	ctx, cancel := context.WithTimeout(ctx, 2*handshakeTime)
	defer cancel()
	c, who, err := e.handshake(ctx, addr, flowWindows(quicConfig(idleFlows, keepFlows)))
	if err != nil {
		e.counters.failures.Inc()
		return nil, err
	}
	t := &tunnel{e, c, who}
	e.mu.Lock()
	closed = e.closed
	if !closed {
		e.tunnels[t] = struct{}{}
	}
	e.mu.Unlock()
	context.AfterFunc(c.Context(), t.forget)
	if closed {
		t.Close()
		return nil, starling.Errorf(starling.Unavailable, "reach "+addr, "this node's port is closed")
	}
	return t, nil
}

func (t *tunnel) forget() {
	t.endpoint.mu.Lock()
	delete(t.endpoint.tunnels, t)
	t.endpoint.mu.Unlock()
}

// Open opens a stream. With as many as the other side takes it waits for one to end.
func (t *tunnel) Open(ctx context.Context, ch transport.Channel) (transport.Stream, error) {
	s, err := openStream(ctx, t.conn, ch)
	if err != nil {
		if ctx.Err() != nil {
			return nil, starling.Errorf(starling.Timeout, "reach "+t.who.Addr, "no stream in time: %w", ctx.Err())
		}
		return nil, translate(err, t.who.Addr)
	}
	t.endpoint.counters.opened.Inc()
	return &stream{Stream: s, peer: t.who}, nil
}

// Done is closed when the connection has ended.
func (t *tunnel) Done() <-chan struct{} { return t.conn.Context().Done() }

// Err returns why the connection has ended.
func (t *tunnel) Err() error {
	err := context.Cause(t.conn.Context())
	var app *quicgo.ApplicationError
	if err == nil || errors.As(err, &app) && !app.Remote {
		return nil
	}
	return translate(err, t.who.Addr)
}

// Heard returns how many packets have come.
func (t *tunnel) Heard() uint64 { return t.conn.ConnectionStats().PacketsReceived }

// Close ends the connection.
func (t *tunnel) Close() { t.conn.CloseWithError(codeBye, "") }
