package partition

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"starling/actors/wire"
	"starling/internal/audit"
)

// Found by network faults, seed 1: a node that was cut off until its lease had run out, and its partitions were another's,
// heard of the new map and of its new lease at once. Before the keeper had ended the actor of the old epoch, that granted.
func TestLateLeaseIsNotForAPassedEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, _ := three(t, 2*time.Second)
		defer c.close()
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		l, err := f.acquire(7, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		f.release(l)
		time.Sleep(3 * time.Second)
		topo := c.topos[1]
		topo.mu.Lock() // the view has the map, and the keeper has not looked at it yet
		topo.m, topo.until = oneOwner(2, 2), time.Now().Add(time.Hour)
		topo.mu.Unlock()
		if g, ok := f.ask(1, 1, 7, 250*time.Millisecond).(*wire.Grant); ok {
			t.Errorf("granted %+v in an epoch that has passed", g.Lease)
		}
	})
}

// TestAuditTellsWhenGrantingEnds judges the file of a keeper whose partition moves away.
func TestAuditTellsWhenGrantingEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	synctest.Test(t, func(t *testing.T) {
		log, err := audit.Open(path, 1)
		if err != nil {
			t.Fatal(err)
		}
		c, h, f, keepers := three(t, time.Hour)
		keepers[1].cfg.Audit = log
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		if _, err := f.acquire(7, time.Second); err != nil {
			t.Fatal(err)
		}
		c.publish(oneOwner(2, 2), members)
		time.Sleep(50 * time.Millisecond)
		c.close()
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	})
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	records, err := audit.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []audit.Kind
	for _, r := range records {
		kinds = append(kinds, r.Kind)
		if r.Node != 1 || r.Partition != 1 || r.Epoch != 1 {
			t.Errorf("%+v is not of this owner", r)
		}
	}
	if len(kinds) < 3 || kinds[0] != audit.May || kinds[len(kinds)-1] != audit.Stop || kinds[len(kinds)-2] != audit.Grant {
		t.Errorf("got %v, want may, grants and stop", kinds)
	}
}
