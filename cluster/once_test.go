package cluster

import (
	"bytes"
	"testing"

	"starling"
)

func named16(n byte, since uint64, cmd Command) Once {
	raw, err := EncodeCommand(cmd)
	if err != nil {
		panic(err)
	}
	return Once{Request: [16]byte{n, 1}, Since: since, Command: raw}
}

// A request is answered as it was the first time, also as a refusal, also after a snapshot; another one is another request.
func TestARequestIsCarriedOutOnce(t *testing.T) {
	s, index := NewState(), uint64(0)
	apply := func(s *State, c Command) (Reply, error) {
		t.Helper()
		raw, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		index++
		return DecodeReply(s.Apply(index, raw))
	}
	create := CreateAccount{Account: starling.Account{ID: "acme"}}
	clash := CreateAccount{Account: starling.Account{ID: "acme", ConcurrencyMax: 9}}
	first, err := apply(s, named16(1, 0, create))
	if err != nil || first.Account.ID != "acme" {
		t.Fatalf("got %+v, %v", first, err)
	}
	_, refused := apply(s, named16(2, 1, clash))
	if starling.KindOf(refused) != starling.Conflict {
		t.Fatalf("got %v", refused)
	}
	if _, err := apply(s, DeleteAccount{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := s.Save(&saved); err != nil {
		t.Fatal(err)
	}
	copied := NewState()
	if err := copied.Restore(&saved); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*State{s, copied} {
		if again, err := apply(s, named16(1, 0, create)); err != nil || again.Account.ID != "acme" {
			t.Errorf("again: %+v, %v", again, err)
		}
		if _, err := apply(s, named16(2, 1, clash)); err == nil || err.Error() != refused.Error() {
			t.Errorf("again: %v, before: %v", err, refused)
		}
		if _, err := s.Query(Query{What: QueryAccount, Account: "acme"}); starling.KindOf(err) != starling.NotFound {
			t.Errorf("it was carried out twice: %v", err)
		}
	}
	if s.Hash() == copied.Hash() {
		t.Error("states at two indexes are the same") // the loop applied to them in turn
	}
	if _, err := apply(s, named16(3, 1, UpdateNode{})); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a command that needs no name: %v", err)
	}
}

// What is no longer remembered is never carried out again: its caller is told to look. A new request is not held up.
func TestAForgottenRequestIsRefused(t *testing.T) {
	s, index := NewState(), uint64(0)
	apply := func(c Once) error {
		raw, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		index++
		_, err = DecodeReply(s.Apply(index, raw))
		return err
	}
	old := named16(0, 0, CreateAccount{Account: starling.Account{ID: "old"}})
	if err := apply(old); err != nil {
		t.Fatal(err)
	}
	for i := range requestMax {
		c := named16(1, index, DeleteAccount{ID: "nobody"})
		c.Request[2], c.Request[3] = byte(i), byte(i>>8)
		if err := apply(c); starling.KindOf(err) != starling.NotFound {
			t.Fatal(err)
		}
	}
	if err := apply(old); starling.ReasonOf(err) != ReasonOutcomeUnknown {
		t.Errorf("a forgotten request: %v", err)
	}
	if n := len(s.requests.list); n != requestMax {
		t.Errorf("%d requests are remembered, want %d", n, requestMax)
	}
	big := Once{Request: [16]byte{9}, Since: index}
	for i := range 40 { // refusals name what they refuse
		big.Request[1] = byte(i)
		big.Command, _ = EncodeCommand(DeleteAccount{ID: starling.AccountID(bytes.Repeat([]byte{'x'}, 64<<10))})
		big.Since = index
		_ = apply(big) // refused
	}
	if s.requests.bytes > requestBytesMax {
		t.Errorf("%d bytes are remembered, want at most %d", s.requests.bytes, requestBytesMax)
	}
}
