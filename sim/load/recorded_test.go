package load

import (
	"io"
	"slices"
	"testing"
	"time"

	"starling"
	"starling/store/trace"
)

func TestRecordedCallsAreALoad(t *testing.T) {
	rows := []trace.Call{ // in the order of their ends
		{Start: 5_000_000, Account: "a", Function: "f", Version: 1, Run: 3000, MemoryMiB: 256, Slots: 2},
		{Start: 4_000_000, Account: "a", Function: "g", Version: 1, Run: 9000, Cold: true, Begin: 20_000, Init: 100_000},
		{Start: 6_000_000, Account: "a", Function: "f", Version: 1, Run: 5000, MemoryMiB: 256, Slots: 2},
		{Start: 7_000_000, Account: "a", Function: "f", Version: 1, Outcome: "overloaded", MemoryMiB: 256, Slots: 2},
		{Start: 8_000_000, Account: "a", Function: "f", Version: 2, Run: 1},
	}
	next := func() func() (trace.Call, error) {
		i := 0
		return func() (trace.Call, error) {
			if i == len(rows) {
				return trace.Call{}, io.EOF
			}
			i++
			return rows[i-1], nil
		}
	}
	cfg := RecordedConfig{CallsMax: 5, Start: time.Second, Init: 2 * time.Second}
	l, err := Recorded(cfg, next())
	if err != nil {
		t.Fatal(err)
	}
	ms := time.Millisecond
	wantFunctions := []Function{{"a", "f@1", 256, 2, time.Second, 2 * time.Second}, {"a", "g@1", 1, 1, 20 * ms, 100 * ms}, {"a", "f@2", 1, 1, time.Second, 2 * time.Second}}
	if got := l.Functions(); !slices.Equal(got, wantFunctions) {
		t.Errorf("functions %+v", got)
	}
	want := []Call{{0, 1, 9 * ms}, {time.Second, 0, 3 * ms}, {2 * time.Second, 0, 5 * ms}, {3 * time.Second, 0, 4 * ms}, {4 * time.Second, 2, time.Microsecond}}
	if got := all(l); !slices.Equal(got, want) {
		t.Errorf("calls %+v, want %+v", got, want)
	}
	cfg.CallsMax = 4
	if _, err := Recorded(cfg, next()); starling.KindOf(err) != starling.TooLarge {
		t.Errorf("more than asked for: %v", err)
	}
	rows = nil
	if _, err := Recorded(cfg, next()); starling.KindOf(err) != starling.NotFound {
		t.Errorf("nothing recorded: %v", err)
	}
}
