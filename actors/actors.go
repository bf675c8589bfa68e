// Package actors holds the addresses of actors and the post between them: in process where both are on
// one node, over one stream per pair of nodes otherwise.
package actors

import (
	"starling"
	"starling/actors/wire"
)

// A Post sends messages. Send never blocks: when the way is full or the node unreachable the message is
// lost, as on any network, and counted; every protocol above survives that by asking again.
type Post interface {
	Send(to wire.Address, m wire.Message)
	Self() starling.NodeID
}

// A Receiver takes what arrives for one part of this node. The batch is everything that was read from
// one connection at once; it and its messages belong to the receiver. Receive must not block.
type Receiver interface {
	Receive(from starling.NodeID, batch []wire.Message)
}
