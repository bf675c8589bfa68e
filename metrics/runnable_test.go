package metrics

import "testing"

func TestRunnableThreadsAreReadWithoutTheReader(t *testing.T) {
	for text, want := range map[string]int{
		"4.29 4.17 3.75 27/385 17240\n": 26, "0.00 0.00 0.00 1/90 7\n": 0, "0.00 0.00 0.00 0/90 7\n": 0, "": 0, "1 2 3 x 4": 0,
	} {
		if got := runnable([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
