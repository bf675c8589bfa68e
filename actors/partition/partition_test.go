package partition

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/actors"
	"starling/actors/wire"
	"starling/cluster/partmap"
)

// three is a cluster of two schedulers (1, 2), a host (3) and a frontend (4).
func three(t *testing.T, lease time.Duration) (*testCluster, *host, *frontend, map[starling.NodeID]*Keeper) {
	c := newCluster(t)
	c.node(1, starling.RoleScheduler)
	c.node(2, starling.RoleScheduler)
	c.node(3, starling.RoleHost)
	c.node(4, starling.RoleFrontend)
	h, f := newHost(c, 3), newFrontend(c, 4)
	keepers := map[starling.NodeID]*Keeper{}
	for _, id := range []starling.NodeID{1, 2} {
		c.topos[id].lease(time.Now().Add(lease))
		keepers[id] = c.keeper(id, nil)
		c.hubs[id].Bind(actors.Parts{Partitions: keepers[id]})
	}
	c.hubs[3].Bind(actors.Parts{Host: h})
	c.hubs[4].Bind(actors.Parts{Frontend: f})
	for _, e := range c.ends {
		e.Listen()
	}
	return c, h, f, keepers
}

var members = []starling.Node{{ID: 1, Roles: starling.RoleScheduler}, {ID: 2, Roles: starling.RoleScheduler},
	{ID: 3, Roles: starling.RoleHost}, {ID: 4, Roles: starling.RoleFrontend}}

// without returns the members but one.
func without(id starling.NodeID) (out []starling.Node) {
	for _, n := range members {
		if n.ID != id {
			out = append(out, n)
		}
	}
	return out
}

func TestOwnerGrantsAndOthersSayMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, keepers := three(t, time.Hour)
		defer c.close()
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)
		l, err := f.acquire(7, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Phases.Cold() || l.Epoch != 1 || l.Host != 3 || !h.begin(l) {
			t.Errorf("lease %+v is not a cold one of epoch 1 on host 3", l)
		}
		h.end(l)
		f.release(l)
		began := time.Now()
		if l, err = f.acquire(7, time.Second); err != nil || l.Phases.Cold() {
			t.Errorf("second call: %+v, %v, want a warm one", l, err)
		}
		if d := time.Since(began); d > 10*time.Millisecond {
			t.Errorf("a warm acquire took %v", d)
		}
		for _, to := range []starling.NodeID{2} {
			r, ok := f.ask(to, 1, 7, time.Second).(*wire.Reject)
			if !ok || r.Reject != starling.Moved {
				t.Errorf("node %d, which owns nothing, answered %+v", to, r)
			}
		}
		if r, ok := f.ask(1, 1, 100, time.Second).(*wire.Reject); !ok || r.Reject != starling.NotFound {
			t.Errorf("a version that does not exist: %+v", r)
		}
		time.Sleep(2 * beat)
		st := keepers[1].Status()
		if len(st) != 1 || st[0].Owner != 1 || st[0].Epoch != 1 || st[0].Functions != 1 || st[0].Instances != 1 || st[0].Rate <= 0 {
			t.Errorf("status %+v", st)
		}
		if len(keepers[2].Status()) != 0 {
			t.Errorf("node 2 says it owns %+v", keepers[2].Status())
		}
	})
}

// TestOwnerDies: the owner is cut off under load. Its node lease ends, the map names another node, which fences the
// host and grants; at no instant did both grant, and no slot was used twice.
func TestOwnerDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, keepers := three(t, starling.NodeLease)
		defer c.close()
		c.topos[2].lease(time.Now().Add(time.Hour))
		near := newFrontend(c, 1) // on the node that will be cut off: it can reach the old owner only
		c.hubs[1].Bind(actors.Parts{Partitions: keepers[1], Frontend: near})
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1, 2)

		var stop atomic.Bool
		var wg sync.WaitGroup
		var served, worst atomic.Int64
		worker := func(f *frontend, must bool) {
			for !stop.Load() {
				began := time.Now()
				l, err := f.acquire(starling.VersionID(1+served.Load()%3), 5*time.Second)
				if err != nil {
					if must {
						t.Error(err)
					}
					continue
				}
				if h.begin(l) {
					time.Sleep(3 * time.Millisecond)
					h.end(l)
				} else {
					time.Sleep(time.Millisecond)
				}
				if f.id == 4 {
					served.Add(1)
					if d := int64(time.Since(began)); d > worst.Load() {
						worst.Store(d)
					}
				}
				f.release(l)
			}
		}
		for range 4 {
			wg.Go(func() { worker(f, true) })
		}
		wg.Go(func() { worker(near, false) })

		for range 10 {
			time.Sleep(100 * time.Millisecond)
			c.topos[1].lease(time.Now().Add(starling.NodeLease))
		}
		before := served.Load()
		cutAt := time.Now()
		c.isolate(1, true)
		time.Sleep(starling.NodeLease) // the manager waits the whole lease
		c.publish(oneOwner(2, 2), without(1), 2, 3, 4)
		time.Sleep(2 * time.Second)
		stop.Store(true)
		wg.Wait()

		if served.Load() <= before+100 {
			t.Errorf("%d calls served before, %d after the take-over", before, served.Load()-before)
		}
		for _, o := range h.oops {
			t.Errorf("slot used twice: %s", o)
		}
		lastOld, firstNew := time.Time{}, time.Time{}
		for _, g := range append(near.grants, f.grants...) {
			if g.epoch == 1 && g.at.After(lastOld) {
				lastOld = g.at
			}
			if g.epoch == 2 && (firstNew.IsZero() || g.at.Before(firstNew)) {
				firstNew = g.at
			}
		}
		if !lastOld.Before(firstNew) {
			t.Errorf("the old owner granted %v after the new one began", lastOld.Sub(firstNew))
		}
		if lastOld.Before(cutAt) {
			t.Error("the old owner granted nothing after the cut: the overlap was not tested")
		}
		t.Logf("served %d calls before and %d after; old owner's last grant %v, new owner's first %v after the cut; slowest call %v",
			before, served.Load()-before, lastOld.Sub(cutAt), firstNew.Sub(cutAt), time.Duration(worst.Load()))
	})
}

func TestMovedPartitionsWaitingCallsAreToldSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, f, _ := three(t, time.Hour)
		defer c.close()
		c.publish(oneOwner(1, 1), members) // the host never reports room: calls wait
		time.Sleep(50 * time.Millisecond)
		time.AfterFunc(100*time.Millisecond, func() { c.publish(oneOwner(2, 2), members) })
		r, ok := f.ask(1, 1, 1, 5*time.Second).(*wire.Reject)
		if !ok || r.Reject != starling.Moved {
			t.Errorf("a waiting call of a partition that moved: %+v", r)
		}
	})
}

// registry counts the sets that live.
type registry struct {
	mu   sync.Mutex
	sets map[*metrics.Set]bool
}

func (r *registry) Add(s *metrics.Set)    { r.mu.Lock(); r.sets[s] = true; r.mu.Unlock() }
func (r *registry) Remove(s *metrics.Set) { r.mu.Lock(); delete(r.sets, s); r.mu.Unlock() }

func (r *registry) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for s := range r.sets {
		s.WritePrometheus(&b)
	}
	return b.String()
}

// counted is a cluster of one node with one partition, whose numbers are in the registry.
func counted(c *testCluster) (*host, *frontend, *Keeper, *registry) {
	hub, h, f := c.node(1, starling.AllRoles), newHost(c, 1), newFrontend(c, 1)
	reg := &registry{sets: map[*metrics.Set]bool{}}
	c.topos[1].lease(time.Now().Add(time.Hour))
	k := c.keeper(1, func(cfg *Config) { cfg.Registry = reg })
	hub.Bind(actors.Parts{Frontend: f, Host: h, Partitions: k})
	c.publish(oneOwner(1, 1), []starling.Node{{ID: 1, Roles: starling.AllRoles}})
	return h, f, k, reg
}

func TestMetricsLiveAsLongAsThePartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		h, f, _, reg := counted(c)
		time.Sleep(50 * time.Millisecond)
		h.report(1)
		if _, err := f.acquire(1, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * beat)
		for _, want := range []string{`starling_partition_grants_total{partition="1",start="cold"} 1`, `starling_partition_instances{partition="1"} 1`,
			`starling_partition_cold_ratio{partition="1"} 1`, `starling_partition_step_seconds_count{partition="1"}`} {
			if !strings.Contains(reg.text(), want) {
				t.Errorf("metrics lack %s:\n%s", want, reg.text())
			}
		}
		c.publish(oneOwner(9, 2), nil)
		time.Sleep(beat)
		if reg.text() != "" {
			t.Error("the set of a partition that went away is still shown")
		}
	})
}

// TestRestingPartitionsAreLookedAtSeldom: thousands of partitions without calls must not hold up what else the node does; the
// first call has one looked at again at every beat.
func TestRestingPartitionsAreLookedAtSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		h, f, k, reg := counted(c)
		time.Sleep(time.Second)
		steps := func() int {
			_, rest, _ := strings.Cut(reg.text(), `starling_partition_step_seconds_count{partition="1"} `)
			line, _, _ := strings.Cut(rest, "\n")
			n, err := strconv.Atoi(line)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		before := steps()
		time.Sleep(10 * time.Second)
		if n := steps() - before; n < 5 || n > 20 {
			t.Errorf("a partition in which nothing happens made %d steps in 10 s, want one each second", n)
		}
		h.report(1)
		if _, err := f.acquire(1, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * beat)
		if st := k.Status(); st[0].Instances != 1 || st[0].Leased != 1 || st[0].Rate <= 0 {
			t.Errorf("two beats after a call operators see %+v", st)
		}
	})
}

// TestFailedActorIsReplaced: a fault of ours ends one partition for a moment, not the node.
func TestFailedActorIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, f, keepers := three(t, time.Hour)
		defer c.close()
		c.publish(oneOwner(1, 1), members)
		time.Sleep(50 * time.Millisecond)
		h.report(1)
		first, err := f.acquire(1, time.Second)
		if err != nil || !h.begin(first) {
			t.Fatal(err)
		}
		(*keepers[1].actors.Load())[1].ref.Tell(&batch{4, []wire.Message{(*wire.Acquire)(nil)}}, 1)
		time.Sleep(3 * beat)
		h.report(1)
		h.end(first)
		time.Sleep(starling.LeaseTTL) // until then leases of before the fault may be on their way
		second, err := f.acquire(1, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if second.Instance != first.Instance || !h.begin(second) || second.ID == first.ID {
			t.Errorf("after the fault %+v was granted, before it %+v", second, first)
		}
	})
}

func TestFullMailboxIsAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		defer c.close()
		hub := c.node(1, starling.AllRoles)
		f := newFrontend(c, 1)
		k := c.keeper(1, func(cfg *Config) { cfg.MailboxMax = 4 })
		hub.Bind(actors.Parts{Frontend: f, Partitions: k})
		c.publish(oneOwner(1, 1), nil)
		time.Sleep(50 * time.Millisecond)
		var many []wire.Message
		for i := range 5 {
			many = append(many, &wire.Acquire{Call: uint64(i + 1), Wait: time.Second, Epoch: 1})
		}
		ch := make(chan wire.Message, 1)
		f.waits[3] = ch
		k.ReceiveFor(1, 1, many)
		if r, ok := (<-ch).(*wire.Reject); !ok || r.Reject != starling.Overloaded || r.After == 0 {
			t.Errorf("a batch over the mailbox's size: %+v", r)
		}
	})
}

// BenchmarkDecision is one acquire and one release through mailbox, scheduler and post, in batches of 64.
func BenchmarkDecision(b *testing.B) {
	c := newCluster(nil)
	defer c.close()
	hub := c.node(1, starling.AllRoles)
	h := newHost(c, 1)
	back := make(chan []wire.Message, 1024)
	c.topos[1].lease(time.Now().Add(time.Hour))
	k := c.keeper(1, nil)
	hub.Bind(actors.Parts{Frontend: receiver(func(m []wire.Message) { back <- m }), Host: h, Partitions: k})
	c.publish(&partmap.Map{Partitions: []partmap.Partition{{ID: 1, Epoch: 1, Owner: 1}}}, []starling.Node{{ID: 1, Roles: starling.AllRoles}})
	for len(k.Status()) == 0 || k.Status()[0].Hosts == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	h.report(1)
	const size = 3 // the instances of one version
	batchOf := func() []wire.Message {
		msgs := make([]wire.Message, 0, 60)
		for v := starling.VersionID(1); v <= 20; v++ {
			for range size {
				msgs = append(msgs, &wire.Acquire{Call: uint64(len(msgs)) + 1, Partition: 1, Epoch: 1, Key: 5, Version: v, Wait: 10 * time.Second})
			}
		}
		return msgs
	}
	round := func() {
		msgs := batchOf()
		k.ReceiveFor(1, 1, msgs)
		r := &wire.Release{Partition: 1, Epoch: 1}
		for range msgs {
			for _, m := range <-back {
				if g, ok := m.(*wire.Grant); ok {
					r.Leases = append(r.Leases, g.Lease.ID)
				}
			}
		}
		k.ReceiveFor(1, 1, []wire.Message{r})
	}
	round()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		round()
		n += 60
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/decision")
}

type receiver func([]wire.Message)

func (r receiver) Receive(_ starling.NodeID, m []wire.Message) { r(m) }
