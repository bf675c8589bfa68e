package quic

import (
	"errors"
	"io"
	"os"
	"sync/atomic"

	quicgo "github.com/quic-go/quic-go"

	"starling"
	"starling/transport"
)

// A stream is a quic-go stream with our errors.
type stream struct {
	*quicgo.Stream
	peer       transport.Peer
	closeWrite atomic.Bool
}

var (
	_ transport.Stream = (*stream)(nil)
	_ transport.Unread = (*stream)(nil)
)

// Read is as io.Reader's; what is not io.EOF is a *starling.Error or a deadline.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if err != nil && err != io.EOF {
		err = translate(err, s.peer.Addr)
	}
	return n, err
}

// Write is as io.Writer's.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	if err != nil {
		err = translate(err, s.peer.Addr)
	}
	return n, err
}

// CloseWrite ends our direction.
func (s *stream) CloseWrite() error {
	s.closeWrite.Store(true)
	if err := s.Stream.Close(); err != nil {
		return translate(err, s.peer.Addr)
	}
	return nil
}

// Cancel abandons both directions.
func (s *stream) Cancel() {
	s.CancelRead(codeCancel)
	s.CancelWrite(codeCancel)
}

// release ends what the handler left open, for QUIC counts a stream until both directions have ended. A
// direction that the handler closed is left to deliver what it holds.
func (s *stream) release() {
	s.CancelRead(codeCancel)
	if !s.closeWrite.Load() {
		s.CancelWrite(codeCancel)
	}
}

// Unread is closed when the other end reads no more.
func (s *stream) Unread() <-chan struct{} { return s.Context().Done() }

// Peer is who is at the other end.
func (s *stream) Peer() transport.Peer { return s.peer }

// prioritise puts agreement before messages, messages before payloads, and bulk last. Urgency runs from 0,
// first, to 7; streams of one urgency share the connection.
func prioritise(s *quicgo.Stream, ch transport.Channel) {
	urgency := int8(3)
	switch ch {
	case transport.ChannelRaft:
		urgency = 0
	case transport.ChannelControl:
		urgency = 1
	case transport.ChannelActor:
		urgency = 2
	case transport.ChannelCode, transport.ChannelLogs:
		urgency = 6
	}
	s.SetPriority(urgency, true)
}

// translate gives an error of quic-go the kind that callers act on.
func translate(err error, addr string) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	var own *starling.Error
	if errors.As(err, &own) {
		return err
	}
	var se *quicgo.StreamError
	if errors.As(err, &se) {
		return streamError(se, addr)
	}
	var app *quicgo.ApplicationError
	if errors.As(err, &app) && app.Remote && (app.ErrorCode == codeRevoked || app.ErrorCode == codeDenied) {
		return starling.Errorf(starling.Denied, "reach "+addr, "it refuses this node: %s", app.ErrorMessage).With("Revoked")
	}
	var te *quicgo.TransportError
	if errors.As(err, &te) && te.ErrorCode.IsCryptoError() {
		if te.Remote {
			return starling.Errorf(starling.Denied, "reach "+addr, "it refuses our certificate or protocol: check that both are of the same cluster and not expired: %w", err)
		}
		return starling.Errorf(starling.Denied, "reach "+addr, "its certificate is refused here: check that the address belongs to this cluster: %w", err)
	}
	var idle *quicgo.IdleTimeoutError
	if errors.As(err, &idle) {
		err = transport.ErrSilent
	}
	return starling.Errorf(starling.Unavailable, "reach "+addr, "the connection is lost: %w", err)
}

func streamError(se *quicgo.StreamError, addr string) error {
	if !se.Remote {
		return starling.Errorf(starling.Unavailable, "use stream", "%w", transport.ErrCanceled)
	}
	switch se.ErrorCode {
	case codeDenied, codeRevoked:
		return starling.Errorf(starling.Denied, "reach "+addr, "it does not let this node use this channel: check the roles in its certificate")
	case codeNoHandler:
		return starling.Errorf(starling.Unavailable, "reach "+addr, "nothing serves this channel there yet")
	case codeOverloaded:
		return starling.Errorf(starling.Overloaded, "reach "+addr, "too many streams at once: retry after a pause")
	}
	return starling.Errorf(starling.Unavailable, "reach "+addr, "%w", transport.ErrGivenUp)
}
