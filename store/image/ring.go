package image

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead/subtle"

	"starling"
)

// A Ring keeps the keys of a cluster's images: each image has a key of its own, which is kept, sealed by the key of its account,
// in the image's index. The keys of accounts are derived from one secret and are nowhere else. Managers have a Ring.
type Ring struct{ secret []byte }

// NewRing returns the ring of a cluster secret of at least 32 bytes.
func NewRing(secret []byte) (*Ring, error) {
	if len(secret) < KeySize {
		return nil, starling.Errorf(starling.Invalid, "open key ring", "a secret of %d bytes: 32 are needed", len(secret))
	}
	return &Ring{secret}, nil
}

// Wrap seals the key of the image of subject.
func (r *Ring) Wrap(key []byte, subject Subject) ([]byte, error) {
	aead, err := r.account(subject.Account)
	if err != nil {
		return nil, err
	}
	return aead.Encrypt(key, subject.bytes("key"))
}

// Unwrap opens what Wrap sealed. The key of another account's or package's image is Invalid.
func (r *Ring) Unwrap(wrapped []byte, subject Subject) ([]byte, error) {
	aead, err := r.account(subject.Account)
	if err != nil {
		return nil, err
	}
	key, err := aead.Decrypt(wrapped, subject.bytes("key"))
	if err != nil || len(key) != KeySize {
		return nil, starling.Errorf(starling.Invalid, "open image key", "it was not sealed here for this package").With("BadImage")
	}
	return key, nil
}

func (r *Ring) account(id starling.AccountID) (*subtle.AESGCM, error) {
	key, err := hkdf.Key(sha256.New, r.secret, nil, "starling code of account "+string(id), KeySize)
	if err != nil {
		return nil, fmt.Errorf("derive key of account: %w", err)
	}
	return subtle.NewAESGCM(key)
}
