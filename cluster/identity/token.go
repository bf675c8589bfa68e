package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"strings"

	"starling"
)

var tokenText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

const tokenBytes = 20

// A Token lets one node join once: a secret for the cluster and the fingerprint of the cluster's CA for the node.
// The node checks the fingerprint before it sends the secret, so nobody in between can take it.
type Token struct {
	Secret string
	CA     [32]byte
}

// NewToken draws a token for the cluster of ca.
func NewToken(ca [32]byte) Token {
	var b [tokenBytes]byte
	rand.Read(b[:])
	return Token{Secret: tokenText.EncodeToString(b[:]), CA: ca}
}

// String is the secret, a dot and the fingerprint in hexadecimal digits.
func (t Token) String() string { return t.Secret + "." + FormatFingerprint(t.CA) }

// SecretHash is what the cluster keeps of the token.
func (t Token) SecretHash() [32]byte { return sha256.Sum256([]byte(t.Secret)) }

// ParseToken reads what String wrote; blanks around it are ignored.
func ParseToken(s string) (Token, error) {
	secret, print, ok := strings.Cut(strings.TrimSpace(s), ".")
	raw, err := tokenText.DecodeString(secret)
	ca, err2 := hex.DecodeString(print)
	if !ok || err != nil || err2 != nil || len(raw) != tokenBytes || len(ca) != 32 || tokenText.EncodeToString(raw) != secret || hex.EncodeToString(ca) != print {
		return Token{}, starling.Errorf(starling.Invalid, "read join token", "it is not of the form <secret>.<fingerprint>: copy the whole token")
	}
	return Token{Secret: secret, CA: [32]byte(ca)}, nil
}
