package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"time"

	"starling"
	"starling/transport"
)

// A Request is a node's new key and the request for a certificate that goes to the CA.
type Request struct {
	CSR []byte // PKCS #10, DER
	key *ecdsa.PrivateKey
}

// NewRequest draws a key.
func NewRequest() (*Request, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	csr, err := newCSR(key)
	if err != nil {
		return nil, err
	}
	return &Request{CSR: csr, key: key}, nil
}

func newCSR(key *ecdsa.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}

// Accept makes the node's identity from the signed certificate and the CA's, both DER. It refuses a certificate
// that is not for this key or not by this CA.
func (r *Request) Accept(cert, ca []byte) (*Node, error) { return newNode(r.key, cert, ca) }

// A Node is one node's identity: its key, its newest certificate and the CA it believes. It is safe for
// concurrent use; Renew replaces the certificate under running connections.
type Node struct {
	key      *ecdsa.PrivateKey
	ca       *x509.Certificate
	roots    *x509.CertPool
	resetKey [32]byte
	current  atomic.Pointer[current]
}

// current is what one certificate says, parsed once.
type current struct {
	tls     tls.Certificate
	cluster string
	node    starling.NodeID
	roles   starling.Roles
}

// Issue makes the identity of a node where the CA is at hand: the first node of a cluster, and tests.
func (ca *CA) Issue(g Grant, now time.Time) (*Node, error) {
	r, err := NewRequest()
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(r.CSR, g, now)
	if err != nil {
		return nil, err
	}
	return r.Accept(cert, ca.cert.Raw)
}

func newNode(key *ecdsa.PrivateKey, cert, ca []byte) (*Node, error) {
	parsed, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "accept certificate", "the CA's certificate cannot be read: %w", err)
	}
	n := &Node{key: key, ca: parsed, roots: x509.NewCertPool()}
	n.roots.AddCert(parsed)
	secret, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	derived, err := hkdf.Key(sha256.New, secret, nil, "starling quic stateless reset", len(n.resetKey))
	if err != nil {
		return nil, fmt.Errorf("derive reset key: %w", err)
	}
	copy(n.resetKey[:], derived)
	return n, n.Renew(cert)
}

// Renew puts a new certificate for the same key in use; connections made from now on present it.
func (n *Node) Renew(cert []byte) error {
	leaf, err := x509.ParseCertificate(cert)
	if err != nil {
		return starling.Errorf(starling.Invalid, "accept certificate", "it cannot be read: %w", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&n.key.PublicKey) {
		return starling.Errorf(starling.Invalid, "accept certificate", "it is for another key")
	}
	// Expiry is for the peers to judge by their clocks; here only the signature matters.
	if err := leaf.CheckSignatureFrom(n.ca); err != nil {
		return starling.Errorf(starling.Denied, "accept certificate", "it is not signed by this cluster's CA: %w", err)
	}
	c := &current{tls: tls.Certificate{Certificate: [][]byte{leaf.Raw, n.ca.Raw}, PrivateKey: n.key, Leaf: leaf}}
	if c.cluster, c.node, c.roles, err = ParseName(leaf); err != nil {
		return err
	}
	n.current.Store(c)
	return nil
}

// CSR is a request for the next certificate of the same key.
func (n *Node) CSR() ([]byte, error) { return newCSR(n.key) }

// RenewAt is when to ask for the next certificate: after two thirds of the life of this one.
func (n *Node) RenewAt() time.Time {
	leaf := n.current.Load().tls.Leaf
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
}

// NotAfter is when the newest certificate ends.
func (n *Node) NotAfter() time.Time { return n.current.Load().tls.Leaf.NotAfter }

// Cluster is the name of the cluster.
func (n *Node) Cluster() string { return n.current.Load().cluster }

// ID is the node's id.
func (n *Node) ID() starling.NodeID { return n.current.Load().node }

// Roles is what the node may do.
func (n *Node) Roles() starling.Roles { return n.current.Load().roles }

// CA is the certificate of the CA, DER. Do not change it.
func (n *Node) CA() []byte { return n.ca.Raw }

// Certificate is the newest certificate with its key, the CA's behind it. Do not change it.
func (n *Node) Certificate() *tls.Certificate { return &n.current.Load().tls }

// ResetKey keys the stateless resets of the node's port. It stays the same over restarts and renewals, so that
// a peer learns at once that a connection belongs to an earlier life of this node.
func (n *Node) ResetKey() [32]byte { return n.resetKey }

// Verify tells who presented a chain of certificates, leaf first. The error is Denied and names the reason.
func (n *Node) Verify(chain []*x509.Certificate, now time.Time) (transport.Peer, error) {
	return Verify(chain, n.roots, n.Cluster(), now)
}

// Verify tells who presented a chain of certificates, leaf first: a node of the named cluster ("" for any) whose
// certificate one of the roots signed.
func Verify(chain []*x509.Certificate, roots *x509.CertPool, cluster string, now time.Time) (transport.Peer, error) {
	if len(chain) == 0 {
		return transport.Peer{}, starling.Errorf(starling.Denied, "verify peer", "it presented no certificate")
	}
	leaf := chain[0]
	c, node, roles, err := ParseName(leaf)
	if err != nil {
		return transport.Peer{}, err
	}
	if cluster != "" && c != cluster {
		return transport.Peer{}, starling.Errorf(starling.Denied, "verify peer", "it is %v of the cluster %q, this is %q", node, c, cluster)
	}
	if now.After(leaf.NotAfter) {
		return transport.Peer{}, starling.Errorf(starling.Denied, "verify peer", "the certificate of %v expired at %s: it must renew or join again",
			node, leaf.NotAfter.UTC().Format(time.RFC3339)).With("Expired")
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return transport.Peer{}, starling.Errorf(starling.Denied, "verify peer", "the certificate of %v does not come from this cluster's CA: %w", node, err)
	}
	return transport.Peer{Node: node, Roles: roles}, nil
}
