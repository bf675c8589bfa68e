package frontend

import (
	"testing"
	"time"
)

func TestRunnableThreadsAreReadWithoutTheReader(t *testing.T) {
	for text, want := range map[string]int{
		"4.29 4.17 3.75 27/385 17240\n": 26, "0.00 0.00 0.00 1/90 7\n": 0, "0.00 0.00 0.00 0/90 7\n": 0, "": 0, "1 2 3 x 4": 0,
	} {
		if got := runnable([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// TestALimitLetsInEvenly: of calls that come all at once only those of burstTime pass, and over a second as many as the
// interval says.
func TestALimitLetsInEvenly(t *testing.T) {
	l := &limit{interval: int64(time.Millisecond)}
	burst, all := 0, 0
	for range 1000 {
		if l.take(0) {
			burst++
		}
	}
	for now := range int64(10_000) {
		if l.take(now * int64(100*time.Microsecond)) {
			all++
		}
	}
	if want := int(burstTime/time.Millisecond) + 1; burst != want {
		t.Errorf("%d calls at one instant, want %d", burst, want)
	}
	if all += burst; all < 1000 || all > 1000+burst {
		t.Errorf("%d calls in a second, want 1000 and a burst of %d", all, burst)
	}
}
