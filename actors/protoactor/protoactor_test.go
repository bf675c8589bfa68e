package protoactor

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"starling"
)

func TestActorHandlesInOrderAndEndsWithItsMailbox(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	var got []int
	r, err := s.Spawn("a", 1000, func(m any) { got = append(got, m.(int)) }, func(any) { t.Error("failed") })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Spawn("a", 1, nil, nil); starling.KindOf(err) != starling.Conflict {
		t.Errorf("second actor of one name: %v", err)
	}
	for i := range 500 {
		if !r.Tell(i, 1) {
			t.Fatal("refused with room in the mailbox")
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if len(got) != 500 || got[499] != 499 {
		t.Errorf("handled %d messages before the end, want 500 in order", len(got))
	}
	if r.Tell(1, 1) {
		t.Error("a stopped actor takes messages")
	}
	if _, err := s.Spawn("b", 1, nil, nil); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("spawn after close: %v", err)
	}
}

func TestFullMailboxRefuses(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	defer s.Close()
	gate := make(chan struct{})
	r, err := s.Spawn("a", 10, func(any) { <-gate }, func(any) {})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Tell("x", 6) || !r.Tell("y", 4) || r.Tell("z", 1) {
		t.Error("the mailbox does not hold exactly 10 events")
	}
	close(gate)
	for deadline := time.Now().Add(5 * time.Second); r.Waiting() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d events still wait", r.Waiting())
		}
		time.Sleep(time.Millisecond)
	}
	if !r.Tell("z", 10) {
		t.Error("a mailbox that was emptied refuses")
	}
}

func TestPanicEndsTheActorOnly(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler))
	defer s.Close()
	failed := make(chan any, 1)
	handled := 0
	bad, _ := s.Spawn("bad", 10, func(m any) {
		if handled++; m == "bomb" {
			panic("boom")
		}
	}, func(c any) { failed <- c })
	var wg sync.WaitGroup
	wg.Add(1)
	good, _ := s.Spawn("good", 10, func(any) { wg.Done() }, func(any) {})
	bad.Tell("bomb", 1)
	bad.Tell("after", 1)
	if c := <-failed; c != "boom" {
		t.Errorf("cause %v", c)
	}
	<-bad.Done()
	if handled != 1 {
		t.Errorf("handled %d messages, want none after the failure", handled)
	}
	good.Tell(1, 1)
	wg.Wait()
	if _, err := s.Spawn("bad", 10, func(any) {}, func(any) {}); err != nil {
		t.Errorf("the name is not free after the end: %v", err)
	}
}

func BenchmarkTell(b *testing.B) {
	s := New(slog.New(slog.DiscardHandler))
	defer s.Close()
	r, _ := s.Spawn("a", starling.MailboxMax, func(any) {}, func(any) {})
	b.ReportAllocs()
	msg := &struct{}{}
	for b.Loop() {
		for !r.Tell(msg, 1) {
		}
	}
}
