package host

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"starling"
	"starling/actors/host/guard"
)

func sample() (starling.Lease, starling.Invocation) {
	l := starling.Lease{ID: 1, Partition: 2, Epoch: 3, Version: 4, Instance: starling.InstanceID{Partition: 5, Epoch: 6, Seq: 7}, Slots: 8, TTL: time.Second}
	inv := starling.Invocation{ID: starling.RequestID{9}, Version: 4, Trace: "t", ClientContext: "cc", ContentType: "ct/x", Payload: []byte("payload"), Tail: true}
	return l, inv
}

func TestCallsReadBackAsWritten(t *testing.T) {
	l, inv := sample()
	now := time.Now()
	raw := append(appendCall(nil, &l, &inv, 3*time.Second), inv.Payload...)
	var l2 starling.Lease
	var inv2 starling.Invocation
	total, err := readCall(raw, &l2, &inv2, now)
	inv.Deadline = now.Add(3 * time.Second)
	if err != nil || total != 7 || l2 != l || !reflect.DeepEqual(inv, inv2) {
		t.Fatalf("%+v %+v %d %v", l2, inv2, total, err)
	}
	for n := range raw {
		if _, err := readCall(raw[:n], &l2, &inv2, now); n < callSize && err == nil {
			t.Fatalf("%d bytes were taken for a call", n)
		}
	}
	out := starling.Outcome{Status: starling.Handled, ErrorType: "E", Run: time.Second, Init: time.Millisecond, MemoryMax: 5, LogTail: []byte("tail")}
	var out2 starling.Outcome
	rest, err := readOutcome(append(appendOutcome(nil, &out), 'r'), &out2)
	if err != nil || string(rest) != "r" || !reflect.DeepEqual(out, out2) {
		t.Fatalf("%+v %q %v", out2, rest, err)
	}
	no := starling.Errorf(starling.Moved, "invoke", "gone").With("NoInstance")
	if err := readRefusal(appendRefusal(nil, no)); starling.KindOf(err) != starling.Moved || starling.ReasonOf(err) != "NoInstance" || err.Error() != no.Error() {
		t.Fatalf("got %v", err)
	}
}

// FuzzFrames: no bytes of a peer panic a decoder, and what is accepted is within the limits.
func FuzzFrames(f *testing.F) {
	l, inv := sample()
	f.Add(append(appendCall(nil, &l, &inv, time.Second), inv.Payload...))
	out := starling.Outcome{Status: starling.Handled, ErrorType: "E", LogTail: []byte("x")}
	f.Add(appendOutcome(nil, &out))
	f.Add(appendRefusal(nil, guard.ErrOldEpoch))
	f.Fuzz(func(t *testing.T, raw []byte) {
		now := time.Now()
		var l starling.Lease
		var inv starling.Invocation
		if total, err := readCall(raw, &l, &inv, now); err == nil {
			if total > starling.PayloadMax || len(inv.Payload) > total || len(inv.Trace) > 512 || inv.Deadline.Sub(now) > 24*time.Hour {
				t.Fatalf("accepted %d bytes, %+v", total, inv)
			}
			if total == len(inv.Payload) {
				again := append(appendCall(nil, &l, &inv, inv.Deadline.Sub(now)), inv.Payload...)
				if again[callSize-11] = raw[callSize-11]; !bytes.Equal(again, raw) { // the tail flag is 1 or anything else
					t.Fatalf("%x reads back as %x", raw, again)
				}
			}
		}
		var out starling.Outcome
		readOutcome(raw, &out)
		readRefusal(raw)
	})
}
