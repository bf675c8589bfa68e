package desk

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"time"

	"starling"
	"starling/transport"
	"starling/transport/inmem"
	"starling/vpcproxy/grant"
)

// manager is a signer behind an endpoint, and a client of host 7 without a signer of its own.
func manager(t *testing.T, now *time.Time, placed *bool) (*Signer, *Client) {
	t.Helper()
	s := &Signer{Seed: bytes.Repeat([]byte{1}, 32), Now: func() time.Time { return *now }, Log: slog.New(slog.DiscardHandler),
		Placed: func(_ context.Context, v *starling.Version, host starling.NodeID) bool { return *placed && host == 7 },
		Version: func(_ context.Context, id starling.VersionID) (*starling.Version, error) {
			switch id {
			case 1:
				return &starling.Version{ID: 1, Function: starling.FunctionRef{Account: "acme", Name: "pay"}, Config: starling.Config{Network: "db"}}, nil
			case 2:
				return &starling.Version{ID: 2, Function: starling.FunctionRef{Account: "acme", Name: "bare"}}, nil
			}
			return nil, starling.Errorf(starling.NotFound, "read version", "there is none")
		}}
	net := inmem.New(inmem.Config{})
	m, host := net.Endpoint(transport.Peer{Node: 1, Addr: "manager:1"}), net.Endpoint(transport.Peer{Node: 7, Addr: "host:1"})
	m.Handle(transport.ChannelGrant, s.Serve)
	for _, e := range []*inmem.Endpoint{m, host} {
		if err := e.Listen(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
	}
	return s, &Client{Self: 7, Open: host.Open, Managers: func() []string { return []string{"nobody:1", "manager:1"} }}
}

func TestGrantIsForWhatWasPlaced(t *testing.T) {
	now, placed := time.Unix(10_000, 0), true
	_, c := manager(t, &now, &placed)
	id := starling.InstanceID{Partition: 3, Epoch: 2, Seq: 9}
	raw, err := c.Grant(t.Context(), 1, id)
	if err != nil {
		t.Fatal(err)
	}
	key, clock, err := c.Key(t.Context())
	if err != nil || !clock.Equal(now) {
		t.Fatalf("clock %v, %v", clock, err)
	}
	g, err := grant.Open(key, raw, 7, now)
	want := starling.Attachment{Instance: id, Function: starling.FunctionRef{Account: "acme", Name: "pay"}, Version: 1, Network: "db"}
	if err != nil || g.Attachment != want || g.Until != now.Add(grant.Life).Unix() {
		t.Fatalf("%+v, %v", g, err)
	}
	if _, err := c.Grant(t.Context(), 2, id); starling.KindOf(err) != starling.Denied {
		t.Errorf("a version without a network: %v", err)
	}
	if _, err := c.Grant(t.Context(), 3, id); starling.KindOf(err) == starling.Internal || err == nil {
		t.Errorf("a version that is not there: %v", err)
	}
	placed = false
	if _, err := c.Grant(t.Context(), 1, id); starling.KindOf(err) != starling.Denied {
		t.Errorf("a version that nobody placed here: %v", err)
	}
}

// A grant is renewed by an older one, also one that is over, but not for ever, not by another host and not by what nobody signed.
func TestGrantIsRenewedWhileAnInstanceMayLive(t *testing.T) {
	now, placed := time.Unix(10_000, 0), true
	s, c := manager(t, &now, &placed)
	raw, err := c.Grant(t.Context(), 1, starling.InstanceID{Seq: 1})
	if err != nil {
		t.Fatal(err)
	}
	placed = false // forgotten by then
	now = now.Add(time.Hour)
	again, err := c.Renew(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	key, _, _ := c.Key(t.Context())
	if g, err := grant.Open(key, again, 7, now); err != nil || g.First != 10_000 {
		t.Fatalf("%+v, %v", g, err)
	}
	if _, err := s.Renew(8, raw); starling.KindOf(err) != starling.Denied {
		t.Errorf("another host renews it: %v", err)
	}
	if _, err := c.Renew(t.Context(), raw[:len(raw)-1]); starling.KindOf(err) != starling.Denied {
		t.Errorf("half of one: %v", err)
	}
	now = now.Add(grant.LifeMax)
	if _, err := c.Renew(t.Context(), again); starling.KindOf(err) != starling.Denied {
		t.Errorf("after the longest life: %v", err)
	}
}

func FuzzServe(f *testing.F) {
	f.Add(appendSized(opGrant, make([]byte, 32)))
	f.Add(appendSized(opRenew, []byte("old")))
	f.Add(appendSized(opKey, nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &Signer{Seed: make([]byte, 32), Now: time.Now, Log: slog.New(slog.DiscardHandler),
			Placed:  func(context.Context, *starling.Version, starling.NodeID) bool { return false },
			Version: func(context.Context, starling.VersionID) (*starling.Version, error) { return &starling.Version{}, nil }}
		op, body, err := readSized(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if b, err := s.answer(t.Context(), 7, op, body); err == nil && op != opKey {
			t.Fatalf("question %d is granted: %x", op, b)
		}
	})
}
