// Package identity makes and keeps the certificates by which the nodes of one cluster know each other: the
// cluster's own CA, node certificates that carry cluster, roles and node id, and the one-time tokens with which
// a new node finds the right CA before it says anything. Only the standard library's cryptography is used.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"starling"
)

const (
	// Life is how long a node certificate is valid. A node that lost its place in the cluster is refused by
	// the member list at once; the short life is for the case that the member list cannot be asked.
	Life = 24 * time.Hour

	caLife    = 10 * 365 * 24 * time.Hour
	clockSkew = 2 * time.Hour // how far the clocks of two machines may differ: who signs with a clock that is ahead must not shut a node out
	uriScheme = "starling"
)

var clusterPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// A Grant is what a certificate says of its holder.
type Grant struct {
	Node  starling.NodeID
	Roles starling.Roles
	Life  time.Duration // from now; Life when 0
}

// A CA signs the certificates of one cluster. It is safe for concurrent use.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// NewCA makes the key and certificate of a new cluster. The name is 1–32 of a-z, 0-9 and "-".
func NewCA(cluster string, now time.Time) (*CA, error) {
	if !clusterPattern.MatchString(cluster) {
		return nil, starling.Errorf(starling.Invalid, "create cluster", "%q is no cluster name: use 1-32 of a-z, 0-9 and \"-\"", cluster)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "starling cluster " + cluster},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(caLife), IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: uriScheme, Host: cluster}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign own certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read own certificate: %w", err)
	}
	return &CA{cluster: cluster, cert: cert, key: key}, nil
}

// Cluster is the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// Certificate is the CA's own, in DER. Do not change it.
func (ca *CA) Certificate() []byte { return ca.cert.Raw }

// Fingerprint is the SHA-256 of the CA's certificate.
func (ca *CA) Fingerprint() [32]byte { return sha256.Sum256(ca.cert.Raw) }

// Secret derives 32 bytes for one purpose from the CA's key: who has the key can derive them again, on any manager and after a
// restore, and nobody else can. They say nothing about the key or about another purpose's.
func (ca *CA) Secret(purpose string) ([]byte, error) {
	key, err := ca.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive secret: %w", err)
	}
	secret, err := hkdf.Key(sha256.New, key, nil, "starling "+purpose, 32)
	if err != nil {
		return nil, fmt.Errorf("derive secret: %w", err)
	}
	return secret, nil
}

// Sign issues a certificate for the key in a PKCS #10 request, in DER. Of the request only the key and the
// proof that the sender holds it are used: what the certificate says comes from the grant.
func (ca *CA) Sign(csr []byte, g Grant, now time.Time) ([]byte, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "sign certificate", "the request cannot be read: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, starling.Errorf(starling.Invalid, "sign certificate", "the request is not signed by its own key: %w", err)
	}
	pub, ok := req.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, starling.Errorf(starling.Invalid, "sign certificate", "the key is %T: only ECDSA on P-256 is taken", req.PublicKey)
	}
	if g.Node == 0 || g.Roles == 0 {
		return nil, starling.Errorf(starling.Invalid, "sign certificate", "a certificate needs a node id and at least one role")
	}
	if g.Life == 0 {
		g.Life = Life
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: g.Node.String()},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(g.Life), BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{nodeURI(ca.cluster, g.Roles, g.Node)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %v: %w", g.Node, err)
	}
	return der, nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// nodeURI is starling://cluster/roles/id, the one name in a node's certificate.
func nodeURI(cluster string, roles starling.Roles, node starling.NodeID) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: cluster, Path: "/" + roles.String() + "/" + strconv.FormatUint(uint64(node), 10)}
}

// ParseName reads the cluster, roles and node id out of a node's certificate. Whether the certificate is to be
// believed is for its verifier to say.
func ParseName(cert *x509.Certificate) (cluster string, node starling.NodeID, roles starling.Roles, err error) {
	fail := func(why string) (string, starling.NodeID, starling.Roles, error) {
		return "", 0, 0, starling.Errorf(starling.Denied, "read certificate", "%s: it is no node certificate of this system", why)
	}
	if cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != uriScheme {
		return fail("the certificate names no node")
	}
	u := cert.URIs[0]
	if !clusterPattern.MatchString(u.Host) {
		return fail(fmt.Sprintf("the certificate names the cluster %q", u.Host))
	}
	words, id, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	n, err := strconv.ParseUint(id, 10, 64)
	if !ok || err != nil || n == 0 {
		return fail(fmt.Sprintf("the certificate names the node %q", u.Path))
	}
	if roles, err = starling.ParseRoles(words); err != nil {
		return fail(err.Error())
	}
	return u.Host, starling.NodeID(n), roles, nil
}

// FormatFingerprint returns the 64 hexadecimal digits people see.
func FormatFingerprint(f [32]byte) string { return hex.EncodeToString(f[:]) }
