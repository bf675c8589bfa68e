package handover

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"starling"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// TestTranscripts runs testdata: each command is a kind of change, its lines the events.
func TestTranscripts(t *testing.T) {
	datadriven.RunTest(t, "testdata/source", func(t *testing.T, d *datadriven.TestData) string {
		kind, ok := map[string]partmap.ChangeKind{"move": partmap.Move, "split": partmap.Split, "merge": partmap.Merge}[d.Cmd]
		if !ok {
			d.Fatalf(t, "unknown change %q", d.Cmd)
		}
		s := New(partmap.Change{Kind: kind})
		var out strings.Builder
		for _, word := range strings.Fields("begin " + d.Input) {
			fmt.Fprintf(&out, "%s:", word)
			for _, e := range s.Step(event(t, word)) {
				fmt.Fprintf(&out, " %s", e)
			}
			out.WriteByte('\n')
		}
		return out.String()
	})
}

func event(t *testing.T, word string) Event {
	t.Helper()
	for e := Begin; e <= Refused; e++ {
		if e.String() == word {
			return e
		}
	}
	t.Fatalf("no event is called %q", word)
	return 0
}

// TestWhateverHappens tries every order of six events: what is frozen is thawed or changed, never after a proposal whose
// outcome is open, and every order has one report.
func TestWhateverHappens(t *testing.T) {
	for _, kind := range []partmap.ChangeKind{partmap.Move, partmap.Split, partmap.Merge} {
		walk(t, New(partmap.Change{Kind: kind}), nil, 6, state{})
	}
}

// state is what the effects so far have done.
type state struct{ frozen, open, over bool }

func walk(t *testing.T, s *Source, trail []Event, left int, at state) {
	if left == 0 {
		return
	}
	for ev := Begin; ev <= Refused; ev++ {
		next, now := *s, at
		trail := append(trail[:len(trail):len(trail)], ev)
		if ev == Applied || ev == Lost {
			now.open = false // for certain
		}
		for _, e := range next.Step(ev) {
			if now.over {
				t.Fatalf("%v: %v after the report", trail, e)
			}
			switch e {
			case Freeze:
				now.frozen = true
			case Propose, Settle:
				if !now.frozen {
					t.Fatalf("%v: proposed while it grants", trail)
				}
				now.open = true
			case Thaw:
				if now.open {
					t.Fatalf("%v: thawed while the change may yet come true", trail)
				}
				now.frozen = false
			case Done, Fail:
				if now.open || e == Fail && now.frozen {
					t.Fatalf("%v: reported %v and left it frozen", trail, e)
				}
				now.over = true
			}
		}
		walk(t, &next, trail, left-1, now)
	}
}

func TestRoute(t *testing.T) {
	low := partmap.Partition{ID: 1, Range: starling.Range{Hi: 100}}
	high := partmap.Partition{ID: 2, Range: starling.Range{Lo: 100}}
	both := []partmap.Partition{low, high}
	mine, other := starling.InstanceID{Seq: 1}, starling.InstanceID{Seq: 2}
	keys := func(id starling.InstanceID) (starling.Key64, bool) { return 150, id == mine }
	for _, c := range []struct {
		m    wire.Message
		want []starling.PartitionID
	}{
		{&wire.Acquire{Key: 99}, []starling.PartitionID{1}},
		{&wire.Relay{Body: &wire.Acquire{Key: 100}}, []starling.PartitionID{2}},
		{&wire.Release{}, []starling.PartitionID{1, 2}},
		{&wire.Cancel{}, []starling.PartitionID{1, 2}},
		{&wire.Renew{}, []starling.PartitionID{1}},
		{&wire.Started{Instance: mine}, []starling.PartitionID{2}},
		{&wire.Started{Instance: other}, []starling.PartitionID{1}},
		{&wire.Exited{Instance: mine}, []starling.PartitionID{2}},
		{&wire.Fenced{}, []starling.PartitionID{1}},
		{&wire.Lend{}, []starling.PartitionID{1}},
	} {
		var got []starling.PartitionID
		for _, p := range Route(1, c.m, both, keys) {
			got = append(got, p.ID)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%T %+v goes to %v, want %v", c.m, c.m, got, c.want)
		}
	}
	if got := Route(3, &wire.Renew{}, both[:1], keys); len(got) != 1 {
		t.Error("the only successor gets everything")
	}
	if got := Route(3, &wire.Renew{}, both, keys); len(got) != 0 {
		t.Errorf("a renewal to a partition that is no more goes to %v of two", got)
	}
}
