package frontend

import (
	"bytes"
	"context"
	"crypto/x509"
	"testing"
	"time"

	"starling"
	"starling/cluster/identity"
	"starling/frontend/client"
	"starling/transport"
	"starling/transport/quic"
)

// endpoint serves clients of s on a real QUIC port.
func endpoint(t testing.TB, s *Server) (addr string, trust quic.Trust) {
	t.Helper()
	ca, err := identity.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id, err := ca.Issue(identity.Grant{Node: 1, Roles: starling.AllRoles}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e := quic.New(quic.Config{Addr: "127.0.0.1:0", Identity: id})
	e.Handle(transport.ChannelClient, s.ServeClient)
	if err := e.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	roots := x509.NewCertPool()
	chain := id.Certificate().Certificate
	root, err := x509.ParseCertificate(chain[len(chain)-1])
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(root)
	return e.Addr(), quic.Trust{Roots: roots}
}

func TestDialOverQUIC(t *testing.T) {
	w := newWorld(t)
	addr, trust := endpoint(t, w.server)
	ctx, cancel := context.WithTimeout(bg, 20*time.Second)
	defer cancel()
	q, err := client.Dial(ctx, addr, w.user, "", trust)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for _, size := range []int{0, 1000, 200 << 10, starling.PayloadMax} {
		payload := bytes.Repeat([]byte("q"), size)
		r, err := q.Invoke(ctx, client.Call{Function: "echo", Payload: payload})
		if err != nil || !bytes.Equal(r.Payload, payload) {
			t.Fatalf("%d bytes: %v", size, err)
		}
	}
	if _, err := client.Dial(ctx, addr, "stk_wrong", "", trust); starling.KindOf(err) != starling.Denied {
		t.Fatalf("a wrong key: %v", err)
	}
	if _, err := client.Dial(ctx, addr, w.user, "other", trust); starling.ReasonOf(err) != "NotPermitted" {
		t.Fatalf("a user for another account: %v", err)
	}
	if _, err := client.Dial(ctx, addr, w.user, "", quic.Trust{Pin: [32]byte{1}}); starling.KindOf(err) != starling.Denied {
		t.Fatalf("a wrong cluster: %v", err)
	}
}
