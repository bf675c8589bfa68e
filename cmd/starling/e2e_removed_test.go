package main

import (
	"path/filepath"
	"testing"
	"time"

	"starling"
	"starling/cluster/identity"
	"starling/transport"
	"starling/transport/quic"
)

// TestE2ERemovedNodeIsCutOff removes a node that lives. Its certificate, still good by its dates, must be worthless on
// every other node at once, on connections that are open as well as on new ones.
func TestE2ERemovedNodeIsCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes")
	}
	t.Parallel()
	c := startCluster(t, 3)
	victim := c.nodes[2]
	id, err := identity.Load(filepath.Join(victim.dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	thief := quic.New(quic.Config{Addr: "127.0.0.1:0", Identity: id}) // somebody with the node's key
	if err := thief.Listen(); err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	cut := make(chan error, 2)
	for _, n := range c.nodes[:2] {
		s, err := thief.Open(t.Context(), n.quic, transport.ChannelActor)
		if err != nil {
			t.Fatalf("%s refuses a member: %v", n.name, err)
		}
		go func() {
			_, err := s.Read(make([]byte, 1)) // nothing is ever said on it
			cut <- err
		}()
	}
	began := time.Now()
	if err := c.nodes[0].admin.RemoveNode(t.Context(), id.ID(), true); err != nil {
		t.Fatal(err)
	}
	for range c.nodes[:2] {
		select {
		case err := <-cut:
			t.Logf("an open connection ended %v after the removal began: %v", time.Since(began).Round(time.Millisecond), err)
		case <-time.After(10 * time.Second):
			t.Error("an open connection lives on")
		}
	}
	for _, n := range c.nodes[:2] {
		_, err := thief.Open(t.Context(), n.quic, transport.ChannelActor)
		if starling.KindOf(err) != starling.Denied {
			t.Errorf("%s on a new connection: %v, want Denied", n.name, err)
		}
	}
	c.voters(t, 2)
	if err := c.nodes[0].admin.RemoveNode(t.Context(), id.ID(), true); starling.KindOf(err) != starling.NotFound {
		t.Errorf("removed twice: %v", err)
	}
}
