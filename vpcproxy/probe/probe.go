// Package probe asks a gateway what a connection from a network would meet, for people who look why theirs does not work. No flow
// is begun: what is connected is closed at once.
package probe

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/fxamacker/cbor/v2"

	"starling"
	"starling/transport"
	"starling/vpcproxy/header"
	"starling/vpcproxy/place"
)

const (
	sizeMax = 4096             // bytes of a question, and of an answer
	askTime = 25 * time.Second // for one gateway: names, then a connection
)

// A Question is one connection that somebody thinks of. It is sent as CBOR on a stream of transport.ChannelProbe and ends with it.
type Question struct {
	Network starling.NetworkRef `cbor:"1,keyasint"` // internet has the asking account
	Host    string              `cbor:"2,keyasint"` // an address, or a name of at most HostMax bytes
	Port    uint16              `cbor:"3,keyasint"`
}

// HostMax is the longest name, in bytes.
const HostMax = 253

// Validate reports whether q can be asked.
func (q Question) Validate() error {
	if q.Host == "" || len(q.Host) > HostMax || q.Port == 0 {
		return starling.Errorf(starling.Invalid, "test network", "use an address or a name of at most %d bytes, and a port from 1 to 65535, as in db.internal:5432", HostMax)
	}
	if err := q.Network.Account.Validate(); err != nil {
		return err
	}
	return q.Network.Name.Validate()
}

// An Answer is what the connection met.
type Answer struct {
	Addresses []netip.Addr    `cbor:"1,keyasint,omitempty"` // of the name, in the network; the address itself when it was one
	Answer    header.Answer   `cbor:"2,keyasint"`           // what a function's flow would be answered
	Reason    string          `cbor:"3,keyasint,omitempty"` // sentence for people; "" when it connected
	Took      time.Duration   `cbor:"4,keyasint,omitempty"` // to connect, at the gateway
	Gateway   starling.NodeID `cbor:"5,keyasint,omitempty"` // that was asked
}

// Read reads one question to the stream's end. The error is Invalid unless r's own.
func Read(r io.Reader) (q Question, err error) {
	if err := read(r, &q); err != nil {
		return q, err
	}
	return q, q.Validate()
}

// Write writes an answer.
func Write(w io.Writer, a Answer) error { return write(w, a) }

func read(r io.Reader, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, sizeMax+1))
	if err != nil {
		return err
	}
	if len(b) > sizeMax {
		return starling.Errorf(starling.Invalid, "test network", "more than %d bytes", sizeMax)
	}
	if err := cbor.Unmarshal(b, v); err != nil {
		return starling.Errorf(starling.Invalid, "test network", "%w", err)
	}
	return nil
}

func write(w io.Writer, v any) error {
	b, err := cbor.Marshal(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// A Client asks gateways, in the order in which hosts use them, until one is plugged into the network.
type Client struct {
	Open     func(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error)
	Gateways func() []starling.Node // that are alive
}

// Ask returns what a connection met at the first gateway that serves the network. The error is Unavailable when none answers.
func (c *Client) Ask(ctx context.Context, q Question) (Answer, error) {
	byID := map[starling.NodeID]string{}
	var ids []starling.NodeID
	for _, n := range c.Gateways() {
		byID[n.ID] = n.Addr
		ids = append(ids, n.ID)
	}
	var last error = starling.Errorf(starling.Unavailable, "test network", "no gateway is alive")
	var unplugged *Answer
	for _, id := range place.Rank(q.Network, ids) {
		a, err := c.askOne(ctx, byID[id], q)
		a.Gateway = id
		switch {
		case err != nil:
			last = starling.Errorf(starling.Unavailable, "test network", "gateway %s: %w", id, err)
		case a.Answer == header.NoUplink:
			unplugged = &a
		default:
			return a, nil
		}
	}
	if unplugged != nil {
		return *unplugged, nil
	}
	return Answer{}, last
}

func (c *Client) askOne(ctx context.Context, addr string, q Question) (a Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	s, err := c.Open(ctx, addr, transport.ChannelProbe)
	if err != nil {
		return a, err
	}
	defer s.Cancel()
	defer context.AfterFunc(ctx, s.Cancel)()
	if err := write(s, q); err != nil {
		return a, err
	}
	if err := s.CloseWrite(); err != nil {
		return a, err
	}
	return a, read(s, &a)
}
