package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"starling"
)

var aLease = starling.Lease{ID: 1, Partition: 2, Epoch: 3, Version: 4, Instance: starling.InstanceID{Partition: 5, Epoch: 6, Seq: 7}, Host: 8, Slots: 9,
	TTL: time.Second, Phases: starling.Phases{Queue: 1 * time.Microsecond, Place: 2 * time.Microsecond, Start: 3 * time.Microsecond, Init: 4 * time.Microsecond}, Key: 4}

// samples has one message of every kind with every field set.
var samples = []Message{
	&Acquire{Call: 1, Partition: 2, Epoch: 3, Key: 4, Version: 5, Wait: 6 * time.Second},
	&Cancel{Partition: 1, Call: 2},
	&Release{Partition: 1, Epoch: 2, Leases: []starling.LeaseID{3, 4}, Demand: []Demand{{5, 6, 7, 8, 9, time.Millisecond}}},
	&Renew{Partition: 1, Epoch: 2, Leases: []starling.LeaseID{3}, Demand: []Demand{{5, 6, 7, 8, 9, time.Millisecond}, {Version: 9}}},
	&Grant{Call: 1, Lease: aLease},
	&Reject{Call: 1, Partition: 2, Reject: starling.Overloaded, Reason: "QueueFull", Message: "too many calls wait", After: time.Second},
	&Recall{Partition: 1, Epoch: 2, Leases: []starling.LeaseID{3}},
	&Renewed{Partition: 1, Epoch: 2, TTL: time.Second, Leases: []starling.LeaseID{3}},
	&Start{Partition: 1, Epoch: 2, Instance: aLease.Instance, Key: 3, Version: 4},
	&Stop{Partition: 1, Epoch: 2, Instance: aLease.Instance, Now: true},
	&Fence{Partition: 1, Epoch: 2, Range: starling.Range{Lo: 3, Hi: 4}, Since: 1},
	&Relay{From: 3, Body: &Cancel{Partition: 1, Call: 2}},
	&Started{Partition: 1, Host: 2, Instance: aLease.Instance, Start: time.Millisecond, Init: time.Second},
	&StartFailed{Partition: 1, Host: 2, Instance: aLease.Instance, Fault: starling.Failed, Reason: starling.ErrInit, Message: "boom"},
	&Exited{Partition: 1, Host: 2, Instance: aLease.Instance, Reason: starling.ErrExit},
	&Fenced{Partition: 1, Epoch: 2, Host: 3, Instances: []InstanceReport{
		{Instance: aLease.Instance, Key: 4, Version: 5, Ready: true, Busy: 6, Leases: []starling.Lease{aLease, aLease}},
		{Instance: aLease.Instance, Idle: time.Minute}}, Runs: []RunReport{{5, time.Millisecond}}},
	&HostReport{Host: 1, Zone: "z", FreeMiB: 2, TotalMiB: 3, Instances: 4, Starting: 5, CPU: 6, Draining: true,
		Pools:    []PoolReport{{Runtime: starling.Python311, Ready: 7}, {Runtime: starling.NodeJS20, Ready: 2, Isolation: starling.IsolationGVisor}},
		Versions: []starling.VersionID{8, 9}, Isolations: starling.SetOf(starling.IsolationProcess, starling.IsolationGVisor)},
	&Census{Partition: 1, Epoch: 2, Range: starling.Range{Lo: 3, Hi: 4}, Hosts: []starling.NodeID{5, 6}},
	&AtWork{Partition: 1, Epoch: 2, Hosts: []starling.NodeID{5}, Leases: []starling.Lease{aLease}, More: true},
	&Borrow{Account: "acme", Partition: 1, Epoch: 2, Keys: starling.Range{Lo: 3, Hi: 4}, Term: Term{5, 6}, Seq: 7, Seen: 8, Held: 9, Need: 10, Want: 11, Unheard: true},
	&Lend{Account: "acme", Partition: 1, Term: Term{2, 3}, Seq: 4, Number: 5, Permits: 6, Limit: 7, Epoch: 8},
	&Audit{Account: "acme", Partition: 1, Term: Term{2, 3}},
}

func TestEveryMessageComesBackAsItWent(t *testing.T) {
	var d Decoder
	for _, m := range samples {
		body := Append(nil, m)
		for range slab + 2 { // over the end of a slab
			got, err := d.Decode(m.Kind(), body)
			if err != nil {
				t.Fatalf("%T: %v", m, err)
			}
			if !reflect.DeepEqual(got, m) {
				t.Fatalf("%T: got %+v, want %+v", m, got, m)
			}
		}
	}
}

// added has the bytes by which a message is longer than in the release before: without them it is whole, too.
var added = map[Kind]int{KindGrant: 8, KindFence: 8, KindLend: 8, KindBorrow: 8, KindFenced: 4 + 16, KindHostReport: 34}

func TestATruncatedMessageIsRefused(t *testing.T) {
	for _, m := range samples {
		body := Append(nil, m)
		for n := range body {
			if more := added[m.Kind()]; more > 0 && n == len(body)-more {
				continue
			}
			if _, err := Decode(m.Kind(), body[:n]); starling.KindOf(err) != starling.Invalid {
				t.Fatalf("%T cut to %d of %d bytes: %v", m, n, len(body), err)
			}
		}
	}
}

func TestMessagesOfTheReleaseBeforeAreUnderstood(t *testing.T) {
	body := Append(nil, &Fence{Partition: 1, Epoch: 2, Range: starling.Range{Lo: 3, Hi: 4}, Since: 1})
	m, err := Decode(KindFence, body[:len(body)-added[KindFence]])
	if f, ok := m.(*Fence); err != nil || !ok || f.Since != 2 {
		t.Errorf("a fence without Since: got %+v, %v; want it to be its epoch", m, err)
	}
	body = Append(nil, &HostReport{Host: 1, Pools: []PoolReport{{Runtime: starling.Python311, Ready: 7}}})
	m, err = Decode(KindHostReport, body[:len(body)-8-4])
	if h, ok := m.(*HostReport); err != nil || !ok || h.Isolations != starling.OnlyProcess || len(h.Pools) != 1 {
		t.Errorf("a report without isolations: got %+v, %v; want the host to give process alone", m, err)
	}
	body = Append(nil, &Grant{Call: 1, Lease: aLease})
	m, err = Decode(KindGrant, body[:len(body)-added[KindGrant]])
	if g, ok := m.(*Grant); err != nil || !ok || g.Lease.Key != 0 || g.Lease.ID != aLease.ID {
		t.Errorf("a grant without a key: got %+v, %v", m, err)
	}
	relay := Append(nil, &Relay{From: 1, Body: &Cancel{}})
	relay[8] = byte(KindRelay)
	if _, err := Decode(KindRelay, relay); starling.KindOf(err) != starling.Invalid {
		t.Errorf("a relay in a relay: %v", err)
	}
}

func TestFieldsOfANewerNodeAreSkipped(t *testing.T) {
	for _, m := range samples {
		got, err := Decode(m.Kind(), append(Append(nil, m), 1, 2, 3))
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%T: got %+v, %v", m, got, err)
		}
	}
}

func TestLimitsAreKept(t *testing.T) {
	if _, err := Decode(99, nil); starling.KindOf(err) != starling.Invalid {
		t.Errorf("unknown kind: %v", err)
	}
	over := Append(nil, &Recall{Leases: make([]starling.LeaseID, LeaseMax+1)})
	if _, err := Decode(KindRecall, over); starling.KindOf(err) != starling.Invalid {
		t.Errorf("too many leases: %v", err)
	}
	long := &Reject{Message: strings.Repeat("x", TextMax+9)}
	got, err := Decode(KindReject, Append(nil, long))
	if err != nil || len(got.(*Reject).Message) != TextMax {
		t.Errorf("a long sentence is not cut to %d: %v", TextMax, err)
	}
	endless, err := Decode(KindAcquire, Append(nil, &Acquire{Wait: -5}))
	if err != nil || endless.(*Acquire).Wait != 0 {
		t.Errorf("a negative wait is not 0: %v %v", endless, err)
	}
}

// FuzzDecode: no input panics, and what is decoded encodes to the bytes it was decoded from.
func FuzzDecode(f *testing.F) {
	for _, m := range samples {
		f.Add(uint8(m.Kind()), Append(nil, m))
	}
	f.Add(uint8(KindFenced), Append(nil, &Fenced{}))
	f.Add(uint8(KindHostReport), Append(nil, &HostReport{}))
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		m, err := Decode(Kind(kind), body)
		if err != nil {
			return
		}
		again := Append(nil, m)
		if !bytes.HasPrefix(body, again) && !bytes.HasPrefix(again, body) { // an older release leaves out what was added
			t.Fatalf("%T: %x encodes to %x", m, body, again)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, m := range samples[:5] {
		b.Run(name(m), func(b *testing.B) {
			b.ReportAllocs()
			dst := make([]byte, 0, 4096)
			for b.Loop() {
				dst = Append(dst[:0], m)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, m := range samples[:5] {
		b.Run(name(m), func(b *testing.B) {
			b.ReportAllocs()
			body := Append(nil, m)
			var d Decoder
			for b.Loop() {
				if _, err := d.Decode(m.Kind(), body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func name(m Message) string { return strings.TrimPrefix(reflect.TypeOf(m).String(), "*wire.") }
