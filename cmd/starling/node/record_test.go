package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"starling"
	"starling/store/trace"
)

type dispatcher func() (starling.Outcome, starling.Phases, error)

func (d dispatcher) Invoke(context.Context, *starling.Version, *starling.Invocation, starling.Sink) (starling.Outcome, starling.Phases, error) {
	return d()
}

// What the frontend is told is what is in the trace, for a warm call, a cold one and those that failed.
func TestRecordedCalls(t *testing.T) {
	cfg := trace.DefaultConfig()
	cfg.Dir, cfg.Log = t.TempDir(), slog.New(slog.DiscardHandler)
	r := trace.New(cfg)
	if err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := &starling.Version{ID: 9, Function: starling.FunctionRef{Account: "a", Name: "f"}, Config: starling.Config{MemoryMiB: 256}}
	ms := time.Millisecond
	want := []trace.Call{
		{Run: 2000, Outcome: "ok"},
		{Run: 2000, Outcome: "ok", Cold: true, Begin: 30_000, Init: 40_000, PeakMiB: 77},
		{Outcome: "unhandled"},
		{Outcome: starling.Overloaded.String()},
	}
	answers := []dispatcher{
		func() (starling.Outcome, starling.Phases, error) {
			return starling.Outcome{Run: 2 * ms}, starling.Phases{}, nil
		},
		func() (starling.Outcome, starling.Phases, error) {
			return starling.Outcome{Run: 2 * ms, MemoryMax: 77 << 20}, starling.Phases{Place: 10 * ms, Start: 20 * ms, Init: 40 * ms}, nil
		},
		func() (starling.Outcome, starling.Phases, error) {
			return starling.Outcome{Status: starling.Unhandled}, starling.Phases{}, nil
		},
		func() (starling.Outcome, starling.Phases, error) {
			return starling.Outcome{}, starling.Phases{}, starling.Errorf(starling.Overloaded, "invoke", "full")
		},
	}
	began := time.Now()
	for _, d := range answers {
		recorded{d, r}.Invoke(t.Context(), v, &starling.Invocation{}, nil)
	}
	r.Close()
	reader, err := trace.OpenReader(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for i, w := range want {
		got, err := reader.Next()
		if err != nil {
			t.Fatal(err)
		}
		if at := time.UnixMicro(got.Start); at.Before(began.Add(-ms)) || at.After(time.Now()) || got.Wait < 0 || got.Wait > 10_000_000 {
			t.Errorf("call %d: at %s, waited %d µs", i, at, got.Wait)
		}
		w.Start, w.Wait = got.Start, got.Wait
		w.Account, w.Function, w.Version, w.MemoryMiB, w.Slots = "a", "f", 9, 256, 1
		if got != w {
			t.Errorf("call %d:\n got %+v\nwant %+v", i, got, w)
		}
	}
}
