package partition

import (
	"testing"
	"time"

	"starling"
)

func TestPlacementsAreForgotten(t *testing.T) {
	var p placements
	at := time.Unix(1_000_000, 0)
	if p.has(1, 1, at) {
		t.Error("nothing was placed")
	}
	p.note(1, 1, at)
	for _, c := range []struct {
		version starling.VersionID
		host    starling.NodeID
		after   time.Duration
		want    bool
	}{{1, 1, 0, true}, {1, 2, 0, false}, {2, 1, 0, false}, {1, 1, placedTime, true}, {1, 1, 3 * placedTime, false}} {
		if got := p.has(c.version, c.host, at.Add(c.after)); got != c.want {
			t.Errorf("version %d on host %d after %v: %v", c.version, c.host, c.after, got)
		}
	}
}

func TestPlacementsAreBounded(t *testing.T) {
	var p placements
	at := time.Unix(1_000_000, 0)
	for v := range 5 * placedMax {
		p.note(starling.VersionID(v+1), 1, at)
	}
	if n := len(p.now) + len(p.before); n > 2*placedMax {
		t.Errorf("%d are remembered", n)
	}
	if !p.has(5*placedMax, 1, at) || p.has(1, 1, at) {
		t.Error("the newest was forgotten, or the oldest not")
	}
}
