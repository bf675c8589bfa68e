package identity

import (
	"bytes"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/transport"
)

func mustCA(t testing.TB, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func mustIssue(t testing.TB, ca *CA, g Grant, now time.Time) *Node {
	t.Helper()
	n, err := ca.Issue(g, now)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func chain(n *Node) []*x509.Certificate { return []*x509.Certificate{n.Certificate().Leaf} }

func TestPeersKnowEachOtherByCertificate(t *testing.T) {
	ca := mustCA(t, "prod")
	a := mustIssue(t, ca, Grant{Node: 7, Roles: starling.RoleManager | starling.RoleHost}, time.Now())
	b := mustIssue(t, ca, Grant{Node: 8, Roles: starling.RoleHost}, time.Now())
	got, err := b.Verify(chain(a), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if want := (transport.Peer{Node: 7, Roles: starling.RoleManager | starling.RoleHost}); got != want {
		t.Fatalf("b sees %+v, want %+v", got, want)
	}
	if uri := a.Certificate().Leaf.URIs[0].String(); uri != "starling://prod/manager,host/7" {
		t.Errorf("the certificate says %q", uri)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	now := time.Now()
	ca := mustCA(t, "prod")
	n := mustIssue(t, ca, Grant{Node: 1, Roles: starling.RoleHost}, now)
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		says  string
	}{
		"nobody":           {nil, "no certificate"},
		"same name, other": {chain(mustIssue(t, mustCA(t, "prod"), Grant{Node: 2, Roles: starling.RoleHost}, now)), "this cluster's CA"},
		"other cluster":    {chain(mustIssue(t, mustCA(t, "test"), Grant{Node: 2, Roles: starling.RoleHost}, now)), `the cluster "test"`},
		"expired":          {chain(mustIssue(t, ca, Grant{Node: 2, Roles: starling.RoleHost, Life: time.Minute}, now.Add(-time.Hour))), "expired"},
		"from the future":  {chain(mustIssue(t, ca, Grant{Node: 2, Roles: starling.RoleHost}, now.Add(3*time.Hour))), "not yet valid"},
		"the CA itself":    {[]*x509.Certificate{ca.cert}, "names no node"},
	} {
		_, err := n.Verify(c.chain, now)
		if starling.KindOf(err) != starling.Denied || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want Denied with %q", name, err, c.says)
		}
	}
}

func TestSignTakesNothingFromTheRequestButTheKey(t *testing.T) {
	ca := mustCA(t, "prod")
	r, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Sign(r.CSR[:len(r.CSR)-1], Grant{Node: 1, Roles: starling.RoleHost}, time.Now()); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a cut request: %v", err)
	}
	bad := bytes.Clone(r.CSR)
	bad[len(bad)-1] ^= 1
	if _, err := ca.Sign(bad, Grant{Node: 1, Roles: starling.RoleHost}, time.Now()); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a forged request: %v", err)
	}
	if _, err := ca.Sign(r.CSR, Grant{Node: 1}, time.Now()); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a grant without a role: %v", err)
	}
	other, _ := NewRequest()
	cert, err := ca.Sign(r.CSR, Grant{Node: 1, Roles: starling.RoleHost}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Accept(cert, ca.Certificate()); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a certificate for another key: %v", err)
	}
	if _, err := r.Accept(cert, mustCA(t, "prod").Certificate()); starling.KindOf(err) != starling.Denied {
		t.Errorf("a certificate by another CA: %v", err)
	}
}

func TestRenewKeepsKeyAndResetKey(t *testing.T) {
	ca := mustCA(t, "prod")
	start := time.Now()
	n := mustIssue(t, ca, Grant{Node: 3, Roles: starling.RoleHost}, start)
	if at := n.RenewAt(); at.Before(start.Add(15*time.Hour)) || at.After(start.Add(17*time.Hour)) {
		t.Errorf("renewal of a day's certificate is due after %v", at.Sub(start))
	}
	reset := n.ResetKey()
	csr, err := n.CSR()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Sign(csr, Grant{Node: 3, Roles: starling.RoleHost | starling.RoleFrontend}, start.Add(16*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Renew(cert); err != nil {
		t.Fatal(err)
	}
	if n.ResetKey() != reset || !n.Roles().Has(starling.RoleFrontend) || n.NotAfter().Before(start.Add(39*time.Hour)) {
		t.Errorf("after renewal: roles %v, until %v", n.Roles(), n.NotAfter())
	}
}

func TestIdentitySurvivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	ca := mustCA(t, "prod")
	n := mustIssue(t, ca, Grant{Node: 5, Roles: starling.AllRoles}, time.Now())
	if err := n.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{nodeFile, caFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want 0600", name, info.Mode(), err)
		}
	}
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID() != 5 || m.Cluster() != "prod" || m.ResetKey() != n.ResetKey() {
		t.Errorf("loaded %v of %q", m.ID(), m.Cluster())
	}
	ca2, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ca2.Fingerprint() != ca.Fingerprint() || ca2.Cluster() != "prod" {
		t.Error("another CA came back")
	}
	if _, err := m.Verify(chain(mustIssue(t, ca2, Grant{Node: 6, Roles: starling.RoleHost}, time.Now())), time.Now()); err != nil {
		t.Errorf("a node admitted after the restart: %v", err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("the directory holds %d files, want 2", len(names))
	}
}

func TestDamagedFilesSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); starling.KindOf(err) != starling.NotFound || !strings.Contains(err.Error(), nodeFile) {
		t.Errorf("missing: %v", err)
	}
	n := mustIssue(t, mustCA(t, "prod"), Grant{Node: 5, Roles: starling.RoleHost}, time.Now())
	if err := n.Save(dir); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, nodeFile)
	whole, _ := os.ReadFile(p)
	for cut := 0; cut < len(whole)-1; cut += 37 {
		os.WriteFile(p, whole[:cut], 0o600)
		if _, err := Load(dir); starling.KindOf(err) != starling.Internal || err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Fatalf("cut to %d bytes: %v", cut, err)
		}
	}
	for at := 30; at < len(whole); at += 61 {
		bad := bytes.Clone(whole)
		bad[at] ^= 4
		os.WriteFile(p, bad, 0o600)
		if m, err := Load(dir); err == nil && m.ID() != 5 {
			t.Fatalf("a flipped bit at %d made another node: %v", at, m.ID())
		}
	}
}

func TestTokenPinsTheCA(t *testing.T) {
	ca := mustCA(t, "prod")
	tok := NewToken(ca.Fingerprint())
	back, err := ParseToken(" " + tok.String() + "\n")
	if err != nil || back != tok {
		t.Fatalf("%v %v", back, err)
	}
	if back.SecretHash() != tok.SecretHash() || NewToken(ca.Fingerprint()).Secret == tok.Secret {
		t.Error("secrets are not drawn")
	}
	for _, bad := range []string{"", ".", tok.Secret, tok.Secret + ".12", tok.String() + "0", "A" + tok.String()[1:], strings.ToUpper(tok.String())} {
		if _, err := ParseToken(bad); starling.KindOf(err) != starling.Invalid || err == nil {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken([32]byte{1, 2}).String())
	f.Add("a.b")
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := ParseToken(s); err == nil && tok.String() != strings.TrimSpace(s) {
			t.Fatalf("%q reads as %q", s, tok)
		}
	})
}

func FuzzParseCA(f *testing.F) {
	ca := mustCA(f, "prod")
	pem, _ := ca.Marshal()
	f.Add(pem)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if ca, err := ParseCA(data); err == nil && ca.Cluster() == "" {
			t.Fatal("a CA without a cluster")
		}
	})
}

// Found in a network with faults: a manager whose clock was an hour ahead let a node in, whom nobody else believed.
func TestWhoSignsMayBeAnHourAhead(t *testing.T) {
	now := time.Now()
	ca := mustCA(t, "prod")
	n := mustIssue(t, ca, Grant{Node: 1, Roles: starling.RoleHost}, now)
	if _, err := n.Verify(chain(mustIssue(t, ca, Grant{Node: 2, Roles: starling.RoleHost}, now.Add(time.Hour))), now); err != nil {
		t.Fatal(err)
	}
}
