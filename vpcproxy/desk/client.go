package desk

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"time"

	"starling"
	"starling/transport"
)

// A Client asks managers, one after the other until one answers. A refusal is an answer.
type Client struct {
	Self     starling.NodeID
	Open     func(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error)
	Managers func() []string // their addresses
	Local    *Signer         // of this node; nil when it is no manager
}

// Grant asks for the first grant of an instance of a version on this host.
func (c *Client) Grant(ctx context.Context, version starling.VersionID, instance starling.InstanceID) ([]byte, error) {
	if c.Local != nil {
		return c.Local.Grant(ctx, c.Self, version, instance)
	}
	var body []byte
	for _, n := range []uint64{uint64(version), uint64(instance.Partition), uint64(instance.Epoch), instance.Seq} {
		body = binary.BigEndian.AppendUint64(body, n)
	}
	return c.ask(ctx, opGrant, body)
}

// Renew asks for a grant in place of an older one.
func (c *Client) Renew(ctx context.Context, old []byte) ([]byte, error) {
	if c.Local != nil {
		return c.Local.Renew(c.Self, old)
	}
	return c.ask(ctx, opRenew, old)
}

// Key asks for the key that grants are signed with, and what a manager's clock says.
func (c *Client) Key(ctx context.Context) (ed25519.PublicKey, time.Time, error) {
	var answer []byte
	var err error
	if c.Local != nil {
		answer, err = c.Local.answer(ctx, c.Self, opKey, nil)
	} else {
		answer, err = c.ask(ctx, opKey, nil)
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	if len(answer) != 8+ed25519.PublicKeySize {
		return nil, time.Time{}, starling.Errorf(starling.Unavailable, "ask for grant key", "an answer of %d bytes", len(answer))
	}
	return answer[8:], time.Unix(0, int64(binary.BigEndian.Uint64(answer))), nil
}

func (c *Client) ask(ctx context.Context, op byte, body []byte) ([]byte, error) {
	var last error = starling.Errorf(starling.Unavailable, "ask for grant", "no manager is known")
	for _, addr := range c.Managers() {
		answer, err := c.askOne(ctx, addr, op, body)
		if err == nil || starling.KindOf(err) == starling.Denied || ctx.Err() != nil {
			return answer, err
		}
		last = err
	}
	return nil, last
}

func (c *Client) askOne(ctx context.Context, addr string, op byte, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	s, err := c.Open(ctx, addr, transport.ChannelGrant)
	if err != nil {
		return nil, err
	}
	defer s.Cancel()
	defer context.AfterFunc(ctx, s.Cancel)()
	if _, err := s.Write(appendSized(op, body)); err != nil {
		return nil, err
	}
	status, answer, err := readSized(s)
	if err != nil {
		return nil, err
	}
	if status != 0 {
		return nil, starling.Errorf(starling.Kind(status-1), "ask for grant", "%s", answer)
	}
	return answer, nil
}
