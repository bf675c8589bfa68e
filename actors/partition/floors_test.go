package partition

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors"
)

// floors is a list of provisioned versions that changes.
type floors struct {
	mu   sync.Mutex // a leaf
	list []starling.Version
}

func (f *floors) set(list ...starling.Version) { f.mu.Lock(); f.list = list; f.mu.Unlock() }

func (f *floors) Provisioned(context.Context) ([]starling.Version, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]starling.Version(nil), f.list...), nil
}

// TestFloorIsKeptWithoutACall: instances that an owner wants are there before any call and after a take-over, and go
// with the wish.
func TestFloorIsKeptWithoutACall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		f := &floors{}
		keepers := map[starling.NodeID]*Keeper{}
		for id, role := range map[starling.NodeID]starling.Roles{1: starling.RoleScheduler, 2: starling.RoleScheduler, 3: starling.RoleHost} {
			c.node(id, role)
		}
		for id := range starling.NodeID(2) {
			id++
			c.topos[id].lease(time.Now().Add(time.Hour))
			keepers[id] = c.keeper(id, func(cfg *Config) { cfg.Floors = f })
			c.hubs[id].Bind(actors.Parts{Partitions: keepers[id]})
		}
		h := newHost(c, 3)
		c.hubs[3].Bind(actors.Parts{Host: h})
		for _, e := range c.ends {
			e.Listen()
		}
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		f.set(starling.Version{ID: 7, Function: starling.FunctionRef{Account: "acme", Name: "f"},
			Config: starling.Config{Runtime: starling.Provided, Provisioned: 3}.WithDefaults()})
		time.Sleep(4 * time.Second)
		check := func(id starling.NodeID, when string, floor int) {
			t.Helper()
			list := keepers[id].Functions(context.Background(), 10)
			if len(list) != 1 || list[0].Floor != floor || floor > 0 && list[0].Ready != floor {
				t.Errorf("%s: %+v, want a floor of %d, ready", when, list, floor)
			}
		}
		check(1, "after the wish", 3)
		c.publish(oneOwner(2, 2), members)
		time.Sleep(4 * time.Second)
		check(2, "after a take-over", 3)
		f.set()
		time.Sleep(4 * time.Second)
		check(2, "without the wish", 0)
		time.Sleep(30 * time.Minute)
		if n := keepers[2].Status()[0].Instances; n != 0 {
			t.Errorf("%d instances half an hour after the wish was withdrawn", n)
		}
	})
}
