package manager

import (
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
)

// told returns how many messages of a kind all managers have sent to nodes.
func (w *world) told(kind cluster.MessageKind) (n uint64) {
	for _, node := range w.nodes {
		if node.manager != nil {
			n += node.manager.metrics.messages[kind].Get()
		}
	}
	return n
}

// Nodes are told what changed, by the leader they know and by the next one; the whole topology only once.
func TestNodesAreToldWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t, 3, 5, 64)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1, 2, 3, 4, 5, 6, 7, 8) })
		same := func() bool {
			want := w.q.replicas[1].machine.Topology()
			for _, n := range w.nodes {
				if got := n.view.Topology(); got.Index != want.Index || got.Map.Sum() != want.Map.Sum() || len(got.Nodes) != len(want.Nodes) {
					return false
				}
			}
			return true
		}
		w.waitFor(2*time.Second, "one topology everywhere", same)
		whole, deltas := w.nodes[1].manager.metrics.bytes[cluster.MessageTopology].Get(), w.told(cluster.MessageDelta)
		for i := range 10 {
			w.propose(cluster.UpdateNode{Node: starling.Node{ID: 8, Addr: addrOf(8), HTTP: string(rune('a' + i))}})
		}
		w.waitFor(2*time.Second, "the changes everywhere", same)
		w.q.elect(2)
		w.waitFor(5*time.Second, "the next leader", func() bool { return w.nodes[2].manager.Leads() && w.served(1, 2, 3, 4, 5, 6, 7, 8) && same() })
		if got := w.told(cluster.MessageDelta); got < deltas+8 {
			t.Errorf("%d changes were told as deltas", got-deltas)
		}
		if now := w.nodes[1].manager.metrics.bytes[cluster.MessageTopology].Get(); now != whole {
			t.Errorf("the leader told whole topologies again: %d bytes", now-whole)
		}
		size := uint64(len(mustEncode(t, cluster.TopologyPush{Topology: w.q.replicas[2].machine.Topology()})))
		if now := w.nodes[2].manager.metrics.bytes[cluster.MessageTopology].Get(); now >= size {
			t.Errorf("the next leader told %d bytes where one whole topology has %d", now, size)
		}
	})
}

func mustEncode(t *testing.T, v any) []byte {
	raw, err := cluster.EncodeMessage(cluster.MessageTopology, v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A node of a release before deltas, which says nothing of them, gets every change as a whole topology.
func TestOlderNodeIsToldWholeTopologies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newQuietWorld(t, 1, 1, 4)
		defer w.close()
		w.waitFor(2*time.Second, "start", func() bool { return w.served(1, 2) })
		w.join(3, starling.RoleFrontend)
		end := w.net.endpoint("old", transport.Peer{Node: 3, Roles: starling.RoleFrontend})
		defer end.Close()
		stream, err := end.Open(t.Context(), addrOf(1), transport.ChannelControl)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Cancel()
		if err := cluster.WriteMessage(stream, cluster.MessageHello, struct {
			Fresh bool `cbor:"1,keyasint"`
		}{true}); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			for whole := false; !whole; {
				kind, body, err := cluster.ReadMessage(stream, cluster.MessageMax)
				if err != nil || kind == cluster.MessageDelta {
					t.Fatalf("message %v, %v", kind, err)
				}
				var p cluster.TopologyPush
				whole = kind == cluster.MessageTopology && cluster.DecodeMessage(body, &p) == nil && p.Topology != nil
			}
			w.propose(cluster.UpdateNode{Node: starling.Node{ID: 2, Addr: addrOf(2), HTTP: string(rune('a' + i))}})
		}
	})
}
