package cluster

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"starling"
	"starling/cluster/partmap"
)

// apply applies the next command and returns the state's answer.
func apply(t testing.TB, s *State, cmd Command) (Reply, error) {
	t.Helper()
	return DecodeReply(s.Apply(s.Index()+1, mustEncode(t, cmd)))
}

func mustApply(t testing.TB, s *State, cmd Command) Reply {
	t.Helper()
	r, err := apply(t, s, cmd)
	if err != nil {
		t.Fatalf("%T: %v", cmd, err)
	}
	return r
}

// full returns a state with something of everything in it.
func full(t testing.TB) *State {
	s := NewState()
	mustApply(t, s, InitCluster{Name: "test", Partitions: 4})
	mustApply(t, s, AddNode{Node: starling.Node{Addr: "a:1", Roles: starling.AllRoles}})
	mustApply(t, s, ClaimLead{Node: 1})
	mustApply(t, s, ChangeMap{Changes: []partmap.Change{{Kind: partmap.Assign, Partition: 1, To: 1}}, Claim: 3})
	mustApply(t, s, AddToken{Hash: [32]byte{2}, Roles: starling.AllRoles, Expires: 100})
	mustApply(t, s, AddNode{Token: [32]byte{2}, PublicKey: [32]byte{3}, Node: starling.Node{Addr: "b:1", Roles: starling.RoleHost}, Now: 9})
	mustApply(t, s, SetDraining{ID: 2, Draining: true})
	mustApply(t, s, CreateAccount{Account: starling.Account{ID: "acme", Created: 5}})
	mustApply(t, s, CreateKey{Key: starling.Key{Hash: [32]byte{1}, ID: "k", Account: "acme", Role: starling.KeyUser}})
	for now := range int64(12) {
		mustApply(t, s, PutFunction{Function: helloRef, Config: starling.Config{Runtime: starling.Python311, Env: map[string]string{"A": "1", "B": "2"}}, Code: someCode, CodeSize: 9, Now: now})
	}
	mustApply(t, s, PublishVersion{Function: helloRef, Now: 8})
	return s
}

func snapshot(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Save(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// randomCommand draws a command over a small world, so that most have something to meet.
func randomCommand(t *rapid.T) Command {
	account := starling.AccountID(rapid.SampledFrom([]string{"acme", "bolt", "BAD"}).Draw(t, "account"))
	ref := starling.FunctionRef{Account: account, Name: starling.FunctionName(rapid.SampledFrom([]string{"f", "g", "-"}).Draw(t, "function"))}
	small := rapid.IntRange(0, 3)
	now := int64(small.Draw(t, "now"))
	id := starling.NodeID(small.Draw(t, "node"))
	hash := [32]byte{byte(small.Draw(t, "hash"))}
	switch rapid.IntRange(1, 17).Draw(t, "command") {
	case 1:
		return InitCluster{Name: "test", Partitions: 4}
	case 2:
		return CreateAccount{Account: starling.Account{ID: account, Created: now}}
	case 3:
		return DeleteAccount{ID: account}
	case 4:
		return CreateKey{Key: starling.Key{Hash: hash, ID: fmt.Sprint(hash[0]), Account: account, Role: starling.KeyUser}}
	case 5:
		return DeleteKey{Account: account, ID: fmt.Sprint(hash[0])}
	case 6, 7:
		var layers []starling.LayerRef
		if n := small.Draw(t, "layer"); n > 1 {
			layers = []starling.LayerRef{{Name: "deps", Version: starling.VersionNumber(n - 1)}}
		}
		return PutFunction{Function: ref, Config: starling.Config{Runtime: starling.NodeJS20, MemoryMiB: 128 * small.Draw(t, "memory"), Layers: layers}, Code: someCode, CodeSize: 1, Now: now,
			Create: rapid.Bool().Draw(t, "create"), Expect: starling.VersionID(small.Draw(t, "expect") / 3 * 5)}
	case 8:
		return DeleteFunction{Function: ref}
	case 9:
		return PublishVersion{Function: ref, Now: now}
	case 10:
		return AddToken{Hash: hash, Roles: starling.AllRoles, Expires: now + 1, Now: now}
	case 11:
		return AddNode{Token: hash, PublicKey: [32]byte{byte(small.Draw(t, "key"))}, Node: starling.Node{Addr: "a", Roles: starling.AllRoles}, Now: now}
	case 12:
		return RemoveNode{ID: id}
	case 13:
		return ChangeMap{Changes: []partmap.Change{{Kind: partmap.Assign, Partition: starling.PartitionID(small.Draw(t, "partition")), Epoch: starling.Epoch(small.Draw(t, "epoch")), To: id}}}
	case 14:
		return SetDraining{ID: id, Draining: rapid.Bool().Draw(t, "draining")}
	case 15:
		return PublishLayer{Layer: starling.Layer{Account: account, Name: "deps", Code: someCode, CodeSize: 1 + now, Description: fmt.Sprint(now), Created: now}}
	case 16:
		return DeleteLayer{Account: account, Layer: starling.LayerRef{Name: "deps", Version: starling.VersionNumber(now)}}
	}
	return ClaimLead{Node: id}
}

// Whatever is proposed: two replicas stay equal byte for byte; a third that was restored from a snapshot on the
// way ends equal too; the invariants of map and catalog hold; and who follows the feed misses nothing.
func TestReplicasStayEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := NewState(), NewState(), NewState()
		cached := map[starling.FunctionRef]starling.VersionID{} // what a node that follows the feed believes
		commands := rapid.IntRange(0, 60).Draw(t, "commands")
		restoreAt := rapid.IntRange(0, 60).Draw(t, "restore")
		for i := range commands {
			raw, err := EncodeCommand(randomCommand(t))
			if err != nil {
				t.Fatal(err)
			}
			if i == restoreAt {
				var snap bytes.Buffer
				if err := a.Save(&snap); err != nil {
					t.Fatal(err)
				}
				if err := c.Restore(&snap); err != nil {
					t.Fatal(err)
				}
			}
			index := a.Index() + 1
			reply := a.Apply(index, raw)
			if !bytes.Equal(reply, b.Apply(index, raw)) {
				t.Fatal("two replicas answered differently")
			}
			if i >= restoreAt {
				c.Apply(index, raw)
			}
			follow(t, a, index, cached)
		}
		if a.Hash() != b.Hash() || commands > restoreAt && a.Hash() != c.Hash() {
			t.Fatal("replicas differ")
		}
		if err := a.catalog.Check(); err != nil {
			t.Fatal(err)
		}
		if err := a.Topology().Map.Check(); err != nil {
			t.Fatal(err)
		}
	})
}

// follow drops what the feed names of the last command, then compares and refills.
func follow(t *rapid.T, s *State, index uint64, cached map[starling.FunctionRef]starling.VersionID) {
	changes, ok := s.Changes(index - 1)
	if !ok {
		t.Fatal("the feed forgot the last command")
	}
	for _, c := range changes {
		delete(cached, c.Function)
	}
	for _, account := range []starling.AccountID{"acme", "bolt"} {
		for _, name := range []starling.FunctionName{"f", "g"} {
			ref := starling.FunctionRef{Account: account, Name: name}
			id := starling.VersionID(0)
			if r, err := s.Query(Query{What: QueryResolve, Account: account, Function: name}); err == nil {
				id = r.Version.ID
			}
			if old, ok := cached[ref]; ok && old != id {
				t.Fatalf("%v went from %d to %d and the feed did not say so", ref, old, id)
			}
			cached[ref] = id
		}
	}
}

func TestSnapshotComesBackWhole(t *testing.T) {
	s := full(t)
	raw := snapshot(t, s)
	var back State
	if err := back.Restore(bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	if back.Hash() != s.Hash() || back.Index() != s.Index() {
		t.Fatal("the restored state differs")
	}
	if _, ok := back.Changes(s.Index() - 1); ok {
		t.Fatal("a restored feed pretends to know what came before")
	}
	if _, ok := back.Changes(s.Index()); !ok {
		t.Fatal("a restored feed does not reach the present")
	}
	r := mustApply(t, &back, AddNode{Token: [32]byte{2}, PublicKey: [32]byte{3}, Node: starling.Node{Addr: "b:1", Roles: starling.RoleHost}, Now: 9})
	if r.Node.ID != 2 {
		t.Fatalf("the spent token was forgotten: %+v", r.Node)
	}
}

// Any flipped bit and any cut is noticed, and the state stays as it was.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	s := full(t)
	raw := snapshot(t, s)
	before := s.Hash()
	for i := range raw {
		damaged := bytes.Clone(raw)
		damaged[i] ^= 1 << (i % 8)
		if err := s.Restore(bytes.NewReader(damaged)); err == nil {
			t.Fatalf("a flipped bit at %d of %d was not noticed", i, len(raw))
		}
		if err := s.Restore(bytes.NewReader(raw[:i])); err == nil {
			t.Fatalf("a cut at %d of %d was not noticed", i, len(raw))
		}
	}
	if s.Hash() != before {
		t.Fatal("a refused snapshot changed the state")
	}
}

func FuzzRestore(f *testing.F) {
	f.Add(snapshot(f, full(f)))
	f.Add(snapshot(f, NewState()))
	f.Add([]byte(snapshotMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := NewState()
		_ = s.Restore(bytes.NewReader(raw)) // must not panic
		if n := len(raw) - 4; n > 0 {       // with a checksum that fits, what lies behind it is reached
			raw = binary.LittleEndian.AppendUint32(bytes.Clone(raw[:n]), crc32.Checksum(raw[:n], castagnoli))
		}
		if s.Restore(bytes.NewReader(raw)) != nil {
			return
		}
		if err := s.catalog.Check(); err != nil {
			t.Fatal(err)
		}
		again := NewState()
		if err := again.Restore(bytes.NewReader(snapshot(t, s))); err != nil || again.Hash() != s.Hash() {
			t.Fatalf("what was restored cannot be saved: %v", err)
		}
	})
}

func TestFeedForgetsTheOldestAndSaysSo(t *testing.T) {
	var f feed
	for i := range uint64(feedMax + 10) {
		f.add(Change{Index: 2 * (i + 1)})
	}
	if _, ok := f.after(19); ok {
		t.Fatal("a forgotten change was not reported")
	}
	changes, ok := f.after(20)
	if !ok || len(changes) != feedMax || changes[0].Index != 22 || changes[feedMax-1].Index != 2*(feedMax+10) {
		t.Fatalf("got %d changes, %v", len(changes), ok)
	}
	if changes, ok = f.after(2*(feedMax+10) - 3); !ok || len(changes) != 2 {
		t.Fatalf("got %d changes, want 2", len(changes))
	}
}

func BenchmarkApplyPutFunction(b *testing.B) {
	s := NewState()
	mustApply(b, s, CreateAccount{Account: starling.Account{ID: "acme"}})
	raw := mustEncode(b, PutFunction{Function: helloRef, Config: starling.Config{Runtime: starling.Python311}, Code: someCode, CodeSize: 9})
	b.ReportAllocs()
	for b.Loop() {
		s.Apply(s.Index()+1, raw)
	}
}

// A node's mark is kept by everything that rewrites the node, comes back from a snapshot, and leaves no trace when it is
// taken off: replicas of an older release can then read the state again.
func TestDrainingIsKeptUntilItIsTakenOff(t *testing.T) {
	s := full(t)
	mustApply(t, s, UpdateNode{Node: starling.Node{ID: 2, Addr: "b:2"}})
	back := NewState()
	if err := back.Restore(bytes.NewReader(snapshot(t, s))); err != nil {
		t.Fatal(err)
	}
	if n, _ := back.Topology().Node(2); !n.Draining || n.Addr != "b:2" {
		t.Fatalf("came back as %+v", n)
	}
	if _, err := apply(t, s, SetDraining{ID: 9, Draining: true}); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("got %v", err)
	}
	mustApply(t, s, SetDraining{ID: 2})
	if body, err := encoding.Marshal(s.Topology().Nodes[1]); err != nil || bytes.Contains(body, []byte{9, 0xf4}) {
		t.Fatalf("a node without the mark is written as %x, %v", body, err)
	}
	moved := mustApply(t, s, ChangeMap{Changes: []partmap.Change{{Kind: partmap.Split, Partition: 1, Epoch: 1, At: 1 << 32}, {Kind: partmap.Move, Partition: 1, Epoch: 1, To: 1}}})
	if len(moved.Refused) != 1 || moved.refusedAs(0) != starling.Moved {
		t.Fatalf("a change whose epoch has passed: %+v", moved)
	}
}

// A replica of the first release restores what this one saves, until a change is applied that it does not know; and what
// is left out comes back.
func TestFirstReleaseReadsSnapshotsUntilSomethingNewIsApplied(t *testing.T) {
	s := full(t)
	mustApply(t, s, SetDraining{ID: 2})
	mustApply(t, s, ChangeMap{Changes: []partmap.Change{{Kind: partmap.Assign, Partition: 1, Epoch: 1}, {Kind: partmap.Assign, Partition: 2, To: 1}}})
	if err := firstRelease(snapshot(t, s)); err != nil {
		t.Fatalf("it cannot: %v", err)
	}
	mustApply(t, s, ChangeMap{Changes: []partmap.Change{{Kind: partmap.Split, Partition: 2, Epoch: 1, At: 0x5 << 60}}})
	if firstRelease(snapshot(t, s)) == nil {
		t.Fatal("a map with a split partition is read by a release that would take its epoch for a recovery's")
	}
	back := NewState()
	if err := back.Restore(bytes.NewReader(snapshot(t, s))); err != nil {
		t.Fatal(err)
	}
	if got, want := back.Topology().Map, s.Topology().Map; !slices.Equal(got.Partitions, want.Partitions) || got.Last != want.Last {
		t.Fatalf("came back as %+v, was %+v", got, want)
	}
}

// firstRelease reads the header and the nodes of a snapshot as the first release does: by its fields, and no others.
func firstRelease(raw []byte) error {
	type partition struct {
		ID    starling.PartitionID `cbor:"1,keyasint"`
		Range starling.Range       `cbor:"2,keyasint"`
		Epoch starling.Epoch       `cbor:"3,keyasint"`
		Owner starling.NodeID      `cbor:"4,keyasint"`
	}
	type table struct {
		Partitions []partition `cbor:"1,keyasint"`
	}
	type topology struct {
		Index   uint64          `cbor:"1,keyasint"`
		Cluster string          `cbor:"2,keyasint"`
		Map     *table          `cbor:"3,keyasint"`
		Nodes   []starling.Node `cbor:"4,keyasint"`
		Last    starling.NodeID `cbor:"5,keyasint"`
	}
	var h struct {
		Index       uint64    `cbor:"1,keyasint"`
		Claim       Claim     `cbor:"2,keyasint"`
		Topology    *topology `cbor:"3,keyasint"`
		LastReplica uint64    `cbor:"4,keyasint"`
	}
	var n struct {
		ID      starling.NodeID `cbor:"1,keyasint"`
		Name    string          `cbor:"2,keyasint"`
		Addr    string          `cbor:"3,keyasint"`
		Roles   starling.Roles  `cbor:"4,keyasint"`
		Zone    starling.Zone   `cbor:"5,keyasint"`
		HTTP    string          `cbor:"6,keyasint"`
		Replica uint64          `cbor:"7,keyasint"`
		Joined  int64           `cbor:"8,keyasint"`
	}
	in := &recordReader{r: bufio.NewReader(bytes.NewReader(raw)), sum: crc32.New(castagnoli)}
	if _, err := in.read(len(snapshotMagic) + 2); err != nil {
		return err
	}
	for {
		kind, body, err := in.next()
		switch {
		case err != nil || kind == recordEnd:
			return err
		case kind == recordHeader:
			err = decoding.Unmarshal(body, &h)
		case kind == recordNode:
			err = decoding.Unmarshal(body, &n)
		}
		if err != nil {
			return err
		}
	}
}

// What a push of the topology costs: the whole map goes to every node at each change.
func BenchmarkTopologyPush(b *testing.B) {
	for _, partitions := range []int{16, 256, 4096} {
		for _, nodes := range []int{3, 30, 300} {
			b.Run(fmt.Sprintf("partitions=%d/nodes=%d", partitions, nodes), func(b *testing.B) {
				top := largeTopology(b, partitions, nodes)
				var out bytes.Buffer
				for b.Loop() {
					out.Reset()
					if err := WriteMessage(&out, MessageTopology, TopologyPush{Topology: top}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(out.Len()), "bytes/push")
				rows := make([]partmap.Load, min(partmap.LoadMax, partitions/nodes+1))
				for i := range rows {
					rows[i] = partmap.Load{Partition: 1000, Epoch: 1000, Acquires: 20_000, Leases: 300, CPU: 400}
				}
				out.Reset()
				if err := WriteMessage(&out, MessageHeartbeat, Heartbeat{Seq: 1 << 20, Seen: 1 << 30, Report: &Report{Rows: rows}}); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(out.Len()), "bytes/heartbeat")
			})
		}
	}
}

// largeTopology is one in which every partition has an owner.
func largeTopology(b *testing.B, partitions, nodes int) *Topology {
	m, err := partmap.Initial(partitions)
	if err != nil {
		b.Fatal(err)
	}
	top := &Topology{Index: 1 << 30, Cluster: "production", Map: m}
	for i := range nodes {
		id := starling.NodeID(i + 1)
		top.Nodes = append(top.Nodes, starling.Node{ID: id, Name: id.String(), Addr: "10.0.0.1:7400", HTTP: "10.0.0.1:8080", Zone: "a", Roles: starling.AllRoles, Joined: 1.8e9})
	}
	for i := range m.Partitions {
		m.Partitions[i].Owner, m.Partitions[i].Epoch, m.Partitions[i].Since = starling.NodeID(i%nodes+1), 1000, 900
	}
	return top
}

// What is said of isolation is kept, and an account that nothing is said of is the same bytes as an older release's.
func TestSnapshotKeepsWhatIsSaidOfIsolation(t *testing.T) {
	s := full(t)
	silent := len(snapshot(t, s))
	said := SetIsolation{Policy: starling.IsolationPolicy{Default: starling.IsolationGVisor}, SharedKernel: true}
	mustApply(t, s, said)
	mustApply(t, s, SetIsolation{Account: "acme", Policy: starling.IsolationPolicy{Least: starling.IsolationKata}})
	back := NewState()
	if err := back.Restore(bytes.NewReader(snapshot(t, s))); err != nil {
		t.Fatal(err)
	}
	all, err := back.Query(Query{What: QueryIsolation})
	if err != nil || all.Isolation.Policy != said.Policy || !all.Isolation.SharedKernel {
		t.Fatalf("of all: %+v %v", all.Isolation, err)
	}
	one, err := back.Query(Query{What: QueryIsolation, Account: "acme"})
	if err != nil || one.Isolation.Policy != (starling.IsolationPolicy{Default: starling.IsolationGVisor, Least: starling.IsolationKata}) {
		t.Fatalf("of one account: %+v %v", one.Isolation, err)
	}
	mustApply(t, s, SetIsolation{})
	mustApply(t, s, SetIsolation{Account: "acme"})
	if again := len(snapshot(t, s)); again > silent+8 { // the index is longer
		t.Fatalf("a state of which nothing is said has %d bytes, before it had %d", again, silent)
	}
}

// Layers come back with the function that uses them, and their numbers go on.
func TestSnapshotKeepsLayers(t *testing.T) {
	s := full(t)
	deps := starling.Layer{Account: "acme", Name: "deps", Code: someCode, CodeSize: 1, Unpacked: 4096, Runtimes: []starling.Runtime{starling.Python311}, Created: 1}
	mustApply(t, s, PublishLayer{Layer: deps})
	deps.Description = "newer"
	mustApply(t, s, PublishLayer{Layer: deps})
	mustApply(t, s, DeleteLayer{Account: "acme", Layer: starling.LayerRef{Name: "deps", Version: 2}})
	mustApply(t, s, PutFunction{Function: helloRef, Config: starling.Config{Runtime: starling.Python311, Layers: []starling.LayerRef{{Name: "deps", Version: 1}}}, Code: someCode, CodeSize: 9, Now: 20})
	back := NewState()
	if err := back.Restore(bytes.NewReader(snapshot(t, s))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshot(t, back), snapshot(t, s)) {
		t.Fatal("the restored state is another")
	}
	r, err := back.Query(Query{What: QueryLayer, Account: "acme", Layer: "deps"})
	if err != nil || len(r.Layers) != 1 || r.Layers[0].Version != 1 || r.Layers[0].Unpacked != 4096 {
		t.Fatalf("layers: %+v %v", r.Layers, err)
	}
	if _, err := apply(t, back, DeleteLayer{Account: "acme", Layer: r.Layers[0].Ref()}); starling.ReasonOf(err) != "LayerInUse" {
		t.Fatalf("a layer that is used was deleted: %v", err)
	}
	if again := mustApply(t, back, PublishLayer{Layer: deps}); again.Layers[0].Version != 3 {
		t.Fatalf("a number was given twice: %+v", again.Layers)
	}
	if r, err = back.Query(Query{What: QueryLayers, Account: "acme"}); err != nil || len(r.Layers) != 1 || r.Layers[0].Version != 3 {
		t.Fatalf("the newest: %+v %v", r.Layers, err)
	}
}

// Networks and versions that name them are in the snapshot, and a query finds them again.
func TestNetworksOutliveASnapshot(t *testing.T) {
	s := NewState()
	mustApply(t, s, CreateAccount{Account: starling.Account{ID: "acme"}})
	n := starling.Network{Ref: starling.NetworkRef{Account: "acme", Name: "db"}, CIDRs: []string{"10.0.0.0/8"}, Created: 5}
	mustApply(t, s, PutNetwork{Network: n, Create: true})
	var b bytes.Buffer
	if err := s.Save(&b); err != nil {
		t.Fatal(err)
	}
	back := NewState()
	if err := back.Restore(&b); err != nil {
		t.Fatal(err)
	}
	r, err := back.Query(Query{What: QueryNetwork, Account: "acme", Network: "db"})
	if err != nil || r.Network.Created != 5 || r.Network.RateMax != starling.NetworkRateNormal || back.Hash() != s.Hash() {
		t.Fatalf("%+v, %v", r.Network, err)
	}
	mustApply(t, back, DeleteNetwork{Ref: n.Ref})
	if r, err := back.Query(Query{What: QueryNetworks, Account: "acme"}); err != nil || len(r.Networks) != 0 {
		t.Fatalf("after its deletion: %+v, %v", r.Networks, err)
	}
	changes, ok := back.Changes(back.Index() - 1)
	if !ok || len(changes) != 1 || changes[0].Network != n.Ref {
		t.Fatalf("the feed tells %+v", changes)
	}
}
