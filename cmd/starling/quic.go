package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"os"

	"starling"
	"starling/frontend/client"
	"starling/transport/quic"
)

func (a *app) invokeQUIC(ctx context.Context, call client.Call) (*client.Result, error) {
	q, err := a.quicClient()
	if err != nil {
		return nil, err
	}
	defer q.Close()
	return q.Invoke(ctx, call)
}

// quicClient returns a client of the frontend's QUIC endpoint that connects at its first call.
func (a *app) quicClient() (*client.QUIC, error) {
	trust, err := a.trust()
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (client.Conn, error) {
		c, err := quic.DialClient(ctx, a.set.text("quic-addr"), trust)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	return client.NewQUIC(dial, a.set.text("key"), starling.AccountID(a.set.text("account"))), nil
}

// trust is how the cluster is known over QUIC: by its CA's certificate or by the certificate's fingerprint. There
// is no third way, because the key would go to whoever answers.
func (a *app) trust() (t quic.Trust, err error) {
	ca, pin := a.set.text("ca"), a.set.text("pin")
	switch {
	case ca != "":
		pem, err := os.ReadFile(ca)
		if err != nil {
			return t, usagef("read --ca (from the %s): %v", a.set.from("ca"), err)
		}
		t.Roots = x509.NewCertPool()
		if !t.Roots.AppendCertsFromPEM(pem) {
			return t, usagef("--ca (from the %s): %s holds no certificate", a.set.from("ca"), ca)
		}
	case pin != "":
		b, err := hex.DecodeString(pin)
		if err != nil || len(b) != len(t.Pin) {
			return t, usagef("--pin (from the %s): it is not 64 hex digits; it is the part of a join token after the dot", a.set.from("pin"))
		}
		t.Pin = [32]byte(b)
	default:
		return t, usagef("QUIC needs to know the cluster: set --pin (the part of a join token after the dot), or --ca")
	}
	return t, nil
}
