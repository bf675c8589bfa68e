package manager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
)

func request(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

// join asks node 2, which does not lead, for membership.
func join(t *testing.T, w *world, token string, csr []byte, roles starling.Roles) (cluster.JoinReply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	s, err := w.net.endpoint("joiner", transport.Peer{}).Open(ctx, addrOf(2), transport.ChannelJoin)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.Join(ctx, s, cluster.JoinRequest{Token: []byte(token), Request: csr, Node: starling.Node{Addr: "joiner", Roles: roles}})
}

func TestJoinTakesTheRightTokenOnce(t *testing.T) {
	csr, other := request(t), request(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 0, 3)
		defer w.close()
		now := time.Now().Unix()
		add := func(token string, roles starling.Roles, expires int64) {
			w.propose(cluster.AddToken{Hash: sha256.Sum256([]byte(token)), Roles: roles, Expires: expires, Now: now})
		}
		add("good", starling.AllRoles, now+60)
		add("manager", starling.AllRoles, now+60)
		add("host only", starling.RoleHost, now+60)
		add("short", starling.AllRoles, now+1)
		time.Sleep(1500 * time.Millisecond)

		refused := func(token string, csr []byte, roles starling.Roles, kind starling.Kind, reason string) {
			t.Helper()
			if _, err := join(t, w, token, csr, roles); starling.KindOf(err) != kind || starling.ReasonOf(err) != reason {
				t.Errorf("token %q: got %v (%s)", token, err, starling.ReasonOf(err))
			}
		}
		index := w.q.replicas[1].height()
		refused("wrong", csr, starling.RoleHost, starling.Denied, "TokenUnknown")
		refused("good", csr[:40], starling.RoleHost, starling.Invalid, "")
		damaged := slices.Clone(csr)
		damaged[len(damaged)-3] ^= 1
		refused("good", damaged, starling.RoleHost, starling.Invalid, "")
		if w.q.replicas[1].height() != index {
			t.Error("a stranger's attempt reached the log")
		}
		refused("short", csr, starling.RoleHost, starling.Denied, "TokenExpired")
		refused("host only", csr, starling.AllRoles, starling.Denied, "TokenRoles")

		first, err := join(t, w, "good", csr, starling.RoleHost)
		if err != nil {
			t.Fatal(err)
		}
		if string(first.Certificate) != "n4 host" || string(first.Authority) != "authority" || first.Secret != nil || first.Topology.Cluster != "test" {
			t.Fatalf("got %+v", first)
		}
		again, err := join(t, w, "good", csr, starling.RoleHost)
		if err != nil || again.Node != first.Node {
			t.Fatalf("the same joiner again became %+v, %v", again.Node, err)
		}
		refused("good", other, starling.RoleHost, starling.Denied, "TokenSpent")
		fifth, err := join(t, w, "manager", other, starling.AllRoles)
		if err != nil || string(fifth.Secret) != "secret" || fifth.Node.Replica != 0 {
			t.Fatalf("a fourth manager signs but holds no replica; got %+v, %v", fifth, err)
		}
	})
}

func TestNodesMayAskOnlyWhatTheirRolesNeed(t *testing.T) {
	host := transport.Peer{Node: 4, Roles: starling.RoleHost | starling.RoleScheduler}
	front := transport.Peer{Node: 5, Roles: starling.RoleFrontend}
	cases := []struct {
		peer transport.Peer
		cmd  cluster.Command
		ok   bool
	}{
		{host, &cluster.UpdateNode{Node: starling.Node{ID: 4}}, true},
		{host, &cluster.UpdateNode{Node: starling.Node{ID: 5}}, false},
		{host, &cluster.PutFunction{}, false},
		{host, &cluster.AddToken{}, false},
		{host, &cluster.CreateKey{}, false},
		{front, &cluster.PutFunction{}, true},
		{front, &cluster.ChangeMap{}, false},
		{front, &cluster.ClaimLead{}, false},
		{front, &cluster.AddNode{}, false},
	}
	for _, c := range cases {
		if err := permit(c.peer, c.cmd); (err == nil) != c.ok {
			t.Errorf("%v asks for %T: got %v", c.peer.Roles, c.cmd, err)
		}
	}
}

func TestReplicasBecomeOdd(t *testing.T) {
	topology := func(replicas ...uint64) *cluster.Topology {
		t := &cluster.Topology{}
		for _, r := range replicas {
			t.Nodes = append(t.Nodes, starling.Node{ID: starling.NodeID(r), Replica: r})
		}
		return t
	}
	cases := []struct {
		name        string
		t           *cluster.Topology
		voters      []uint64
		down        starling.NodeID
		add, remove []uint64
	}{
		{name: "a second waits for a third", t: topology(1, 2), voters: []uint64{1}},
		{name: "two come together", t: topology(1, 2, 3), voters: []uint64{1}, add: []uint64{2, 3}},
		{name: "not while one is down", t: topology(1, 2, 3), voters: []uint64{1}, down: 3},
		{name: "a removed one goes, its successor comes", t: topology(1, 2, 4), voters: []uint64{1, 2, 3}, add: []uint64{4}, remove: []uint64{3}},
		{name: "a removed one goes", t: topology(1, 2), voters: []uint64{1, 2, 3}, remove: []uint64{3}},
		{name: "the first node is not a member yet", t: topology(), voters: []uint64{1}},
	}
	for _, c := range cases {
		add, remove := replicaChanges(c.t, c.voters, 1, func(id starling.NodeID) bool { return id != c.down })
		var ids []uint64
		for _, n := range add {
			ids = append(ids, n.Replica)
		}
		if !slices.Equal(ids, c.add) || !slices.Equal(remove, c.remove) {
			t.Errorf("%s: add %v, remove %v", c.name, ids, remove)
		}
	}
}

func TestCertificateIsRenewedForWhatTheNodeIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 2)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.nodes[2].view.Ready() })
		cert, err := w.nodes[2].view.Certify(t.Context(), []byte("request"))
		if err != nil || string(cert) != "n2 frontend,scheduler" {
			t.Fatalf("got %q, %v", cert, err)
		}
	})
}
