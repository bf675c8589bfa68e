package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"starling/internal/durable"

	"starling"
)

// The files of the identity directory. Key and certificate share a file so that one rename replaces both.
const (
	nodeFile = "node.pem" // the node's key, its certificate, the CA's certificate
	caFile   = "ca.pem"   // the CA's key and certificate; on managers only

	typeKey  = "PRIVATE KEY"
	typeCert = "CERTIFICATE"
)

// Save writes the identity to dir, which it makes when missing. A crash leaves the old file or the new.
func (n *Node) Save(dir string) error {
	data, err := encode(n.key, n.current.Load().tls.Leaf.Raw, n.ca.Raw)
	if err != nil {
		return err
	}
	return writeFile(dir, nodeFile, data)
}

// Load reads the identity that Save wrote. The error is NotFound when the node has none yet, Internal when the
// file is damaged.
func Load(dir string) (*Node, error) {
	key, certs, err := readFile(dir, nodeFile, 2)
	if err != nil {
		return nil, err
	}
	n, err := newNode(key, certs[0], certs[1])
	if err != nil {
		return nil, damaged(filepath.Join(dir, nodeFile), err)
	}
	return n, nil
}

// Marshal returns the CA with its key, in PEM, for another manager. Whoever reads it can admit nodes.
func (ca *CA) Marshal() ([]byte, error) { return encode(ca.key, ca.cert.Raw) }

// ParseCA reads what Marshal wrote.
func ParseCA(data []byte) (*CA, error) {
	key, certs, err := decode(data, 1)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "read CA", "%w", err)
	}
	return newCA(key, certs[0])
}

func newCA(key *ecdsa.PrivateKey, der []byte) (*CA, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	if pub, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	if !cert.IsCA || len(cert.URIs) != 1 || cert.URIs[0].Scheme != uriScheme {
		return nil, errors.New("the certificate is not of a cluster's CA")
	}
	return &CA{cluster: cert.URIs[0].Host, cert: cert, key: key}, nil
}

// Save writes the CA to dir, which it makes when missing.
func (ca *CA) Save(dir string) error {
	data, err := ca.Marshal()
	if err != nil {
		return err
	}
	return writeFile(dir, caFile, data)
}

// LoadCA reads the CA that Save wrote; errors as Load's.
func LoadCA(dir string) (*CA, error) {
	key, certs, err := readFile(dir, caFile, 1)
	if err != nil {
		return nil, err
	}
	ca, err := newCA(key, certs[0])
	if err != nil {
		return nil, damaged(filepath.Join(dir, caFile), err)
	}
	return ca, nil
}

func encode(key *ecdsa.PrivateKey, certs ...[]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der})
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: typeCert, Bytes: c})...)
	}
	return out, nil
}

// decode reads one key and exactly want certificates.
func decode(data []byte, want int) (*ecdsa.PrivateKey, [][]byte, error) {
	var key *ecdsa.PrivateKey
	var certs [][]byte
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		switch {
		case b.Type == typeCert:
			certs = append(certs, b.Bytes)
		case b.Type == typeKey && key == nil:
			k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("read key: %w", err)
			}
			ec, ok := k.(*ecdsa.PrivateKey)
			if !ok {
				return nil, nil, fmt.Errorf("the key is %T, not ECDSA", k)
			}
			key = ec
		default:
			return nil, nil, fmt.Errorf("a block %q does not belong there", b.Type)
		}
	}
	if rest := bytes.TrimSpace(data); len(rest) > 0 {
		return nil, nil, fmt.Errorf("%d bytes at the end are no PEM", len(rest))
	}
	if key == nil || len(certs) != want {
		return nil, nil, fmt.Errorf("it holds %d certificates and key=%t, wanted %d and a key", len(certs), key != nil, want)
	}
	return key, certs, nil
}

func readFile(dir, name string, certs int) (*ecdsa.PrivateKey, [][]byte, error) {
	p := filepath.Join(dir, name)
	data, err := os.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, starling.Errorf(starling.NotFound, "load identity", "%s is missing: this node has not joined a cluster from this directory; start a cluster or join one with a token", p)
	}
	if err != nil {
		return nil, nil, starling.Errorf(starling.Internal, "load identity", "%s cannot be read: %w", p, err)
	}
	key, ders, err := decode(data, certs)
	if err != nil {
		return nil, nil, damaged(p, err)
	}
	return key, ders, nil
}

func damaged(p string, err error) error {
	return starling.Errorf(starling.Internal, "load identity", "%s is damaged: restore it from a backup, or remove the node from the cluster and join again with an empty data directory: %w", p, err)
}

// writeFile replaces a file as a whole, readable by its owner only.
func writeFile(dir, name string, data []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}
