package cluster

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"starling"
	"starling/cluster/partmap"
)

var helloRef = starling.FunctionRef{Account: "acme", Name: "hello"}

const someCode = starling.CodeHash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")

// samples holds one command of every kind.
func samples() []Command {
	return []Command{
		InitCluster{Name: "test", Partitions: 4},
		CreateAccount{Account: starling.Account{ID: "acme", Created: 5}},
		DeleteAccount{ID: "acme"},
		CreateKey{Key: starling.Key{Hash: [32]byte{1}, ID: "k", Account: "acme", Role: starling.KeyUser}},
		DeleteKey{Account: "acme", ID: "k"},
		PutFunction{Function: helloRef, Config: starling.Config{Runtime: starling.Python311, Env: map[string]string{"A": "1", "B": "2"}}, Code: someCode, CodeSize: 9, Now: 7},
		DeleteFunction{Function: helloRef},
		PublishVersion{Function: helloRef, Now: 8},
		AddToken{Hash: [32]byte{2}, Roles: starling.AllRoles, Expires: 100, Now: 1},
		AddNode{Token: [32]byte{2}, PublicKey: [32]byte{3}, Node: starling.Node{Addr: "a:1", Roles: starling.AllRoles}, Now: 9},
		UpdateNode{Node: starling.Node{ID: 1, Addr: "a:2"}},
		RemoveNode{ID: 1},
		ChangeMap{Changes: []partmap.Change{{Kind: partmap.Assign, Partition: 1, To: 1}}, Claim: 3},
		ClaimLead{Node: 1},
		SetDraining{ID: 1, Draining: true},
		RestoreState{Hash: [32]byte{1}, Part: 1, Parts: 2, Data: []byte{1}, Node: starling.Node{ID: 1, Addr: "a:1"}},
		Once{Request: [16]byte{1, 2}, Since: 7, Command: []byte{7, 0, 1, 0, 0xa0}},
		RenewReplica{Node: 2, Lost: 2},
		PutNetwork{Network: starling.Network{Ref: starling.NetworkRef{Account: "acme", Name: "db"}, CIDRs: []string{"10.0.0.0/8"}, DNS: []string{"10.0.0.2"}, Egress: "10.0.0.9",
			Allow: []string{"10.0.0.5:5432"}, Deny: []string{"10.0.0.7"}, ConnMax: 1, RateMax: 2, Created: 3}, Create: true},
		DeleteNetwork{Ref: starling.NetworkRef{Account: "acme", Name: "db"}},
		SetIsolation{Account: "acme", Policy: starling.IsolationPolicy{Default: starling.IsolationKata, Least: starling.IsolationGVisor}, SharedKernel: true},
		PublishLayer{Layer: starling.Layer{Account: "acme", Name: "deps", Code: someCode, CodeSize: 1, Unpacked: 4096, Runtimes: []starling.Runtime{starling.Python311}, Created: 1}},
		DeleteLayer{Account: "acme", Layer: starling.LayerRef{Name: "deps", Version: 1}},
	}
}

func mustEncode(t testing.TB, cmd Command) []byte {
	t.Helper()
	raw, err := EncodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEveryCommandCrossesTheLog(t *testing.T) {
	seen := map[uint16]bool{}
	for _, cmd := range samples() {
		raw := mustEncode(t, cmd)
		back, err := DecodeCommand(raw)
		if err != nil {
			t.Fatalf("%T: %v", cmd, err)
		}
		if !bytes.Equal(mustEncode(t, back), raw) {
			t.Fatalf("%T changed on its way", cmd)
		}
		seen[cmd.CommandKind()] = true
	}
	for kind := range uint16(64) {
		if blank(kind) != nil && !seen[kind] {
			t.Errorf("command %d has no sample", kind)
		}
	}
}

func TestUnknownCommandsAreRefusedByName(t *testing.T) {
	raw := mustEncode(t, ClaimLead{Node: 1})
	newer := bytes.Clone(raw)
	binary.LittleEndian.PutUint16(newer[2:], 2)
	stranger := bytes.Clone(raw)
	binary.LittleEndian.PutUint16(stranger, 999)
	field := append(bytes.Clone(raw[:4]), 0xa1, 0x18, 0x63, 0x01) // {99: 1}
	for name, raw := range map[string][]byte{"a newer layout": newer, "a newer number": stranger, "a newer field": field, "nothing": nil, "half": raw[:5]} {
		reply, err := DecodeReply(NewState().Apply(1, raw))
		if starling.KindOf(err) != starling.Invalid {
			t.Errorf("%s: got %+v, %v", name, reply, err)
		}
	}
}

func TestReplyCarriesTheWholeRefusal(t *testing.T) {
	want := starling.Errorf(starling.Overloaded, "create key", "too many").With("KeyLimit").RetryAfter(1500e6)
	_, err := DecodeReply(EncodeReply(Reply{}, want))
	if got := err.(*starling.Error); *got != *want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, cmd := range samples() {
		raw, err := EncodeCommand(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = DecodeReply(NewState().Apply(1, raw)) // must not panic
		cmd, err := DecodeCommand(raw)
		if err != nil {
			return
		}
		once := mustEncode(t, cmd)
		again, err := DecodeCommand(once)
		if err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
		if twice := mustEncode(t, again); !bytes.Equal(once, twice) {
			t.Fatalf("%x became %x", once, twice)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	for kind, v := range map[MessageKind]any{MessageHello: Hello{Fresh: true}, MessageHeartbeat: Heartbeat{Seq: 3, Load: Load{CPU: 7}, Report: &Report{Rows: []partmap.Load{{Partition: 1, Hot: []partmap.Hot{{Function: helloRef}}}}}, Done: []OrderDone{{ID: 1}}},
		MessageOrder:    Order{ID: 1, Kind: partmap.Split, Partition: 1, At: 7},
		MessageTopology: TopologyPush{Topology: &Topology{Map: &partmap.Map{}}, Alive: []starling.NodeID{1}}, MessageFeed: FeedPush{To: 9, Changes: []Change{{Function: helloRef}}},
		MessageDelta: sampleDelta(), MessageJoin: JoinRequest{Token: []byte("t")}, MessageReply: ReplyBody{Reply: EncodeReply(Reply{Index: 1}, nil)}} {
		var b bytes.Buffer
		if err := WriteMessage(&b, kind, v); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := bytes.NewReader(raw)
		for {
			_, body, err := ReadMessage(r, MessageJoinMax)
			if err != nil {
				return
			}
			for _, v := range []any{&Hello{}, &Heartbeat{}, &TopologyPush{}, &FeedPush{}, &Renewal{}, &Proposal{}, &Query{}, &ReplyBody{}, &JoinRequest{}, &JoinReply{}, &Status{}, &Order{}, &TopologyDelta{}} {
				_ = DecodeMessage(body, v) // must not panic
			}
		}
	})
}

func TestMessageOverItsLimitIsRefusedBeforeItIsRead(t *testing.T) {
	head := []byte{0, 0, 0, 0x10, 1}
	if _, _, err := ReadMessage(io.MultiReader(bytes.NewReader(head), neverRead{t}), MessageJoinMax); starling.KindOf(err) != starling.TooLarge {
		t.Fatalf("got %v", err)
	}
}

type neverRead struct{ t *testing.T }

func (n neverRead) Read([]byte) (int, error) { n.t.Error("the body was read"); return 0, io.EOF }
