package inmem

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/transport"
	"starling/transport/transporttest"
)

func TestContract(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) transporttest.Maker {
		n := New(Config{Seed: 1, DelayMin: 10 * time.Microsecond, DelayMax: 200 * time.Microsecond})
		return func(t *testing.T, node starling.NodeID, addr string) transporttest.Node {
			return n.Endpoint(transport.Peer{Node: node, Roles: starling.AllRoles, Addr: addr})
		}
	})
}

// pair returns two listening endpoints, the second of which echoes.
func pair(t *testing.T, n *Network) (a, b *Endpoint) {
	a, b = n.Endpoint(transport.Peer{Node: 1}), n.Endpoint(transport.Peer{Node: 2})
	b.Handle(transport.ChannelActor, func(s transport.Stream) {
		io.Copy(s, s)
		s.CloseWrite()
	})
	for _, e := range []*Endpoint{a, b} {
		if err := e.Listen(); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func TestDelayIsWhatWasDrawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, New(Config{Seed: 7, DelayMin: 5 * time.Millisecond, DelayMax: 9 * time.Millisecond}))
		defer a.Close()
		defer b.Close()
		s, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		s.Write([]byte("x"))
		s.CloseWrite()
		if _, err := io.ReadAll(s); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 10*time.Millisecond || d > 18*time.Millisecond {
			t.Errorf("there and back took %v", d)
		}
	})
}

func TestOneWayPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(Config{})
		a, b := pair(t, n)
		defer a.Close()
		defer b.Close()
		s, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)

		n.Block(b.Addr(), a.Addr(), true)
		s.Write([]byte("1"))
		s.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := s.Read(buf); err == nil {
			t.Fatal("an answer came through a blocked way")
		}
		if _, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor); starling.KindOf(err) != starling.Unavailable {
			t.Errorf("a new stream over a half-blocked way: %v", err)
		}
		n.Block(b.Addr(), a.Addr(), false)
		s.SetReadDeadline(time.Time{})
		if _, err := io.ReadFull(s, buf); err != nil || buf[0] != '1' {
			t.Fatalf("after a short block: %q, %v", buf, err)
		}

		n.Partition([]string{a.Addr()}, []string{b.Addr()}, true)
		start := time.Now()
		if _, err := s.Read(buf); starling.KindOf(err) != starling.Unavailable || time.Since(start) != 800*time.Millisecond {
			t.Errorf("after a long block: %v after %v, want Unavailable after 800ms", err, time.Since(start))
		}
	})
}

func TestCutLosesWhatIsOpenAndNothingElse(t *testing.T) {
	n := New(Config{})
	a, b := pair(t, n)
	defer a.Close()
	defer b.Close()
	s, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor)
	if err != nil {
		t.Fatal(err)
	}
	n.Cut(a.Addr(), b.Addr())
	if _, err := s.Read(make([]byte, 1)); starling.KindOf(err) != starling.Unavailable || err == io.EOF {
		t.Errorf("a cut stream: %v", err)
	}
	if _, err := a.Open(t.Context(), b.Addr(), transport.ChannelActor); err != nil {
		t.Errorf("after the cut: %v", err)
	}
}

func TestRefusedChannel(t *testing.T) {
	n := New(Config{})
	a, b := n.Endpoint(transport.Peer{Node: 1}), n.Endpoint(transport.Peer{Node: 2})
	b.Allow = func(p transport.Peer, ch transport.Channel) bool { return p.Node != 1 || ch != transport.ChannelRaft }
	a.Listen()
	b.Listen()
	defer a.Close()
	defer b.Close()
	s, err := a.Open(t.Context(), b.Addr(), transport.ChannelRaft)
	if err == nil {
		_, err = io.ReadAll(s)
	}
	if starling.KindOf(err) != starling.Denied {
		t.Errorf("a channel that is not allowed: %v", err)
	}
}
