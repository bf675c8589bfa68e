package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"starling"
	"starling/cluster/partmap"
)

func sampleDelta() TopologyDelta {
	base := sampleTopology(3)
	t := *base
	t.Index, t.Map = base.Index+1, base.Map.Clone()
	_ = t.Map.Apply(partmap.Change{Kind: partmap.Assign, Partition: 2, To: 1})
	_, v := Push(base, &t, []starling.NodeID{1}, false)
	return v.(TopologyDelta)
}

func sampleTopology(nodes int) *Topology {
	m, _ := partmap.Initial(4)
	t := &Topology{Index: 7, Cluster: "test", Map: m, Last: starling.NodeID(nodes)}
	for i := range nodes {
		t.Nodes = append(t.Nodes, starling.Node{ID: starling.NodeID(i + 1), Addr: "a:1", Roles: starling.AllRoles})
	}
	return t
}

// edit changes a topology as commands do: it is published at a higher index.
func edit(t *rapid.T, old *Topology) *Topology {
	now := *old
	now.Index += uint64(rapid.IntRange(1, 3).Draw(t, "commands"))
	now.Map, now.Nodes = old.Map.Clone(), slices.Clone(old.Nodes)
	for range rapid.IntRange(0, 3).Draw(t, "changes") {
		i := rapid.IntRange(0, len(now.Map.Partitions)-1).Draw(t, "partition")
		p := now.Map.Partitions[i]
		c := partmap.Change{Kind: partmap.ChangeKind(rapid.IntRange(1, 4).Draw(t, "kind")), Partition: p.ID, Epoch: p.Epoch,
			To: starling.NodeID(rapid.IntRange(1, 3).Draw(t, "to")), At: p.Range.Lo + (p.Range.Hi-p.Range.Lo)/2}
		if i+1 < len(now.Map.Partitions) {
			c.With, c.WithEpoch = now.Map.Partitions[i+1].ID, now.Map.Partitions[i+1].Epoch
		}
		_ = now.Map.Apply(c) // a refusal changes nothing
	}
	switch rapid.IntRange(0, 3).Draw(t, "members") {
	case 0:
		now.Last++
		now.Nodes = append(now.Nodes, starling.Node{ID: now.Last, Addr: "b:1"})
	case 1:
		if len(now.Nodes) > 0 {
			i := rapid.IntRange(0, len(now.Nodes)-1).Draw(t, "member")
			now.Nodes[i].Zone, now.Nodes[i].Draining = "z", !now.Nodes[i].Draining
		}
	case 2:
		if len(now.Nodes) > 0 {
			i := rapid.IntRange(0, len(now.Nodes)-1).Draw(t, "member")
			now.Nodes = slices.Delete(now.Nodes, i, i+1)
		}
	}
	return &now
}

// A node that gets what changed between any two topologies has the newer one; one that stands elsewhere refuses it.
func TestDeltaMakesTheNewerTopology(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		history := []*Topology{sampleTopology(3)}
		for range rapid.IntRange(1, 12).Draw(t, "length") {
			history = append(history, edit(t, history[len(history)-1]))
		}
		i := rapid.IntRange(0, len(history)-2).Draw(t, "from")
		j := rapid.IntRange(i+1, len(history)-1).Draw(t, "to")
		from, to := history[i], history[j]
		kind, v := Push(from, to, []starling.NodeID{1, 2}, false)
		raw, err := EncodeMessage(kind, v)
		if err != nil || kind != MessageDelta {
			t.Fatalf("message %v: %v", kind, err)
		}
		_, body, err := ReadMessage(bytes.NewReader(raw), MessageMax)
		var d TopologyDelta
		if err = errors.Join(err, DecodeMessage(body, &d)); err != nil {
			t.Fatal(err)
		}
		before := *from
		before.Map, before.Nodes = from.Map.Clone(), slices.Clone(from.Nodes)
		got, err := from.Patch(d)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Map, to.Map) || !slices.Equal(got.Nodes, to.Nodes) || got.Index != to.Index || got.Last != to.Last || got.Cluster != to.Cluster {
			t.Fatalf("from %+v by %+v came %+v, not %+v", from, d, got, to)
		}
		if !reflect.DeepEqual(from.Map, before.Map) || !slices.Equal(from.Nodes, before.Nodes) {
			t.Fatal("a published topology was edited")
		}
		for k, other := range history {
			if k == i {
				continue
			}
			if _, err := other.Patch(d); starling.KindOf(err) != starling.Conflict {
				t.Fatalf("a delta from index %d was taken at %d: %v", from.Index, other.Index, err)
			}
			twin := *other // another history with the same index: only what it says can tell
			twin.Index = from.Index
			if got, err := twin.Patch(d); err == nil && !reflect.DeepEqual(got.Map, to.Map) {
				t.Fatalf("a map that is no one's came of %+v by %+v", twin, d)
			}
		}
	})
}

// What a node cannot be told as a delta it is told whole, and what did not change not at all.
func TestPushIsTheSmallestThatIsSure(t *testing.T) {
	base := sampleTopology(3)
	next := *base
	next.Index++
	alive := []starling.NodeID{1, 3}
	for name, c := range map[string]struct {
		base *Topology
		t    *Topology
		want any
	}{
		"nothing is known":      {nil, base, TopologyPush{Topology: base, Alive: alive}},
		"before the cluster is": {&Topology{Map: &partmap.Map{}}, base, TopologyPush{Topology: base, Alive: alive}},
		"it came back":          {base, base, TopologyPush{Alive: alive}},
		"only the index rose":   {base, &next, TopologyDelta{From: 7, Index: 8, Count: 3, Last: 3, Alive: alive}},
	} {
		if _, got := Push(c.base, c.t, alive, false); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if _, got := Push(base, &next, alive, true); !reflect.DeepEqual(got, TopologyDelta{From: 7, Index: 8, Count: 3, Last: 3, Same: true}) {
		t.Errorf("who is alive was told again: %+v", got)
	}
}

// A replica remembers a bounded number of topologies, and none from before a snapshot.
func TestPastIsBounded(t *testing.T) {
	m := NewMachine()
	index := uint64(0)
	apply := func(cmd Command) uint64 {
		index++
		m.Apply(index, mustEncode(t, cmd))
		return index
	}
	first := apply(InitCluster{Name: "test", Partitions: 4})
	apply(AddNode{PublicKey: [32]byte{1}, Node: starling.Node{Addr: "a:1", Roles: starling.AllRoles}})
	apply(CreateAccount{Account: starling.Account{ID: "acme"}}) // is not in the topology
	for i := range pastMax - 2 {
		apply(UpdateNode{Node: starling.Node{ID: 1, Addr: "a:1", Zone: starling.Zone(rune('a' + i%2))}})
	}
	if got := m.Past(first); got == nil || got.Index != first || len(got.Nodes) != 0 {
		t.Fatalf("the first topology is forgotten too early: %+v", got)
	}
	apply(UpdateNode{Node: starling.Node{ID: 1, Addr: "b:1"}})
	if m.Past(first) != nil || m.Past(index) != m.Topology() || m.Past(index+1) != nil {
		t.Error("the past is not the last topologies")
	}
	var snapshot bytes.Buffer
	if err := errors.Join(m.Save(&snapshot), m.Restore(&snapshot)); err != nil {
		t.Fatal(err)
	}
	if m.Past(index) != m.Topology() || m.Past(index-1) != nil {
		t.Error("the past reaches over a snapshot")
	}
}

// A node whose sessions are lost at any point, and whose next leader may remember less, never acts on a topology that was
// not there, never goes back, and has the newest one when a session lasts.
func TestNodeFollowsThroughLostSessions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView(ViewConfig{})
		history := []*Topology{sampleTopology(3)}
		newest := func() *Topology { return history[len(history)-1] }
		session := func(pushes int, lost int) {
			h, known := v.hello(), past(nil)
			for _, old := range history[rapid.IntRange(0, len(history)-1).Draw(t, "forgotten"):] {
				known = known.add(old)
			}
			base := known.at(h.Topology)
			for i := range pushes {
				if i > 0 {
					history = append(history, edit(t, newest()))
				}
				kind, m := Push(base, newest(), []starling.NodeID{1}, i > 0)
				base = newest()
				if i >= lost {
					return
				}
				before := v.Topology().Index
				raw, err := EncodeMessage(kind, m)
				if err != nil {
					t.Fatal(err)
				}
				s := &session{view: v}
				if err := s.take(kind, raw[MessageHead:]); err != nil {
					t.Fatalf("a push of an unbroken session was refused: %v", err)
				}
				if now := v.Topology(); now.Index < before || !reflect.DeepEqual(now.Map, newest().Map) || !slices.Equal(now.Nodes, newest().Nodes) {
					t.Fatalf("the node has %+v, the leader %+v", now, newest())
				}
			}
		}
		for range rapid.IntRange(1, 6).Draw(t, "sessions") {
			n := rapid.IntRange(1, 6).Draw(t, "pushes")
			session(n, rapid.IntRange(0, n).Draw(t, "arrived"))
		}
		session(1, 1)
		if v.Topology().Index != newest().Index {
			t.Fatalf("after a session that lasted the node has %+v, the leader %+v", v.Topology(), newest())
		}
	})
}

// A delta that does not fit ends the session, and the next one begins with a whole topology.
func TestDeltaThatDoesNotFitIsRefusedAndAWholeOneAskedFor(t *testing.T) {
	v := NewView(ViewConfig{})
	s := &session{view: v}
	take := func(kind MessageKind, m any) error {
		raw, err := EncodeMessage(kind, m)
		if err != nil {
			t.Fatal(err)
		}
		return s.take(kind, raw[MessageHead:])
	}
	base := sampleTopology(3)
	if err := take(Push(nil, base, []starling.NodeID{1}, false)); err != nil || !v.hello().Deltas || v.hello().Topology != base.Index {
		t.Fatalf("hello %+v, %v", v.hello(), err)
	}
	d := sampleDelta()
	d.Map.Sum++
	if err := take(MessageDelta, d); starling.KindOf(err) != starling.Conflict || v.Topology().Index != base.Index || v.hello().Topology != 0 {
		t.Fatalf("got %v, at %d, hello %+v", err, v.Topology().Index, v.hello())
	}
	old := sampleDelta()
	old.From, old.Index, old.Alive = 1, 2, []starling.NodeID{3}
	if err := take(MessageDelta, old); err != nil || v.Topology().Index != base.Index || len(v.Alive()) != 1 || v.Alive()[0].ID != 3 {
		t.Fatalf("one to an older topology: %v, at %d, alive %v", err, v.Topology().Index, v.Alive())
	}
	if err := take(Push(nil, base, []starling.NodeID{1}, false)); err != nil || v.hello().Topology != base.Index {
		t.Fatalf("after a whole one: %v, hello %+v", err, v.hello())
	}
	if err := take(MessageDelta, sampleDelta()); err != nil || v.Topology().Index != base.Index+1 || v.Map().Partitions[1].Owner != 1 {
		t.Fatalf("got %v, %+v", err, v.Topology())
	}
}

func BenchmarkTopologyDelta(b *testing.B) {
	for _, partitions := range []int{16, 256, 4096} {
		for _, nodes := range []int{3, 30, 300} {
			base := largeTopology(b, partitions, nodes)
			next := *base
			next.Index, next.Map = base.Index+1, base.Map.Clone()
			p := next.Map.Partitions[partitions/2]
			if err := next.Map.Apply(partmap.Change{Kind: partmap.Move, Partition: p.ID, Epoch: p.Epoch, To: p.Owner%starling.NodeID(nodes) + 1}); err != nil {
				b.Fatal(err)
			}
			name := fmt.Sprintf("partitions=%d/nodes=%d/", partitions, nodes)
			var raw []byte
			b.Run(name+"encode", func(b *testing.B) {
				for b.Loop() {
					kind, v := Push(base, &next, nil, true)
					var err error
					if raw, err = EncodeMessage(kind, v); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(raw)), "bytes/push")
			})
			b.Run(name+"take", func(b *testing.B) {
				for b.Loop() {
					var d TopologyDelta
					if err := DecodeMessage(raw[MessageHead:], &d); err != nil {
						b.Fatal(err)
					}
					if _, err := base.Patch(d); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func FuzzTopologyDelta(f *testing.F) {
	kind, v := Push(sampleTopology(3), &Topology{Index: 9, Cluster: "test", Map: &partmap.Map{}}, nil, true)
	for _, v := range []any{sampleDelta(), v} {
		raw, err := EncodeMessage(kind, v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw[MessageHead:])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var d TopologyDelta
		if DecodeMessage(body, &d) != nil {
			return
		}
		base := sampleTopology(3)
		base.Index = d.From
		got, err := base.Patch(d) // must not panic
		if err == nil && (got.Map.Sum() != base.Map.Sum() && (d.Map == nil || got.Map.Sum() != d.Map.Sum) || len(got.Nodes) != d.Count || got.Index <= base.Index) {
			t.Fatalf("%+v made %+v", d, got)
		}
		if !reflect.DeepEqual(base.Map, sampleTopology(3).Map) {
			t.Fatal("the base was edited")
		}
	})
}
