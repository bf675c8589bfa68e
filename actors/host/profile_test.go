package host_test

import (
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/vmpool/fake"
)

// Calls reach the book with the report beat, and the last ones with the end of their instance, whichever way it ends.
func TestEveryCallReachesTheBookOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		r.driver.Handlers["main.boom"] = func(c *fake.Call) {
			if string(c.Payload) == "all" {
				c.ExhaustMemory()
				return
			}
			c.Answer("application/json", c.Payload)
		}
		r.Receive(1, []wire.Message{startMsg(1, slow), startMsg(2, boom)})
		time.Sleep(50 * time.Millisecond)
		for range 3 {
			if _, _, err := call(r, lease(1, 1, slow), ""); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := call(r, lease(1, 2, boom), "1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // a beat
		calls := func() map[starling.VersionID]uint64 {
			out := map[starling.VersionID]uint64{}
			for _, p := range r.Profiles("fn") {
				out[p.Version] = p.Calls
			}
			return out
		}
		if got := calls(); got[slow] != 3 || got[boom] != 1 {
			t.Fatalf("after a beat: %v", got)
		}
		call(r, lease(1, 1, slow), "")
		r.Receive(1, []wire.Message{&wire.Stop{Partition: 1, Epoch: 1, Instance: instance(1)}})
		if _, out, err := call(r, lease(1, 2, boom), "all"); err != nil || out.ErrorType != starling.ErrOutOfMemory {
			t.Fatalf("%+v %v", out, err)
		}
		time.Sleep(10 * time.Millisecond) // less than a beat
		if got := calls(); got[slow] != 4 || got[boom] != 2 {
			t.Errorf("after their ends: %v", got)
		}
		for _, p := range r.Profiles("") {
			if p.Version == slow && (p.RunSeconds < .8 || p.RunSeconds > .85 || p.MemoryMax != 32<<20 || p.MemoryMiB != 128 || p.ActiveSeconds < .6 || p.ActiveSeconds > 2) {
				t.Errorf("%+v", p)
			}
			if p.Version == boom && (p.OutOfMemory != 1 || p.MemoryMax != 128<<20) {
				t.Errorf("what ran out of memory used all of it: %+v", p)
			}
		}
		if got := r.Profiles("other"); len(got) != 0 {
			t.Errorf("a function without calls has %v", got)
		}
	})
}

// TestTheNextOwnerHearsHowLongCallsRun: it need not start instances to find out.
func TestTheNextOwnerHearsHowLongCallsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.close(t)
		r.Receive(1, []wire.Message{startMsg(1, slow), startMsg(2, echo)})
		time.Sleep(50 * time.Millisecond)
		for range 3 {
			if _, _, err := call(r, lease(1, 1, slow), ""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second) // a beat
		r.post.take()
		r.Receive(2, []wire.Message{&wire.Fence{Partition: 5, Epoch: 4, Since: 4}})
		m, ok := r.post.take()[0].m.(*wire.Fenced)
		if !ok || len(m.Instances) != 2 {
			t.Fatalf("answered %+v", m)
		}
		if len(m.Runs) != 1 || m.Runs[0].Version != slow || m.Runs[0].Mean < 190*time.Millisecond || m.Runs[0].Mean > 220*time.Millisecond {
			t.Errorf("of one version with calls of 200 ms and one without any calls it tells %+v", m.Runs)
		}
	})
}
