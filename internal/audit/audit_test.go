package audit

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"starling"
)

func TestRecordsAreReadAsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l, err := Open(path, 3)
	if err != nil {
		t.Fatal(err)
	}
	before := Now()
	now := time.Now()
	after := Now()
	lease := &starling.Lease{ID: 7, Partition: 2, Epoch: 5, Key: 99, Instance: starling.InstanceID{Partition: 2, Epoch: 4, Seq: 1}}
	want := []Record{
		{Kind: May, At: l.Instant(now), Until: l.Instant(now.Add(time.Second)), Partition: 2, Epoch: 5, Range: starling.Range{Lo: 1}},
		l.Leased(Enter, now, lease, 4),
	}
	for _, r := range want {
		l.Write(r)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`{"kind":"gra`); err != nil { // the node died here
		t.Fatal(err)
	}
	f.Seek(0, 0)
	got, err := Read(f)
	if err != nil || len(got) != len(want) {
		t.Fatalf("read %d records, %v", len(got), err)
	}
	for i := range want {
		want[i].Node = 3
		if got[i] != want[i] {
			t.Errorf("record %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
	// Both clocks are the kernel's: what differs is how well two readings of one instant meet.
	if slack := int64(time.Millisecond); got[0].At < before-slack || got[0].At > after+slack {
		t.Errorf("the instant %d is not between %d and %d", got[0].At, before, after)
	}
	if d := got[0].Until - got[0].At; d != int64(time.Second) {
		t.Errorf("a second is %d ns", d)
	}
}
