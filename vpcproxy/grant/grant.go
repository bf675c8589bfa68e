// Package grant is the statement by which a gateway knows whose flow a host brings: signed by the cluster's managers, for one
// instance on one host, for a few minutes. It is pure.
package grant

import (
	"crypto/ed25519"
	"encoding/binary"
	"time"

	"starling"
)

// The times of a grant.
const (
	Life    = 5 * time.Minute // from its signature
	LifeMax = 3 * time.Hour   // of all renewals, from the first: an instance lives 2 hours
	Leeway  = time.Minute     // how much later than its end it is taken: the clocks of two managers may differ
)

// SizeMax is the largest encoded grant in bytes.
const SizeMax = 512

// Purpose names the key in what is derived from the CA's.
const Purpose = "network grants"

const (
	version = 1
	context = "starling network grant\x00" // before what is signed: the key's signatures mean nothing elsewhere
)

// A Grant lets one instance's flows through.
type Grant struct {
	starling.Attachment
	Host  starling.NodeID // who may show it
	First int64           // Unix seconds: when the first of its renewals was signed
	Until int64           // Unix seconds
}

// Sign returns g with its signature.
func Sign(key ed25519.PrivateKey, g Grant) []byte {
	b := []byte{version}
	for _, n := range []uint64{uint64(g.Host), uint64(g.First), uint64(g.Until), uint64(g.Version), uint64(g.Instance.Partition), uint64(g.Instance.Epoch), g.Instance.Seq} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, s := range []string{string(g.Function.Account), string(g.Function.Name), string(g.Network)} {
		b = append(append(b, byte(len(s))), s...)
	}
	return append(b, ed25519.Sign(key, append([]byte(context), b...))...)
}

// Open returns the grant in raw if it is signed, not over at now, and shown by the host that it names. The error is Denied.
func Open(key ed25519.PublicKey, raw []byte, host starling.NodeID, now time.Time) (Grant, error) {
	g, err := Read(key, raw, host)
	switch {
	case err != nil:
		return Grant{}, err
	case now.Unix() > g.Until+int64(Leeway/time.Second):
		return Grant{}, denied("it is over")
	case now.Unix() < g.First-int64(Leeway/time.Second):
		return Grant{}, denied("it has not begun")
	}
	return g, nil
}

// Read is Open of a grant that may be over.
func Read(key ed25519.PublicKey, raw []byte, host starling.NodeID) (Grant, error) {
	n := len(raw) - ed25519.SignatureSize
	if n < 1 || len(raw) > SizeMax || len(key) != ed25519.PublicKeySize {
		return Grant{}, denied("it has no signature")
	}
	if !ed25519.Verify(key, append([]byte(context), raw[:n]...), raw[n:]) {
		return Grant{}, denied("it is not signed by this cluster's managers")
	}
	g, ok := decode(raw[:n])
	if !ok {
		return Grant{}, denied("it is of another release")
	}
	if g.Host != host {
		return Grant{}, denied("another host shows it")
	}
	return g, nil
}

func denied(why string) error {
	return starling.Errorf(starling.Denied, "read grant", "%s", why).With("Grant")
}

func decode(b []byte) (g Grant, ok bool) {
	if len(b) < 1+7*8 || b[0] != version {
		return g, false
	}
	b = b[1:]
	number := func() uint64 {
		n := binary.BigEndian.Uint64(b)
		b = b[8:]
		return n
	}
	g.Host, g.First, g.Until, g.Version = starling.NodeID(number()), int64(number()), int64(number()), starling.VersionID(number())
	g.Instance = starling.InstanceID{Partition: starling.PartitionID(number()), Epoch: starling.Epoch(number()), Seq: number()}
	ok = true
	text := func() string {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			ok = false
			return ""
		}
		s := string(b[1 : 1+b[0]])
		b = b[1+len(s):]
		return s
	}
	g.Function.Account, g.Function.Name, g.Network = starling.AccountID(text()), starling.FunctionName(text()), starling.NetworkName(text())
	return g, ok && len(b) == 0
}
