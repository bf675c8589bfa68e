// Package desk is where the right to use a network is asked for: a host asks a manager for the grant of an instance, a gateway
// for the key that grants are signed with.
package desk

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"log/slog"
	"time"

	"starling"
	"starling/transport"
	"starling/vpcproxy/grant"
)

// The questions, on streams of transport.ChannelGrant: u8 number · u16 size · body. The answer: u8 0 or 1 + kind of the refusal · u16 size ·
// body or sentence. Numbers are big-endian and fixed for ever.
const (
	opGrant = 1 // u64 version · 3 u64 instance; the answer is a grant
	opRenew = 2 // an older grant, which may be over; the answer is a new one
	opKey   = 3 // the answer: u64 Unix nanoseconds of the manager's clock · public key
)

const (
	bodyMax = 2048
	askTime = 3 * time.Second
)

// A Signer answers on a manager.
type Signer struct {
	Seed    []byte // 32 bytes that all managers have and nobody else
	Version func(ctx context.Context, id starling.VersionID) (*starling.Version, error)
	// Placed reports whether the owner of a partition of the version's function has lately started it on the host.
	Placed func(ctx context.Context, v *starling.Version, host starling.NodeID) bool
	Now    func() time.Time
	Log    *slog.Logger
}

func (s *Signer) key() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(s.Seed) }

// Serve answers one stream.
func (s *Signer) Serve(st transport.Stream) {
	if st.SetReadDeadline(time.Now().Add(askTime)) != nil || st.SetWriteDeadline(time.Now().Add(2*askTime)) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	op, body, err := readSized(st)
	if err != nil {
		return
	}
	answer, err := s.answer(ctx, st.Peer().Node, op, body)
	status := byte(0)
	if err != nil {
		status, answer = 1+byte(starling.KindOf(err)), []byte(err.Error())
		answer = answer[:min(len(answer), bodyMax)]
	}
	if _, err := st.Write(appendSized(status, answer)); err == nil { // a peer that is gone asks another manager
		_ = st.CloseWrite()
	}
}

func (s *Signer) answer(ctx context.Context, from starling.NodeID, op byte, body []byte) ([]byte, error) {
	switch {
	case op == opGrant && len(body) == 32:
		n := func(i int) uint64 { return binary.BigEndian.Uint64(body[8*i:]) }
		return s.Grant(ctx, from, starling.VersionID(n(0)), starling.InstanceID{Partition: starling.PartitionID(n(1)), Epoch: starling.Epoch(n(2)), Seq: n(3)})
	case op == opRenew:
		return s.Renew(from, body)
	case op == opKey:
		return append(binary.BigEndian.AppendUint64(nil, uint64(s.Now().UnixNano())), s.key().Public().(ed25519.PublicKey)...), nil
	}
	return nil, starling.Errorf(starling.Invalid, "ask for grant", "question %d with %d bytes is not known here: upgrade this node", op, len(body))
}

// Grant signs a first grant for an instance of a version on a host, which a partition must have placed there.
func (s *Signer) Grant(ctx context.Context, host starling.NodeID, version starling.VersionID, instance starling.InstanceID) ([]byte, error) {
	const op = "sign grant"
	v, err := s.Version(ctx, version)
	if err != nil {
		return nil, err
	}
	if v.Config.Network == starling.NoNetwork {
		return nil, starling.Errorf(starling.Denied, op, "version %d has no network", version)
	}
	if !s.Placed(ctx, v, host) {
		s.Log.Warn("a host asked for the network of a version that is not placed on it", "host", host, "version", version, "function", v.Function)
		return nil, starling.Errorf(starling.Denied, op, "version %d is not placed on %s", version, host).With("NotPlaced")
	}
	return s.sign(grant.Grant{Attachment: starling.Attachment{Instance: instance, Function: v.Function, Version: v.ID, Network: v.Config.Network}, Host: host,
		First: s.Now().Unix()}), nil
}

// Renew signs again what a host was granted before, until grant.LifeMax after the first time.
func (s *Signer) Renew(host starling.NodeID, old []byte) ([]byte, error) {
	// One that is over is as good as one that runs: it says that the version was placed there, and when.
	g, err := grant.Read(s.key().Public().(ed25519.PublicKey), old, host)
	if err != nil {
		return nil, err
	}
	if age := s.Now().Unix() - g.First; age > int64(grant.LifeMax/time.Second) {
		return nil, starling.Errorf(starling.Denied, "renew grant", "it was first given more than %v ago", grant.LifeMax)
	}
	return s.sign(g), nil
}

func (s *Signer) sign(g grant.Grant) []byte {
	g.Until = s.Now().Add(grant.Life).Unix()
	return grant.Sign(s.key(), g)
}

func appendSized(first byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{first}, uint16(len(body))), body...)
}

func readSized(r io.Reader) (first byte, body []byte, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint16(head[1:])
	if n > bodyMax {
		return 0, nil, starling.Errorf(starling.Invalid, "ask for grant", "%d bytes: at most %d", n, bodyMax)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return head[0], body, err
}
