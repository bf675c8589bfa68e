package partition

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/host/guard"
	"starling/actors/wire"
	"starling/cluster"
	"starling/cluster/partmap"
)

// A proposer is a way to the manager on which only proposals go.
type proposer func(c partmap.Change) (known bool, err error)

func (proposer) Orders() <-chan cluster.Order { return nil }
func (proposer) OrderDone(uint64, error)      {}
func (p proposer) ProposeChange(_ context.Context, c partmap.Change) (known bool, err error) {
	return p(c)
}

// A moving is a cluster with one partition, which lives on node 1 and is to move to node 2.
type moving struct {
	*testCluster
	keeper  *Keeper // of node 1
	front   *frontend
	propose func(m *partmap.Map) // carries out what node 1 proposes: m is the map that it makes
}

var toNodeTwo = cluster.Order{Kind: partmap.Move, Partition: 1, Epoch: 1, To: 2}

// whileMoving runs f with a partition that grants.
func whileMoving(t *testing.T, f func(c *moving)) {
	synctest.Test(t, func(t *testing.T) {
		c := &moving{testCluster: newCluster(t)}
		defer c.close()
		for _, n := range members {
			c.node(n.ID, n.Roles)
		}
		h := &strictHost{host: newHost(c.testCluster, 3), tenures: map[starling.InstanceID]*guard.Tenure{}, keys: map[starling.InstanceID]starling.Key64{},
			owners: map[starling.InstanceID]wire.Address{}}
		c.front = newFrontend(c.testCluster, 4)
		control := proposer(func(ch partmap.Change) (bool, error) {
			m := oneOwner(1, 1)
			if err := m.Apply(ch); err != nil {
				return true, err
			}
			c.propose(m)
			return true, nil
		})
		for _, id := range []starling.NodeID{2, 1} {
			c.topos[id].lease(time.Now().Add(time.Hour))
			c.keeper = c.testCluster.keeper(id, func(cfg *Config) { cfg.Control, cfg.Endpoint = control, c.ends[id] })
			c.hubs[id].Bind(actors.Parts{Partitions: c.keeper})
		}
		c.hubs[3].Bind(actors.Parts{Host: h})
		c.hubs[4].Bind(actors.Parts{Frontend: c.front})
		for _, e := range c.ends {
			e.Listen()
		}
		c.publish(oneOwner(1, 1), append(c.reachable(), starling.Node{ID: 9, Roles: starling.RoleFrontend}))
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		if _, err := c.acquire(); err != nil {
			t.Fatal(err)
		}
		f(c)
	})
}

// acquire asks for a slot for long enough that a scheduler which was made anew would grant one.
func (c *moving) acquire() (starling.Lease, error) {
	return c.front.acquireAt(keyOfVersion(1, 0), 1, 3*time.Second)
}

// reachable returns the members and their addresses.
func (c *moving) reachable() []starling.Node {
	var nodes []starling.Node
	for _, n := range members {
		n.Addr = c.addrs[n.ID]
		nodes = append(nodes, n)
	}
	return nodes
}

// fail has the actor of the partition end by a fault.
func (c *moving) fail() {
	a := (*c.keeper.actors.Load())[1]
	answers := make(chan frozen)
	close(answers)
	a.ref.Tell(freeze{to: answers}, 1) // it panics when it answers
	<-a.ref.Done()
}

// TestAnActorThatFailsWhileItIsHandedOver: an actor fails after its state was taken, and the map changes only after one made
// anew would long have granted. Nobody grants in the old epoch, for the next owner would not know of it.
func TestAnActorThatFailsWhileItIsHandedOver(t *testing.T) {
	whileMoving(t, func(c *moving) {
		c.propose = func(m *partmap.Map) {
			c.fail()
			c.publish(oneOwner(1, 1), c.reachable()) // a node has died, and the actor cannot be told
			if l, err := c.acquire(); err == nil {
				t.Errorf("granted after the state was taken: %+v", l)
			}
			c.publish(m, c.reachable())
		}
		if err := c.keeper.change(context.Background(), toNodeTwo); err != nil {
			t.Fatal(err)
		}
		if l, err := c.acquire(); err != nil || l.Epoch != 2 {
			t.Fatalf("after the move: %+v, %v", l, err)
		}
	})
}

// TestAnActorThatFailsBeforeItIsMoved: a change that was not proposed does not keep an actor from being made anew.
func TestAnActorThatFailsBeforeItIsMoved(t *testing.T) {
	whileMoving(t, func(c *moving) {
		c.fail()
		if err := c.keeper.change(context.Background(), toNodeTwo); starling.KindOf(err) != starling.Overloaded {
			t.Fatalf("the state of an actor that has failed was taken: %v", err)
		}
		if l, err := c.acquire(); err != nil || l.Epoch != 1 {
			t.Fatalf("after the move was given up: %+v, %v", l, err)
		}
	})
}

// TestAnOrderComesAgainAfterTheChange: the partition was moved, its former owner did not hear of the map yet, and has the same
// order again. It gives that one up, and does not go on with what the first has frozen.
func TestAnOrderComesAgainAfterTheChange(t *testing.T) {
	whileMoving(t, func(c *moving) {
		var after *partmap.Map
		c.propose = func(m *partmap.Map) { after = m }
		if err := c.keeper.change(context.Background(), toNodeTwo); err != nil {
			t.Fatal(err)
		}
		if err := c.keeper.change(context.Background(), toNodeTwo); starling.KindOf(err) != starling.Conflict {
			t.Fatalf("the order came again: %v", err)
		}
		if l, err := c.acquire(); err == nil {
			t.Errorf("granted after the partition was moved: %+v", l)
		}
		c.publish(after, c.reachable())
		if l, err := c.acquire(); err != nil || l.Epoch != 2 {
			t.Fatalf("after the map was heard: %+v, %v", l, err)
		}
	})
}
