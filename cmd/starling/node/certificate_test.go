package node

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/identity"
)

// pushed is a view that is told topologies by hand.
type pushed struct {
	top     *cluster.Topology
	changed chan struct{}
}

func (p *pushed) Topology() *cluster.Topology { return p.top }
func (p *pushed) Changed() <-chan struct{}    { return p.changed }

func (p *pushed) push(ids ...starling.NodeID) {
	p.top = &cluster.Topology{}
	for _, id := range ids {
		p.top.Nodes = append(p.top.Nodes, starling.Node{ID: id})
	}
	old := p.changed
	p.changed = make(chan struct{})
	if old != nil {
		close(old)
	}
	synctest.Wait()
}

func TestRemovedNodesAreCutOffAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pushed{}
		p.push(1, 2, 3)
		var gone []starling.NodeID
		ctx, cancel := context.WithCancel(t.Context())
		go eachRemoved(ctx, p, func(id starling.NodeID) { gone = append(gone, id) })
		synctest.Wait()
		p.push(1, 2, 3, 4)
		p.push(1, 4)
		if fmt.Sprint(gone) != "[n2 n3]" {
			t.Errorf("cut off %v", gone)
		}
		p.push(1)
		if fmt.Sprint(gone) != "[n2 n3 n4]" {
			t.Errorf("cut off %v", gone)
		}
		cancel()
	})
}

// TestManagerSignsItselfAfterALongNight starts a manager, and a host, whose certificates have ended.
func TestManagerSignsItselfAfterALongNight(t *testing.T) {
	made := time.Now().Add(-48 * time.Hour)
	ca, err := identity.NewCA("test", made)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		replica uint64
		roles   starling.Roles
		renewed bool
	}{"manager": {1, starling.AllRoles, true}, "host": {0, starling.RoleHost, false}} {
		id, err := ca.Issue(identity.Grant{Node: 7, Roles: c.roles}, made)
		if err != nil {
			t.Fatal(err)
		}
		n := &Node{cfg: Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, member: membership{Replica: c.replica}, id: id}
		if err := ca.Save(n.cfg.identityDir()); err != nil {
			t.Fatal(err)
		}
		if err := n.reissue(time.Now()); err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(n.id.Certificate().Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if good := time.Now().Before(leaf.NotAfter); good != c.renewed || n.id.ID() != 7 || n.id.Roles() != c.roles {
			t.Errorf("%s: a certificate of %s until %s", name, n.id.ID(), leaf.NotAfter)
		}
		if !c.renewed {
			continue
		}
		again, err := identity.Load(n.cfg.identityDir())
		if err != nil || !again.NotAfter().Equal(leaf.NotAfter) {
			t.Errorf("%s: it was not kept: %v", name, err)
		}
		before := n.id.NotAfter()
		if err := n.reissue(time.Now()); err != nil || n.id.NotAfter() != before {
			t.Errorf("%s: a young certificate was replaced: %v", name, err)
		}
	}
}
