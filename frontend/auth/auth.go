// Package auth turns a bearer key into the account and role it stands for. The cluster knows keys by their
// SHA-256 only, so a stolen catalog opens nothing.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"strings"
	"sync/atomic"

	"starling"
)

// A bearer key is "stk_" + id + "_" + secret, the id of 8 and the secret of 32 characters of base 62: 190 bits.
// The prefix lets scanners find keys that were published by mistake.
const (
	prefix    = "stk_"
	idLength  = 8
	keyLength = len(prefix) + idLength + 1 + 32
	base62    = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// NewKey draws a bearer key and returns it with what the cluster stores of it; account, role and time of
// creation are the caller's to fill in.
func NewKey() (secret string, key starling.Key) {
	b := make([]byte, 0, keyLength)
	b = append(b, prefix...)
	b = appendBase62(b, idLength)
	b = append(b, '_')
	b = appendBase62(b, 32)
	secret = string(b)
	return secret, starling.Key{Hash: sha256.Sum256(b), ID: secret[len(prefix) : len(prefix)+idLength]}
}

// appendBase62 appends n characters, each with the same chance: bytes from 248 up are drawn again.
func appendBase62(b []byte, n int) []byte {
	var draw [64]byte
	for n > 0 {
		rand.Read(draw[:]) // never fails; the standard library ends the program instead
		for _, c := range draw {
			if c < 248 && n > 0 {
				b = append(b, base62[c%62])
				n--
			}
		}
	}
	return b
}

// wellFormed reports whether s could be a key at all; what could not is refused without asking anybody.
func wellFormed(s string) bool {
	if len(s) != keyLength || !strings.HasPrefix(s, prefix) || s[len(prefix)+idLength] != '_' {
		return false
	}
	for i := len(prefix); i < len(s); i++ {
		c := s[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && i != len(prefix)+idLength {
			return false
		}
	}
	return true
}

// A Principal is whom a request acts for.
type Principal struct {
	Account starling.AccountID
	Role    starling.KeyRole
	KeyID   string
}

// Keys finds a key by its hash; cluster.Catalog does, with a cache that forgets revoked keys at once.
type Keys interface {
	Key(ctx context.Context, hash [32]byte) (starling.Key, error)
}

const (
	seenSlots  = 4096 // known good hashes; a power of two
	unknownMax = 64   // look-ups of hashes not seen before, at once
)

// An Authenticator checks keys. It holds no goroutine. The catalog is asked for every request, so that a
// revoked key is refused as soon as the catalog knows; a flood of wrong keys is bounded here, so that it
// neither loads the managers nor slows requests with good ones.
type Authenticator struct {
	keys    Keys
	seen    [seenSlots]atomic.Pointer[[32]byte] // hashes that were good, by their first bits
	unknown chan struct{}
}

// New returns an authenticator over keys.
func New(keys Keys) *Authenticator {
	return &Authenticator{keys: keys, unknown: make(chan struct{}, unknownMax)}
}

// Authenticate finds out whom the value of an Authorization header stands for. A missing, malformed, unknown
// or revoked key is Denied with one and the same error.
func (a *Authenticator) Authenticate(ctx context.Context, authorization string) (Principal, error) {
	const scheme = "bearer "
	if len(authorization) != len(scheme)+keyLength || !strings.EqualFold(authorization[:len(scheme)], scheme) {
		return Principal{}, denied()
	}
	return a.AuthenticateKey(ctx, authorization[len(scheme):])
}

// AuthenticateKey is Authenticate for a key without a header around it.
func (a *Authenticator) AuthenticateKey(ctx context.Context, secret string) (Principal, error) {
	if !wellFormed(secret) {
		return Principal{}, denied()
	}
	var buf [keyLength]byte
	copy(buf[:], secret)
	hash := sha256.Sum256(buf[:])
	slot := &a.seen[(uint(hash[0])<<8|uint(hash[1]))%seenSlots]
	known := slot.Load()
	if known == nil || *known != hash {
		select {
		case a.unknown <- struct{}{}:
			defer func() { <-a.unknown }()
		default:
			return Principal{}, starling.Errorf(starling.Overloaded, "check key", "too many unknown keys are being looked up: retry after a pause").With("AuthBusy")
		}
	}
	k, err := a.keys.Key(ctx, hash)
	if err != nil {
		if starling.KindOf(err) == starling.NotFound {
			return Principal{}, denied()
		}
		return Principal{}, err
	}
	if subtle.ConstantTimeCompare(k.Hash[:], hash[:]) != 1 {
		return Principal{}, denied()
	}
	if known == nil || *known != hash {
		h := hash
		slot.Store(&h)
	}
	return Principal{Account: k.Account, Role: k.Role, KeyID: k.ID}, nil
}

// ReasonKey and ReasonRole are the two reasons of Denied: no good key at all, and a good key without the right.
const (
	ReasonKey  = "BadKey"
	ReasonRole = "NotPermitted"
)

func denied() error {
	return starling.Errorf(starling.Denied, "check key", "no valid key: send \"Authorization: Bearer stk_...\" with a key that is not revoked").With(ReasonKey)
}

// For returns p acting for account: its own, or any when p is an admin. An empty account means its own.
func (p Principal) For(account string) (Principal, error) {
	if account == "" || account == string(p.Account) {
		return p, nil
	}
	if err := p.MustAdmin(); err != nil {
		return Principal{}, err
	}
	if err := starling.AccountID(account).Validate(); err != nil {
		return Principal{}, err
	}
	p.Account = starling.AccountID(account)
	return p, nil
}

// MustAdmin refuses a principal that is no admin.
func (p Principal) MustAdmin() error {
	if p.Role == starling.KeyAdmin {
		return nil
	}
	return starling.Errorf(starling.Denied, "check key", "this needs an admin key").With(ReasonRole)
}
