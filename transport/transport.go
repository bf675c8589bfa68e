// Package transport carries bytes between two nodes: streams, frames, deadlines and back-pressure.
// Bodies are opaque to it; it knows no account, no function and no partition.
package transport

import (
	"context"
	"errors"
	"io"
	"time"

	"starling"
)

// A Channel says what a stream carries. It is the first byte of every stream and the key under which
// the accepting node registered its handler. Numbers are fixed for ever.
type Channel uint8

const (
	ChannelRaft    Channel = 1  // Dragonboat message batches and snapshot chunks
	ChannelControl Channel = 2  // nodes ↔ manager: heartbeats, proposals, reads, pushed map and changes
	ChannelActor   Channel = 3  // messages between frontends, partitions and hosts (actors/wire)
	ChannelInvoke  Channel = 4  // payloads from frontend to host
	ChannelCode    Channel = 5  // code packages between nodes
	ChannelLogs    Channel = 6  // output of functions, from host to frontend
	ChannelJoin    Channel = 7  // a node without a certificate asks for one; the only channel open to it
	ChannelClient  Channel = 8  // developers' calls over QUIC, authenticated by bearer key
	ChannelState   Channel = 9  // a partition's state, from its owner to the next one
	ChannelGrant   Channel = 10 // hosts and gateways ask managers about the right to use a network
	ChannelTunnel  Channel = 11 // flows of functions, from host to gateway; on connections of their own (Tunneler)
	ChannelProbe   Channel = 12 // frontends ask gateways what a connection would meet
)

// A Peer is who is at the other end, as its certificate says. It is the zero Peer on ChannelJoin and
// ChannelClient, whose streams come from ends without a certificate of the cluster.
type Peer struct {
	Node  starling.NodeID
	Roles starling.Roles
	Addr  string // where the stream came from or was opened to
}

// Causes of a failed stream, as far as they can be told apart, for errors.Is.
var (
	ErrSilent   = errors.New("the other node said nothing for too long")
	ErrGivenUp  = errors.New("the other end gave the stream up")
	ErrCanceled = errors.New("the stream was given up here")
)

// A Stream is one bidirectional flow of bytes with flow control. Read and Write may be used by one
// goroutine each at the same time.
type Stream interface {
	io.Reader
	io.Writer
	CloseWrite() error // ends our direction; the peer reads io.EOF
	Cancel()           // abandons both directions at once; the peer's reads and writes fail
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	Peer() Peer
}

// An Unread stream tells when its other end reads no more: that gave it up, having all it wants, or is gone. Those over a real network do.
type Unread interface {
	Unread() <-chan struct{} // closed then, and when our direction was ended here
}

// An Endpoint is one node's port. All streams of one pair of nodes share one connection, dialled at first
// use and again after a failure. Open fails fast, with an Unavailable error, while the peer is not reachable.
//
// Register every handler before the endpoint is opened. A handler owns its stream and runs on a goroutine
// that Close waits for.
type Endpoint interface {
	Open(ctx context.Context, addr string, ch Channel) (Stream, error)
	Handle(ch Channel, f func(Stream))
	Addr() string // host:port with the port that was bound
	Close() error
}

// A Tunnel is a connection of its own to one node, for streams whose readers may be as slow as they like: they hold up
// each other at worst, and nothing else between the two nodes.
type Tunnel interface {
	Open(ctx context.Context, ch Channel) (Stream, error)
	// Done is closed when the connection has ended.
	Done() <-chan struct{}
	// Err returns why it has ended; nil while it has not, and when it was closed here.
	Err() error
	// Heard returns how many packets have come. A living node answers what is sent to it within a few milliseconds.
	Heard() uint64
	// Close ends the connection and every stream on it.
	Close()
}

// A Tunneler makes tunnels; an endpoint over a real network is one. Dial fails with Unavailable when the node does not
// answer before ctx ends.
type Tunneler interface {
	Dial(ctx context.Context, addr string) (Tunnel, error)
}

// A Frame is one message on a shared stream. Kind and ID mean what the two ends agreed; Body is at most
// starling.FrameInlineMax + 1 KiB. A received Body is valid until the handler returns.
//
// On the wire: u32 little-endian length of what follows, u8 kind, u64 little-endian id, body.
type Frame struct {
	Kind uint8
	ID   uint64
	Body []byte
}
