package judge

import (
	"strings"
	"testing"
	"time"

	"starling"
	"starling/internal/audit"
)

var whole = starling.Range{}

func may(p, e int, at, until int64) audit.Record {
	return audit.Record{Kind: audit.May, At: at, Until: until, Node: starling.NodeID(e), Partition: starling.PartitionID(p), Epoch: starling.Epoch(e), Range: whole}
}

func stop(p, e int, at int64) audit.Record {
	return audit.Record{Kind: audit.Stop, At: at, Partition: starling.PartitionID(p), Epoch: starling.Epoch(e), Range: whole}
}

func lease(k audit.Kind, node, p, e int, id, at int64) audit.Record {
	return audit.Record{Kind: k, At: at, Node: starling.NodeID(node), Partition: starling.PartitionID(p), Epoch: starling.Epoch(e), Lease: starling.LeaseID(id), Key: 5, Slots: 1}
}

// TestDoubleGrantIsCaught plants an owner that grants a nanosecond after its successor may.
func TestDoubleGrantIsCaught(t *testing.T) {
	good := []Life{
		{Name: "a", Records: []audit.Record{may(1, 1, 100, 200), lease(audit.Grant, 1, 1, 1, 1, 150), may(1, 1, 180, 300), lease(audit.Grant, 1, 1, 1, 2, 299)}},
		{Name: "b", Records: []audit.Record{may(1, 2, 300, 500), lease(audit.Grant, 2, 1, 2, 1, 301), stop(1, 2, 400)}},
		{Name: "c", Records: []audit.Record{may(1, 3, 400, 900)}, Died: 600},
		{Name: "d", Records: []audit.Record{may(1, 4, 600, 900), lease(audit.Grant, 4, 1, 4, 1, 700)}},
	}
	verdict := func(lives []Life) (int, int, Verdict) {
		tenures := Tenures(lives)
		return len(Overlaps(tenures)), len(Outside(lives, tenures)), Grants(lives, nil, time.Minute)
	}
	if o, out, v := verdict(good); o != 0 || out != 0 || !v.OK() || v.Operations != 8 {
		t.Fatalf("a history that is whole: %d overlaps, %d grants outside, %+v", o, out, v)
	}
	bad := append([]Life{}, good...)
	bad[0].Records = append(bad[0].Records[:3:3], may(1, 1, 190, 303), lease(audit.Grant, 1, 1, 1, 2, 302))
	o, out, v := verdict(bad)
	if o != 1 || out != 0 || len(v.Illegal) != 1 {
		t.Errorf("a double grant: %d overlaps, %d grants outside, %+v", o, out, v)
	}
	if got := Overlaps(Tenures(bad))[0]; got.Time != 3 || !strings.Contains(got.String(), "p1 at epoch 2") {
		t.Errorf("got %v", got)
	}
	bad[0].Records = append(bad[0].Records[:2:2], lease(audit.Grant, 1, 1, 1, 2, 302)) // its lease has ended
	if o, out, v := verdict(bad); o != 0 || out != 1 || len(v.Illegal) != 1 {
		t.Errorf("a grant after the lease: %d overlaps, %d grants outside, %+v", o, out, v)
	}
}

// TestGrantOfAReleasedKey: an owner that lives and has not heard that its partition was given to nobody may go on until
// another has it, and no longer.
func TestGrantOfAReleasedKey(t *testing.T) {
	lives := func(late int64) []Life {
		return []Life{{Name: "a", Records: []audit.Record{may(1, 1, 100, 500), lease(audit.Grant, 1, 1, 1, 1, 150), lease(audit.Grant, 1, 1, 1, 2, late)}},
			{Name: "b", Records: []audit.Record{may(1, 3, 300, 500), lease(audit.Grant, 3, 1, 3, 1, 310)}}}
	}
	released := []Sight{{Seen: 200, By: "c", Partition: 1, Epoch: 2}}
	if v := Grants(lives(250), released, time.Minute); !v.OK() {
		t.Errorf("a grant after the release was refused: %+v\n%s", v, TellKey(lives(250), released, v.Illegal[0]))
	}
	v := Grants(lives(305), released, time.Minute)
	if len(v.Illegal) != 1 || !strings.Contains(TellKey(lives(305), released, v.Illegal[0]), "305 {grant:true index:0 owner:1}") {
		t.Errorf("a grant under the next owner: %+v\n%s", v, TellKey(lives(305), released, "0000000000000005"))
	}
	other := append(released, Sight{Seen: 210, By: "c", Partition: 1, Epoch: 3, Owner: 3}) // seen before its owner says so
	if v := Grants(lives(250), other, time.Minute); len(v.Illegal) != 1 {
		t.Errorf("a grant after the map shows the next owner: %+v", v)
	}
}

func TestTenuresEndWithTheLeaseTheWordAndTheProcess(t *testing.T) {
	got := Tenures([]Life{{Name: "a", Died: 1000, Records: []audit.Record{
		may(1, 1, 100, 200), may(1, 1, 150, 250), may(1, 1, 300, 400), stop(1, 1, 350), may(1, 1, 900, 2000), may(2, 1, 1100, 2000)}}})
	want := [][2]int64{{100, 250}, {300, 350}, {900, 1000}}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i, w := range want {
		if got[i].From != w[0] || got[i].To != w[1] {
			t.Errorf("tenure %d: got %v, want %v", i, got[i], w)
		}
	}
}

func TestStaleAcceptanceIsCaught(t *testing.T) {
	fence := func(e int, at int64) audit.Record {
		return audit.Record{Kind: audit.Fence, At: at, Partition: 1, Epoch: starling.Epoch(e), Since: starling.Epoch(e)}
	}
	enter, leave := func(e int, id, at int64) audit.Record { return lease(audit.Enter, 1, 1, e, id, at) }, func(e int, id, at int64) audit.Record {
		return lease(audit.Leave, 1, 1, e, id, at)
	}
	for _, c := range []struct {
		name               string
		records            []audit.Record
		outlived, breaches int
	}{
		{"idle for less than its time", []audit.Record{enter(1, 1, 10), leave(1, 1, 20), fence(2, 30), enter(1, 1, 119), leave(1, 1, 121)}, 1, 0},
		{"idle for its time", []audit.Record{enter(1, 1, 10), leave(1, 1, 20), fence(2, 30), enter(1, 1, 120)}, 0, 1},
		{"never seen", []audit.Record{fence(2, 30), enter(1, 1, 31)}, 0, 1},
		{"shown before the fence", []audit.Record{fence(2, 30), enter(1, 1, 30)}, 0, 0},
		{"of the new owner", []audit.Record{fence(2, 30), enter(2, 1, 31)}, 0, 0},
		{"two calls in one slot", []audit.Record{enter(2, 1, 31), enter(2, 2, 32)}, 0, 1},
		{"the second call was refused", []audit.Record{enter(2, 1, 31), enter(2, 2, 32), lease(audit.Refuse, 1, 1, 2, 2, 33)}, 0, 0},
	} {
		got := Accepted([]Life{{Name: "h", Records: c.records}}, 100)
		if len(got.Breaches) != c.breaches || got.Outlived != c.outlived {
			t.Errorf("%s: got %+v, want %d outlived, %d breaches", c.name, got, c.outlived, c.breaches)
		}
	}
}

func TestMapsThatDisagreeAreCaught(t *testing.T) {
	low, high := starling.Range{Hi: 10}, starling.Range{Lo: 10}
	good := []Sight{{By: "a", Partition: 1, Epoch: 1, Owner: 1}, {By: "b", Partition: 1, Epoch: 1, Owner: 1},
		{By: "a", Partition: 1, Epoch: 2, Owner: 1, Range: low}, {By: "a", Partition: 2, Epoch: 2, Owner: 1, Range: high}}
	if wrong := Maps(good); len(wrong) != 0 {
		t.Errorf("a map that split: %v", wrong)
	}
	for name, s := range map[string]Sight{
		"two owners": {By: "b", Partition: 1, Epoch: 2, Owner: 2, Range: low}, "two ranges": {By: "b", Partition: 2, Epoch: 2, Owner: 1},
		"a step back": {By: "a", Partition: 1, Epoch: 1, Owner: 1},
	} {
		if wrong := Maps(append(good[:4:4], s)); len(wrong) == 0 {
			t.Errorf("%s went unnoticed", name)
		}
	}
}

// TestStaleReadIsCaught plants a read of a value that was deleted before it began.
func TestStaleReadIsCaught(t *testing.T) {
	calls := []Call{
		{Name: "x", Act: Create, Value: 1, Called: 1, Returned: 5},
		{Name: "x", Act: Create, Value: 2, Called: 2, Returned: 6, Conflicted: true},
		{Name: "x", Act: Read, Value: 1, Called: 7, Returned: 8},
		{Name: "x", Act: Delete, Called: 9, Returned: 10},
		{Name: "x", Act: Create, Value: 3, Called: 11, Returned: 99, Unknown: true},
		{Name: "x", Act: Read, Called: 12, Returned: 13},
		{Name: "x", Act: Read, Value: 3, Called: 14, Returned: 15},
		{Name: "y", Act: Read, Called: 1, Returned: 2},
		{Name: "y", Act: Read, Value: 7, Called: 1, Returned: 2, Unknown: true},
	}
	if v := Control(calls, time.Minute); !v.OK() || v.Keys != 2 || v.Operations != 8 {
		t.Fatalf("a history that is whole: %+v", v)
	}
	stale := append(calls, Call{Name: "x", Act: Read, Value: 1, Called: 11, Returned: 12})
	if v := Control(stale, time.Minute); len(v.Illegal) != 1 || v.Illegal[0] != "x" {
		t.Errorf("a stale read: %+v", v)
	}
	lost := append(calls[:3:3], Call{Name: "x", Act: Read, Called: 9, Returned: 10})
	if v := Control(lost, time.Minute); len(v.Illegal) != 1 {
		t.Errorf("a lost write: %+v", v)
	}
	if !strings.Contains(Tell(calls, "y"), "Value:7") {
		t.Error("the history cannot be told")
	}
}

// TestManyLostAnswersAreJudged: a name at which dozens of answers were lost is judged in time, and a breach among them is
// caught. Found with a seed at which one name could not be judged.
func TestManyLostAnswersAreJudged(t *testing.T) {
	var calls []Call
	at := int64(0)
	add := func(c Call, lost bool) {
		c.Name, c.Called, c.Returned, c.Unknown = "x", at, at+1, lost
		if lost {
			c.Returned = 1 << 40
		}
		at += 2
		calls = append(calls, c)
	}
	for i := range 30 {
		add(Call{Act: Delete}, true)
		add(Call{Act: Create, Value: 100 + i}, true)
		add(Call{Act: Create, Value: 200 + i}, i%3 > 0)
		if i%3 == 0 { // after a lost deletion was done the name is free, and is taken
			add(Call{Act: Read, Value: 200 + i}, false)
			add(Call{Act: Delete}, false)
			add(Call{Act: Read}, false)
		}
	}
	if v := Control(calls, 20*time.Second); !v.OK() {
		t.Errorf("a history that is whole: %+v", v)
	}
	add(Call{Act: Delete}, false)
	add(Call{Act: Read, Value: 200}, false) // deleted long ago, and nobody made it again
	if v := Control(calls, 20*time.Second); len(v.Illegal) != 1 {
		t.Errorf("a value that came back: %+v", v)
	}
}
