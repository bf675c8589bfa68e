package actors_test

import (
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/wire"
	"starling/transport"
	"starling/transport/inmem"
)

// A sink keeps what arrives for one part of a node.
type sink struct {
	mu      sync.Mutex
	batches [][]wire.Message
	parts   []starling.PartitionID
	from    []starling.NodeID
}

func (s *sink) Receive(from starling.NodeID, b []wire.Message) { s.ReceiveFor(0, from, b) }

func (s *sink) ReceiveFor(p starling.PartitionID, from starling.NodeID, b []wire.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches, s.parts, s.from = append(s.batches, b), append(s.parts, p), append(s.from, from)
}

func (s *sink) messages() (out []wire.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		out = append(out, b...)
	}
	return out
}

// A node is a hub with sinks for its parts.
type node struct {
	hub                   *actors.Hub
	end                   *inmem.Endpoint
	front, host, schedule *sink
}

// pair returns two nodes that know each other's address, with the given roles.
func pair(t *testing.T, a, b starling.Roles) (*node, *node) {
	t.Helper()
	net := inmem.New(inmem.Config{Seed: 1, DelayMin: time.Millisecond, DelayMax: 2 * time.Millisecond})
	addrs := map[starling.NodeID]string{}
	var nodes []*node
	for i, roles := range []starling.Roles{a, b} {
		id := starling.NodeID(i + 1)
		n := &node{end: net.Endpoint(transport.Peer{Node: id, Roles: roles}), front: &sink{}, host: &sink{}, schedule: &sink{}}
		n.hub = actors.NewHub(actors.HubConfig{Self: id, Endpoint: n.end, Log: slog.New(slog.DiscardHandler),
			Addr: func(id starling.NodeID) string { return addrs[id] }})
		n.hub.Bind(actors.Parts{Frontend: n.front, Host: n.host, Partitions: n.schedule})
		addrs[id] = n.end.Addr()
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.end.Listen()
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			n.hub.Close()
			n.end.Close()
		}
	})
	return nodes[0], nodes[1]
}

func TestHubBringsEachMessageToItsPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, starling.AllRoles, starling.AllRoles)
		toSchedule := []wire.Message{&wire.Acquire{Call: 1, Partition: 7, Wait: time.Second}, &wire.Release{Partition: 7, Leases: []starling.LeaseID{1}}}
		toFront := []wire.Message{&wire.Grant{Call: 1}, &wire.Renewed{TTL: time.Second}}
		toHost := []wire.Message{&wire.Start{Partition: 7}, &wire.Stop{Partition: 7}, &wire.Fence{Partition: 7}}
		for _, to := range []starling.NodeID{1, 2} { // its own node, and the other one
			for _, m := range toSchedule {
				a.hub.Send(wire.Address{Node: to, Partition: 7}, m)
			}
			a.hub.Send(wire.Address{Node: to}, &wire.HostReport{Host: 1})
			for _, m := range append(append([]wire.Message{}, toFront...), toHost...) {
				a.hub.Send(wire.Address{Node: to}, m)
			}
			time.Sleep(time.Second)
			n := []*node{a, b}[to-1]
			for _, c := range []struct {
				name string
				got  *sink
				want []wire.Message
			}{{"partitions", n.schedule, append(toSchedule, &wire.HostReport{Host: 1})}, {"frontend", n.front, toFront}, {"host", n.host, toHost}} {
				if got := c.got.messages(); !reflect.DeepEqual(got, c.want) {
					t.Errorf("%s of node %d: got %d messages %v, want %d", c.name, to, len(got), got, len(c.want))
				}
			}
			if p := n.schedule.parts; p[0] != 7 || p[len(p)-1] != 0 {
				t.Errorf("partitions named: %v, want 7 first and 0, for all, last", p)
			}
			if n.schedule.from[0] != 1 {
				t.Errorf("from %v", n.schedule.from[0])
			}
		}
	})
}

func TestHubReadsManyMessagesAsOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, starling.RoleFrontend, starling.RoleScheduler)
		for i := range 500 {
			a.hub.Send(wire.Address{Node: 2, Partition: starling.PartitionID(i%2 + 1)}, &wire.Acquire{Call: uint64(i)})
		}
		time.Sleep(time.Second)
		if n := len(b.schedule.messages()); n != 500 {
			t.Fatalf("%d of 500 messages arrived", n)
		}
		if n := len(b.schedule.batches); n > 20 {
			t.Errorf("500 messages for two partitions came in %d batches", n)
		}
	})
}

func TestHubCarriesMessagesOverTheSizeOfAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, starling.RoleHost, starling.RoleScheduler)
		big := &wire.Fenced{Partition: 3, Host: 1, Instances: make([]wire.InstanceReport, 9000)}
		for i := range big.Instances {
			big.Instances[i].Instance.Seq = uint64(i)
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				a.hub.Send(wire.Address{Node: 2, Partition: 3}, big)
				a.hub.Send(wire.Address{Node: 2, Partition: 3}, &wire.Exited{Host: 1})
			})
		}
		wg.Wait()
		time.Sleep(time.Second)
		got := b.schedule.messages()
		if len(got) != 6 {
			t.Fatalf("%d of 6 messages arrived", len(got))
		}
		for _, m := range got {
			if f, ok := m.(*wire.Fenced); ok && !reflect.DeepEqual(f, big) {
				t.Error("a large message arrived changed")
			}
		}
	})
}

func TestHubRefusesWhatARoleMayNotSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, starling.RoleHost, starling.AllRoles)
		a.hub.Send(wire.Address{Node: 2, Partition: 1}, &wire.Acquire{Call: 1})
		a.hub.Send(wire.Address{Node: 2}, &wire.Grant{Call: 1})
		a.hub.Send(wire.Address{Node: 2}, &wire.Fence{})
		time.Sleep(time.Second)
		if n := len(b.schedule.messages()) + len(b.front.messages()) + len(b.host.messages()); n != 0 {
			t.Errorf("%d messages of a host that only others may send were taken", n)
		}
		a.hub.Send(wire.Address{Node: 2}, &wire.HostReport{Host: 1}) // the link was closed; a new one is made
		time.Sleep(3 * time.Second)
		a.hub.Send(wire.Address{Node: 2}, &wire.HostReport{Host: 1})
		time.Sleep(time.Second)
		if len(b.schedule.messages()) == 0 {
			t.Error("an honest message of the same node does not arrive later")
		}
		var text strings.Builder
		b.hub.Metrics().WritePrometheus(&text)
		if !strings.Contains(text.String(), `starling_post_messages_lost_total{why="role"} 1`) {
			t.Errorf("the refusal is not counted:\n%s", text.String())
		}
	})
}

func TestHubLosesWhatHasNoWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(t, starling.AllRoles, starling.AllRoles)
		a.hub.Send(wire.Address{Node: 99}, &wire.Grant{})
		var text strings.Builder
		a.hub.Metrics().WritePrometheus(&text)
		if !strings.Contains(text.String(), `starling_post_messages_lost_total{why="no address"} 1`) {
			t.Errorf("the loss is not counted:\n%s", text.String())
		}
	})
}

type discard struct{}

func (discard) Receive(starling.NodeID, []wire.Message) {}

// BenchmarkSendToSelf is the price of the post where frontend and partition are one node.
func BenchmarkSendToSelf(b *testing.B) {
	net := inmem.New(inmem.Config{})
	e := net.Endpoint(transport.Peer{Node: 1, Roles: starling.AllRoles})
	h := actors.NewHub(actors.HubConfig{Self: 1, Endpoint: e, Log: slog.New(slog.DiscardHandler)})
	defer h.Close()
	h.Bind(actors.Parts{Frontend: discard{}})
	g := &wire.Grant{}
	b.ReportAllocs()
	for b.Loop() {
		h.Send(wire.Address{Node: 1}, g)
	}
}
