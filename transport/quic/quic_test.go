package quic

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/cluster/identity"
	"starling/transport"
	"starling/transport/transporttest"
)

// mustCA is cluster/identity's; a test may import upwards.
func mustCA(t testing.TB, cluster string) *identity.CA {
	t.Helper()
	ca, err := identity.NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func mustIssue(t testing.TB, ca *identity.CA, g identity.Grant, now time.Time) *identity.Node {
	t.Helper()
	n, err := ca.Issue(g, now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// listen opens an endpoint that closes with the test.
func listen(t testing.TB, cfg Config, handle func(*Endpoint)) *Endpoint {
	t.Helper()
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	e := New(cfg)
	if handle != nil {
		handle(e)
	}
	if err := e.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func node(t testing.TB, ca *identity.CA, id starling.NodeID) *identity.Node {
	return mustIssue(t, ca, identity.Grant{Node: id, Roles: starling.AllRoles}, time.Now())
}

func echo(s transport.Stream) {
	io.Copy(s, s)
	s.CloseWrite()
}

func TestContract(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Maker {
		ca := mustCA(t, "test")
		ids := map[starling.NodeID]*identity.Node{}
		return func(t *testing.T, id starling.NodeID, addr string) transporttest.Node {
			if addr == "" {
				addr = "127.0.0.1:0"
			}
			if ids[id] == nil {
				ids[id] = node(t, ca, id)
			}
			return New(Config{Addr: addr, Identity: ids[id]})
		}
	})
}

func TestStrangersGetNoConnection(t *testing.T) {
	ca, now := mustCA(t, "prod"), time.Now()
	server := listen(t, Config{Identity: node(t, ca, 1), Revoked: func(n starling.NodeID) bool { return n == 9 }},
		func(e *Endpoint) { e.Handle(transport.ChannelActor, echo) })
	for name, c := range map[string]struct {
		id   *identity.Node
		says string
	}{
		"another cluster's CA": {mustIssue(t, mustCA(t, "prod"), identity.Grant{Node: 2, Roles: starling.AllRoles}, now), "CA"},
		"another cluster":      {mustIssue(t, mustCA(t, "other"), identity.Grant{Node: 2, Roles: starling.AllRoles}, now), "cluster"},
		"expired":              {mustIssue(t, ca, identity.Grant{Node: 2, Roles: starling.AllRoles, Life: time.Minute}, now.Add(-time.Hour)), "expired"},
		"revoked":              {node(t, ca, 9), "refuses"},
	} {
		t.Run(name, func(t *testing.T) {
			e := listen(t, Config{Identity: c.id}, nil)
			_, err := e.Open(t.Context(), server.Addr(), transport.ChannelActor)
			if starling.KindOf(err) != starling.Denied || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want Denied with %q", err, c.says)
			}
		})
	}
}

func TestChannelsFollowRoles(t *testing.T) {
	ca := mustCA(t, "prod")
	server := listen(t, Config{Identity: node(t, ca, 1), Allow: func(p transport.Peer, ch transport.Channel) bool {
		return ch != transport.ChannelRaft || p.Roles.Has(starling.RoleManager)
	}}, func(e *Endpoint) {
		for ch := transport.ChannelRaft; ch <= transport.ChannelClient; ch++ {
			e.Handle(ch, echo)
		}
	})
	host := listen(t, Config{Identity: mustIssue(t, ca, identity.Grant{Node: 2, Roles: starling.RoleHost}, time.Now())}, nil)
	for ch, want := range map[transport.Channel]bool{transport.ChannelRaft: false, transport.ChannelActor: true, transport.ChannelJoin: false, transport.ChannelClient: false} {
		s, err := host.Open(t.Context(), server.Addr(), ch)
		if err != nil {
			t.Fatal(err)
		}
		s.CloseWrite()
		_, err = io.ReadAll(s)
		if want != (err == nil) || err != nil && starling.KindOf(err) != starling.Denied {
			t.Errorf("channel %d for a host: %v, want allowed=%t", ch, err, want)
		}
	}
}

func TestClientsAndJoinersReachTheirChannelOnly(t *testing.T) {
	ca := mustCA(t, "prod")
	server := listen(t, Config{Identity: node(t, ca, 1)}, func(e *Endpoint) {
		for ch := transport.ChannelRaft; ch <= transport.ChannelClient; ch++ {
			e.Handle(ch, func(s transport.Stream) {
				if p := s.Peer(); p.Node != 0 || p.Roles != 0 {
					t.Errorf("a stranger appears as %+v", p)
				}
				s.Write([]byte{byte(ch)})
				s.CloseWrite()
			})
		}
	})
	for proto, want := range map[string]transport.Channel{protoClient: transport.ChannelClient, protoJoin: transport.ChannelJoin} {
		for ch := transport.ChannelRaft; ch <= transport.ChannelClient; ch++ {
			c, err := dialOther(t.Context(), server.Addr(), Trust{Pin: ca.Fingerprint()}, proto, ch)
			if err != nil {
				t.Fatal(err)
			}
			s, err := c.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(s)
			if ch == want && (err != nil || len(got) != 1 || got[0] != byte(ch)) {
				t.Errorf("%s on its channel: %v, %v", proto, got, err)
			}
			if ch != want && starling.KindOf(err) != starling.Denied {
				t.Errorf("%s on channel %d: %v, %v, want Denied", proto, ch, got, err)
			}
			c.Close()
		}
	}
}

func TestPinRefusesAnotherCluster(t *testing.T) {
	server := listen(t, Config{Identity: node(t, mustCA(t, "prod"), 1)}, nil)
	_, err := DialJoin(t.Context(), server.Addr(), Trust{Pin: mustCA(t, "prod").Fingerprint()})
	if starling.KindOf(err) != starling.Denied || !strings.Contains(err.Error(), "fingerprint") {
		t.Errorf("%v, want Denied that names the fingerprint", err)
	}
	if _, err := DialClient(t.Context(), server.Addr(), Trust{}); starling.KindOf(err) != starling.Invalid {
		t.Errorf("without any trust: %v", err)
	}
}

// TestDeadPeerIsNoticed kills a peer without a goodbye, by closing its socket under it.
func TestDeadPeerIsNoticed(t *testing.T) {
	ca := mustCA(t, "prod")
	b := listen(t, Config{Identity: node(t, ca, 2)}, func(e *Endpoint) { e.Handle(transport.ChannelActor, echo) })
	a := listen(t, Config{Identity: node(t, ca, 1)}, nil)
	s, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor)
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("x"))
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b.udp.Close()
	start := time.Now()
	if _, err := s.Read(make([]byte, 1)); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("a dead peer: %v", err)
	}
	d := time.Since(start)
	t.Logf("noticed after %v", d.Round(time.Millisecond))
	if d > idleOther/2 {
		t.Errorf("noticed after %v: so late is the end of a client", d)
	}
}

// TestRebornPeerResetsOldConnections brings a peer back at once under the same key, without a goodbye.
func TestRebornPeerResetsOldConnections(t *testing.T) {
	ca := mustCA(t, "prod")
	id := node(t, ca, 2)
	b := listen(t, Config{Identity: id}, func(e *Endpoint) { e.Handle(transport.ChannelActor, echo) })
	a := listen(t, Config{Identity: node(t, ca, 1)}, nil)
	s, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor)
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("x"))
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	b.udp.Close()
	listen(t, Config{Addr: b.Addr(), Identity: id}, func(e *Endpoint) { e.Handle(transport.ChannelActor, echo) })
	start := time.Now()
	s.Write(make([]byte, 100)) // the answer to a packet of a few bytes would be as long as it: QUIC answers none
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, transport.ErrSilent) {
		t.Errorf("a stream of the peer before ended by %v, not by a reset", err)
	}
	t.Logf("reset after %v", time.Since(start).Round(time.Millisecond))
}

func TestDisconnectEndsAMember(t *testing.T) {
	ca := mustCA(t, "prod")
	b := listen(t, Config{Identity: node(t, ca, 2)}, func(e *Endpoint) { e.Handle(transport.ChannelActor, echo) })
	a := listen(t, Config{Identity: node(t, ca, 1)}, nil)
	s, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor)
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("x"))
	s.Read(make([]byte, 1))
	b.Disconnect(1)
	if _, err := s.Read(make([]byte, 1)); starling.KindOf(err) != starling.Denied {
		t.Errorf("a node that was put out: %v, want Denied", err)
	}
}

func TestCertificateRenewsUnderWay(t *testing.T) {
	ca := mustCA(t, "prod")
	id := mustIssue(t, ca, identity.Grant{Node: 1, Roles: starling.RoleHost}, time.Now())
	b := listen(t, Config{Identity: node(t, ca, 2)}, func(e *Endpoint) {
		e.Handle(transport.ChannelActor, func(s transport.Stream) {
			s.Write([]byte(s.Peer().Roles.String()))
			s.CloseWrite()
		})
	})
	ask := func(e *Endpoint) string {
		s, err := e.Open(t.Context(), b.Addr(), transport.ChannelActor)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(s)
		return string(got)
	}
	if got := ask(listen(t, Config{Identity: id}, nil)); got != "host" {
		t.Fatalf("roles %q", got)
	}
	csr, _ := id.CSR()
	cert, err := ca.Sign(csr, identity.Grant{Node: 1, Roles: starling.RoleHost | starling.RoleManager}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Renew(cert); err != nil {
		t.Fatal(err)
	}
	if got := ask(listen(t, Config{Identity: id}, nil)); got != "manager,host" {
		t.Errorf("after renewal the peer sees %q", got)
	}
}
