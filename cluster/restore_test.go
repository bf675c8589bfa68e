package cluster

import (
	"bytes"
	"testing"

	"starling"
	"starling/cluster/partmap"
)

// restored returns a replica that got the state of old part by part, with a log that begins anew.
func restored(t *testing.T, old *State) *State {
	t.Helper()
	s := NewState()
	node, replica := old.Successor()
	cmds, err := RestoreCommands(snapshot(t, old), starling.Node{ID: node, Replica: replica, Addr: "new:1", Roles: starling.AllRoles})
	if err != nil {
		t.Fatal(err)
	}
	index := uint64(0)
	for _, c := range cmds {
		for range 2 { // the answer to the first was lost
			index++
			if _, err := DecodeReply(s.Apply(index, mustEncode(t, c))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func TestRestoredStateGoesOnAboveTheOldOne(t *testing.T) {
	old := full(t)
	s := restored(t, old)
	if s.CatalogHash() != old.CatalogHash() {
		t.Error("the catalog differs")
	}
	for i, p := range s.Topology().Map.Partitions {
		was := old.Topology().Map.Partitions[i]
		if p.Owner != 0 || p.Epoch < was.Epoch+RestoreGap || p.Since != p.Epoch || p.Range != was.Range {
			t.Errorf("%+v was %+v", p, was)
		}
	}
	top := s.Topology()
	if len(top.Nodes) != 1 || top.Nodes[0].ID <= old.Topology().Last || top.Last != top.Nodes[0].ID || len(s.members.Tokens()) != 0 {
		t.Errorf("members %+v, last %s", top.Nodes, top.Last)
	}
	// The new log is at a low index; what is made now must not look like anything the old cluster made.
	raw := mustEncode(t, PutFunction{Function: helloRef, Config: starling.Config{Runtime: starling.Python311}, Code: someCode, CodeSize: 9, Now: 99})
	r, err := DecodeReply(s.Apply(5, raw))
	if err != nil || uint64(r.Version.ID) <= old.Index()+RestoreGap || r.Index != s.Index() {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := DecodeReply(s.Apply(5, raw)); starling.KindOf(err) != starling.Internal {
		t.Errorf("an index of the log that was applied before: %v", err)
	}
	change := ChangeMap{Changes: []partmap.Change{{Kind: partmap.Assign, Partition: 1, Epoch: 1, To: top.Nodes[0].ID}}}
	if r, err := DecodeReply(s.Apply(6, mustEncode(t, change))); err != nil || len(r.Refused) != 1 {
		t.Errorf("a change of an old epoch: %+v, %v", r, err)
	}
	// A snapshot of it keeps the distance to the log.
	again := NewState()
	if err := again.Restore(bytes.NewReader(snapshot(t, s))); err != nil {
		t.Fatal(err)
	}
	if again.Hash() != s.Hash() {
		t.Error("a snapshot of a restored state is another state")
	}
	if bytes.Equal(again.Apply(6, raw), again.Apply(7, raw)) || again.Hash() == s.Hash() {
		t.Error("the copy does not go on where the original stands")
	}
	// And it can be backed up and restored in its turn.
	if third := restored(t, s); third.CatalogHash() != s.CatalogHash() || third.Topology().Last <= top.Last {
		t.Error("a restored cluster cannot be restored")
	}
}

func TestRestoreRefuses(t *testing.T) {
	old := full(t)
	node, replica := old.Successor()
	right := starling.Node{ID: node, Replica: replica, Addr: "new:1", Roles: starling.AllRoles}
	cmds, _ := RestoreCommands(snapshot(t, old), right)
	whole := cmds[0].(RestoreState)
	for name, c := range map[string]struct {
		state *State
		cmd   RestoreState
		want  starling.Kind
	}{
		"a cluster that lives": {full(t), whole, starling.Conflict},
		"another hash":         {NewState(), RestoreState{Parts: 1, Data: whole.Data, Node: right}, starling.Invalid},
		"a part too early":     {NewState(), RestoreState{Hash: whole.Hash, Part: 1, Parts: 2, Data: whole.Data, Node: right}, starling.Invalid},
		"an old node":          {NewState(), RestoreState{Hash: whole.Hash, Parts: 1, Data: whole.Data, Node: starling.Node{ID: 1, Replica: 1}}, starling.Conflict},
		"no state":             {NewState(), RestoreState{Hash: whole.Hash, Parts: 1, Node: right}, starling.Invalid},
	} {
		before := c.state.Topology().Cluster
		if _, err := apply(t, c.state, c.cmd); starling.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if c.state.Topology().Cluster != before {
			t.Errorf("%s: it changed the state", name)
		}
	}
}

// TestHalfRestoredStateIsSaved cuts a restore by a snapshot of the log.
func TestHalfRestoredStateIsSaved(t *testing.T) {
	old := full(t)
	snap := snapshot(t, old)
	node, replica := old.Successor()
	n := starling.Node{ID: node, Replica: replica, Addr: "new:1", Roles: starling.AllRoles}
	cmds, _ := RestoreCommands(snap, n)
	hash, half := cmds[0].(RestoreState).Hash, len(snap)/2
	a, b := NewState(), NewState()
	mustApply(t, a, RestoreState{Hash: hash, Parts: 2, Data: snap[:half], Node: n})
	if err := b.Restore(bytes.NewReader(snapshot(t, a))); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{a, b} {
		mustApply(t, s, RestoreState{Hash: hash, Part: 1, Parts: 2, Data: snap[half:], Node: n})
	}
	if a.Hash() != b.Hash() || a.CatalogHash() != old.CatalogHash() {
		t.Error("a replica that was restored in the middle went another way")
	}
}

func TestLostReplicaGetsANewNumber(t *testing.T) {
	s := NewState()
	mustApply(t, s, InitCluster{Name: "test", Partitions: 1})
	mustApply(t, s, AddNode{Node: starling.Node{Addr: "a:1", Roles: starling.AllRoles}})
	if _, err := apply(t, s, RenewReplica{Node: 1, Lost: 1}); starling.KindOf(err) != starling.Conflict {
		t.Errorf("the only copy: %v", err)
	}
	mustApply(t, s, AddToken{Hash: [32]byte{2}, Roles: starling.AllRoles, Expires: 100})
	mustApply(t, s, AddNode{Token: [32]byte{2}, PublicKey: [32]byte{3}, Node: starling.Node{Addr: "b:1", Roles: starling.AllRoles}, Now: 9})
	for range 2 { // the second question of the same loss gets the same answer
		if n := mustApply(t, s, RenewReplica{Node: 2, Lost: 2}).Node; n.ID != 2 || n.Replica != 3 {
			t.Errorf("it came back as %+v", n)
		}
	}
	if n := mustApply(t, s, RenewReplica{Node: 2, Lost: 3}).Node; n.Replica != 4 {
		t.Errorf("lost again it came back as %+v", n)
	}
	for name, c := range map[string]struct {
		cmd  RenewReplica
		want starling.Kind
	}{
		"nobody": {RenewReplica{Node: 9, Lost: 1}, starling.NotFound}, "never held": {RenewReplica{Node: 2, Lost: 9}, starling.Invalid},
		"none": {RenewReplica{Node: 2}, starling.Invalid}, "another's": {RenewReplica{Node: 1, Lost: 2}, starling.Conflict},
	} {
		if _, err := apply(t, s, c.cmd); starling.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
