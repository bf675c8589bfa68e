package host_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/host"
	"starling/actors/wire"
	"starling/transport"
	"starling/transport/inmem"
)

// pair is a frontend and a host on two nodes.
func pair(t testing.TB) (*rig, *host.Client, *inmem.Network, func()) {
	t.Helper()
	net := inmem.New(inmem.Config{})
	h := net.Endpoint(transport.Peer{Node: 9, Roles: starling.RoleHost, Addr: "host:1"})
	f := net.Endpoint(transport.Peer{Node: 1, Roles: starling.RoleFrontend, Addr: "front:1"})
	r := newRig(t)
	r.Serve(h)
	for _, e := range []*inmem.Endpoint{h, f} {
		if err := e.Listen(); err != nil {
			t.Fatal(err)
		}
	}
	c := host.NewClient(f, func(n starling.NodeID) string {
		if n == 9 {
			return "host:1"
		}
		return ""
	})
	return r, c, net, func() {
		c.Close()
		f.Close()
		h.Close()
		r.close(t)
	}
}

func (r *rig) mustStart(t testing.TB, seq uint64, v starling.VersionID) {
	t.Helper()
	r.Receive(1, []wire.Message{startMsg(seq, v)})
	for limit := time.Now().Add(5 * time.Second); time.Now().Before(limit); time.Sleep(time.Millisecond) {
		for _, s := range r.post.take() {
			if m, ok := s.m.(*wire.Started); ok && m.Instance == instance(seq) {
				return
			}
		}
	}
	t.Fatal("the instance did not start")
}

func TestRemoteCallsAreLikeLocalOnes(t *testing.T) {
	r, c, _, end := pair(t)
	defer end()
	r.mustStart(t, 1, echo)
	for _, size := range []int{0, 1, 60 << 10, 70 << 10, 900 << 10, starling.PayloadMax} {
		payload := strings.Repeat("x", size)
		inv, s := invocation(echo, payload), &sink{}
		inv.Deadline = time.Now().Add(30 * time.Second)
		out, err := c.Invoke(context.Background(), lease(1, 1, echo), inv, s)
		body := s.body.String()
		if err != nil || body != payload || out.Status != starling.Succeeded || out.Run <= 0 || out.MemoryMax != 32<<20 {
			t.Errorf("%d bytes: answered %d, %+v, %v", size, len(body), out, err)
		}
	}
	if _, _, err := call(c, lease(1, 99, echo), ""); starling.KindOf(err) != starling.Moved {
		t.Errorf("an unknown instance: %v", err)
	}
	elsewhere := lease(1, 1, echo)
	elsewhere.Host = 77
	if _, _, err := call(c, elsewhere, ""); starling.ReasonOf(err) != host.ReasonNotStarted {
		t.Errorf("an unknown host: %v", err)
	}
}

// TestVisitsAreCountedOnce: what came from another node is told by function, and told once; local calls are not.
func TestVisitsAreCountedOnce(t *testing.T) {
	r, c, _, end := pair(t)
	defer end()
	r.mustStart(t, 1, echo)
	for range 3 {
		if _, _, err := call(c, lease(1, 1, echo), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Invoke(context.Background(), lease(1, 1, echo), invocation(echo, "x"), &sink{}); err != nil {
		t.Fatal(err)
	}
	if v := r.Visits(); len(v) != 1 || v[0].Arrived != 3 || v[0].Admitted != 3 || v[0].Function.Name == "" {
		t.Errorf("visits %+v, want one function with 3 calls", v)
	}
	if v := r.Visits(); len(v) != 0 {
		t.Errorf("told again: %+v", v)
	}
}

func TestRemoteStreamsFlowAtThePaceOfTheCaller(t *testing.T) {
	r, c, _, end := pair(t)
	defer end()
	r.mustStart(t, 1, big)
	s := &sink{pause: time.Millisecond}
	out, err := c.Invoke(context.Background(), lease(1, 1, big), invocation(big, "1"), s)
	if err != nil || out.Status != starling.Succeeded || !s.stream || s.content != "application/octet-stream" || !bytes.Equal(s.body.Bytes(), bytes.Repeat([]byte{7}, 2<<20)) {
		t.Fatalf("got %d bytes, %+v, %v", s.body.Len(), out, err)
	}
}

func TestRemoteFaultsCarryTheirDocument(t *testing.T) {
	r, c, _, end := pair(t)
	defer end()
	r.mustStart(t, 1, boom)
	inv := invocation(boom, "1")
	inv.Tail = true
	out, err := c.Invoke(context.Background(), lease(1, 1, boom), inv, &sink{})
	if err != nil || out.Status != starling.Unhandled || out.ErrorType != starling.ErrExit || !bytes.Contains(out.Error, []byte("exit status 3")) || !bytes.Contains(out.LogTail, []byte("REPORT")) {
		t.Fatalf("%+v %s %v", out, out.Error, err)
	}
}

func TestALostHostEndsItsCalls(t *testing.T) {
	r, c, net, end := pair(t)
	defer end()
	r.mustStart(t, 1, slow)
	if _, _, err := call(c, lease(1, 1, slow), ""); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := call(c, lease(1, 1, slow), "")
		if starling.KindOf(err) != starling.Unavailable || starling.ReasonOf(err) == host.ReasonNotStarted {
			t.Errorf("got %v", err)
		}
	})
	time.Sleep(50 * time.Millisecond)
	net.Cut("host:1", "front:1")
	wg.Wait()
	net.Partition([]string{"host:1"}, []string{"front:1"}, true)
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, _, err := call(c, lease(1, 1, slow), "")
		if starling.ReasonOf(err) == host.ReasonNotStarted {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("got %v", err)
		}
	}
}

// mute is an endpoint whose dials never end by themselves, as those to a machine that lost its power.
type mute struct{ transport.Endpoint }

func (mute) Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error) {
	<-ctx.Done()
	return nil, starling.Errorf(starling.Unavailable, "reach "+addr, "no answer")
}

func TestCallsDoNotWaitForADeadHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := host.NewClient(mute{}, func(starling.NodeID) string { return "host:1" })
		defer c.Close()
		began := time.Now()
		_, err := c.Invoke(t.Context(), lease(1, 1, echo), invocation(echo, "{}"), &sink{})
		if took := time.Since(began); starling.ReasonOf(err) != host.ReasonNotStarted || took > 500*time.Millisecond {
			t.Fatalf("after %v: %v", took, err)
		}
	})
}

func TestManyRemoteCallsShareOneStream(t *testing.T) {
	r, c, _, end := pair(t)
	defer end()
	r.mustStart(t, 1, wide)
	l := lease(1, 1, wide)
	l.Slots = 4
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for k := range 3 {
				want := string(rune('a' + n*3 + k))
				var s sink
				inv := invocation(wide, want)
				inv.ID[8], inv.ID[9] = byte(n), byte(k)
				if out, err := c.Invoke(context.Background(), l, inv, &s); err != nil || s.body.String() != want {
					t.Errorf("got %q, %+v, %v", s.body.String(), out, err)
				}
			}
		})
	}
	wg.Wait()
}
