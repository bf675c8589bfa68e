package quic

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"starling"
	"starling/transport"
)

// Trust is how an end without a certificate of its own knows that it speaks to the right cluster: by the CA's
// certificate or by its fingerprint. One of the two is needed.
type Trust struct {
	Roots *x509.CertPool
	Pin   [32]byte // SHA-256 of the CA's certificate; counts when Roots is nil
}

// A Client is one connection of an end that is no node. Close it.
type Client struct {
	conn *quicgo.Conn
	ch   transport.Channel
	addr string
}

// DialClient connects to a node for a developer's calls: every stream is one on ChannelClient.
func DialClient(ctx context.Context, addr string, t Trust) (*Client, error) {
	return dialOther(ctx, addr, t, protoClient, transport.ChannelClient)
}

// DialJoin connects to a node for asking to be admitted: every stream is one on ChannelJoin. With the pin of
// a join token nothing is sent to anybody but the token's cluster.
func DialJoin(ctx context.Context, addr string, t Trust) (*Client, error) {
	return dialOther(ctx, addr, t, protoJoin, transport.ChannelJoin)
}

func dialOther(ctx context.Context, addr string, t Trust, proto string, ch transport.Channel) (*Client, error) {
	if t.Roots == nil && t.Pin == [32]byte{} {
		return nil, starling.Errorf(starling.Invalid, "reach "+addr, "neither the cluster's CA nor its fingerprint is known: give one")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*handshakeTime)
	defer cancel()
	ua, err := resolve(ctx, addr)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{proto}, ServerName: "starling",
		InsecureSkipVerify: true, // VerifyConnection checks the chain; hosts are not named in node certificates
		VerifyConnection:   func(s tls.ConnectionState) error { return t.verify(s.PeerCertificates, time.Now()) },
	}
	c, err := quicgo.DialAddr(ctx, ua.String(), conf, quicConfig(idleOther, idleOther/3))
	if err != nil {
		return nil, dialError(err, addr)
	}
	if err := awaitWelcome(ctx, c); err != nil {
		c.CloseWithError(codeBye, "no welcome")
		return nil, dialError(err, addr)
	}
	return &Client{conn: c, ch: ch, addr: addr}, nil
}

// verify accepts a leaf that the trusted CA signed. With a pin the CA's certificate must be in the chain.
func (t Trust) verify(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return starling.Errorf(starling.Denied, "verify cluster", "it presented no certificate")
	}
	roots := t.Roots
	if roots == nil {
		roots = x509.NewCertPool()
		found := false
		for _, c := range chain[1:] {
			if sha256.Sum256(c.Raw) == t.Pin && c.IsCA {
				roots.AddCert(c)
				found = true
			}
		}
		if !found {
			return starling.Errorf(starling.Denied, "verify cluster", "its CA is not the one with this fingerprint: the token or fingerprint is of another cluster, or somebody is in between")
		}
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return starling.Errorf(starling.Denied, "verify cluster", "its certificate does not come from the trusted CA: %w", err)
	}
	return nil
}

// Open opens a stream.
func (c *Client) Open(ctx context.Context) (transport.Stream, error) {
	s, err := openStream(ctx, c.conn, c.ch)
	if err != nil {
		return nil, translate(err, c.addr)
	}
	return &stream{Stream: s, peer: transport.Peer{Addr: c.addr}}, nil
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.conn.Context().Done() }

// Close ends the connection with every stream on it.
func (c *Client) Close() error {
	if err := c.conn.CloseWithError(codeBye, "bye"); err != nil {
		return starling.Errorf(starling.Internal, "close client", "%w", err)
	}
	return nil
}

func addrPort(ip netip.Addr, port int) netip.AddrPort {
	return netip.AddrPortFrom(ip.Unmap(), uint16(port))
}
