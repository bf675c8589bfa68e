package partition

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
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

// A manager keeps the map, takes proposals and tells the nodes of changes, each after a delay of its own.
type manager struct {
	c       *testCluster
	mu      sync.Mutex
	rng     *rand.Rand
	m       *partmap.Map
	deaf    int // so many proposals are lost: half of them are carried out all the same
	orders  map[starling.NodeID]chan cluster.Order
	last    uint64
	waiting map[uint64]chan error
}

func newManager(c *testCluster, seed uint64, m *partmap.Map) *manager {
	return &manager{c: c, rng: rand.New(rand.NewPCG(seed, 0)), m: m,
		orders: map[starling.NodeID]chan cluster.Order{1: make(chan cluster.Order, 8), 2: make(chan cluster.Order, 8)}, waiting: map[uint64]chan error{}}
}

// order tells the owner of a partition to change it and waits for its report.
func (m *manager) order(o cluster.Order) error {
	m.mu.Lock()
	p, ok := m.m.ByID(o.Partition)
	if !ok {
		m.mu.Unlock()
		return starling.Errorf(starling.NotFound, "order", "no partition %s", o.Partition)
	}
	m.last++
	o.ID, o.Epoch = m.last, p.Epoch
	if w, ok := m.m.ByID(o.With); ok {
		o.WithEpoch = w.Epoch
	}
	done := make(chan error, 1)
	m.waiting[o.ID] = done
	orders := m.orders[p.Owner]
	m.mu.Unlock()
	orders <- o
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("no report of %+v", o)
	}
}

func (m *manager) current() *partmap.Map {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m
}

// spread tells every node of the newest map, in its own time.
func (m *manager) spread() {
	for _, t := range m.c.topos {
		delay := time.Duration(m.rng.IntN(5000)) * time.Microsecond
		go func() {
			time.Sleep(delay)
			m.mu.Lock()
			defer m.mu.Unlock()
			t.set(m.m, members)
		}()
	}
}

// A line is one node's way to the manager.
type line struct {
	m    *manager
	node starling.NodeID
}

func (l line) Orders() <-chan cluster.Order { return l.m.orders[l.node] }

func (l line) OrderDone(id uint64, err error) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.waiting[id] <- err
}

func (l line) ProposeChange(_ context.Context, c partmap.Change) (known bool, err error) {
	m := l.m
	time.Sleep(2 * time.Millisecond)
	m.mu.Lock()
	defer m.mu.Unlock()
	lost := m.deaf > 0
	if lost {
		m.deaf--
		if m.rng.IntN(2) == 0 {
			return false, starling.Errorf(starling.Unavailable, "propose", "no leader answers")
		}
	}
	next := m.m.Clone()
	if err = next.Apply(c); err == nil {
		m.m = next
		m.spread()
	} else if starling.KindOf(err) == starling.Moved && m.m.Made(c) {
		err = nil
	}
	if lost {
		return false, starling.Errorf(starling.Unavailable, "propose", "the answer was lost")
	}
	return true, err
}

// A wide catalog lets functions have more instances than these tests use: where a limit of three is cut in two, a half may have
// to wait until the other has less than its share.
type wide struct{ catalog }

func (w wide) Version(ctx context.Context, id starling.VersionID) (*starling.Version, error) {
	v, err := w.catalog.Version(ctx, id)
	if err == nil {
		v.Config.InstanceMax = 40
	}
	return v, err
}

// A strictHost starts instances in 10 ms and honours leases as hosts do.
type strictHost struct {
	*host
	fences  guard.Fences
	tenures map[starling.InstanceID]*guard.Tenure
	keys    map[starling.InstanceID]starling.Key64
	owners  map[starling.InstanceID]wire.Address
	stops   int
}

func (h *strictHost) Receive(from starling.NodeID, batch []wire.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range batch {
		switch m := m.(type) {
		case *wire.Start:
			h.startOne(from, *m)
		case *wire.Stop:
			if !h.fences.Stale(h.keys[m.Instance], m.Partition, m.Epoch) {
				h.stops++
			}
		case *wire.Fence:
			h.answer(from, m)
		}
	}
}

func (h *strictHost) startOne(from starling.NodeID, m wire.Start) {
	if h.fences.Stale(m.Key, m.Partition, m.Epoch) || h.tenures[m.Instance] != nil {
		return
	}
	h.tenures[m.Instance] = &guard.Tenure{Partition: m.Partition, Epoch: m.Epoch, Since: m.Epoch, Slots: 1}
	h.keys[m.Instance], h.owners[m.Instance] = m.Key, wire.Address{Node: from, Partition: m.Partition}
	h.runs[m.Instance] = &running{start: m}
	time.AfterFunc(10*time.Millisecond, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.runs[m.Instance].ready = true
		to := h.owners[m.Instance]
		h.send(to.Node, to.Partition, &wire.Started{Partition: to.Partition, Host: h.id, Instance: m.Instance})
	})
}

func (h *strictHost) answer(from starling.NodeID, m *wire.Fence) {
	if !h.fences.Raise(m) {
		return
	}
	out := &wire.Fenced{Partition: m.Partition, Epoch: m.Epoch, Host: h.id}
	for id, r := range h.runs {
		if !m.Range.Contains(h.keys[id]) {
			continue
		}
		h.owners[id] = wire.Address{Node: from, Partition: m.Partition}
		out.Instances = append(out.Instances, wire.InstanceReport{Instance: id, Key: h.keys[id], Version: r.start.Version, Ready: r.ready,
			Leases: h.tenures[id].Adopt(m, time.Now())})
	}
	h.send(from, m.Partition, out)
}

// call runs one call of d under a lease.
func (h *strictHost) call(l starling.Lease, d time.Duration) error {
	h.mu.Lock()
	t := h.tenures[l.Instance]
	if t == nil {
		h.mu.Unlock()
		return guard.ErrNoInstance
	}
	err := t.Enter(&l, time.Now())
	h.mu.Unlock()
	if err != nil {
		return err
	}
	time.Sleep(d)
	h.mu.Lock()
	defer h.mu.Unlock()
	t.Leave(&l, time.Now())
	return nil
}

// TestChangesUnderLoad moves, splits and merges partitions while calls come and go. Every call gets its slot, soon, and
// every lease holds at its host; no slot is used twice, and no instance is stopped.
func TestChangesUnderLoad(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { changesUnderLoad(t, seed, 0) })
		})
	}
}

// TestChangesWithoutAnswers does the same while the manager's answers are lost at times. Then a partition may have to be
// recovered, which takes longer and ends leases that are idle.
func TestChangesWithoutAnswers(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { changesUnderLoad(t, seed, 3) })
		})
	}
}

func changesUnderLoad(t *testing.T, seed uint64, losses int) {
	c := newCluster(t)
	defer c.close()
	m, _ := partmap.Initial(2)
	for i := range m.Partitions {
		if err := m.Apply(partmap.Change{Kind: partmap.Assign, Partition: m.Partitions[i].ID, To: starling.NodeID(1 + i%2)}); err != nil {
			t.Fatal(err)
		}
	}
	man := newManager(c, seed, m)
	for _, n := range members {
		c.node(n.ID, n.Roles)
	}
	nodes := members
	for i := range nodes {
		nodes[i].Addr = c.addrs[nodes[i].ID]
	}
	h := &strictHost{host: newHost(c, 3), tenures: map[starling.InstanceID]*guard.Tenure{}, keys: map[starling.InstanceID]starling.Key64{},
		owners: map[starling.InstanceID]wire.Address{}}
	f := newFrontend(c, 4)
	for _, id := range []starling.NodeID{1, 2} {
		c.topos[id].lease(time.Now().Add(time.Hour))
		k := c.keeper(id, func(cfg *Config) { cfg.Control, cfg.Endpoint, cfg.Catalog = line{man, id}, c.ends[id], wide{} })
		c.hubs[id].Bind(actors.Parts{Partitions: k})
	}
	c.hubs[3].Bind(actors.Parts{Host: h})
	c.hubs[4].Bind(actors.Parts{Frontend: f})
	for _, e := range c.ends {
		e.Listen()
	}
	c.publish(m, nodes)
	time.Sleep(50 * time.Millisecond)
	h.report(1, 2)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var worst time.Duration
	refused := 0
	for w := range 12 {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for served := 0; ; served++ {
				select {
				case <-stop:
					return
				default:
				}
				v := starling.VersionID(1 + rng.IntN(6))
				began := time.Now()
				l, err := f.acquireAt(keyOfVersion(v, rng.Uint32()), v, 10*time.Second)
				if err != nil {
					t.Error(err)
					return
				}
				took := time.Since(began)
				err = h.call(l, time.Duration(1+rng.IntN(20))*time.Millisecond)
				mu.Lock()
				if served > 0 {
					worst = max(worst, took)
				}
				if err != nil {
					refused++
				}
				mu.Unlock()
				f.releaseAt(l)
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	h.report(1, 2)
	done := map[string]int{}
	rng := rand.New(rand.NewPCG(seed, 1000))
	for i := range 30 {
		if i < losses {
			man.mu.Lock()
			man.deaf = 1 + rng.IntN(2)
			man.mu.Unlock()
		}
		o := drawOrder(rng, man.current())
		switch err := man.order(o); {
		case err == nil:
			done[changeWords[o.Kind]]++
		case losses == 0:
			t.Errorf("%s %s: %v", changeWords[o.Kind], o.Partition, err)
		}
		time.Sleep(time.Duration(20+rng.IntN(60)) * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if err := man.current().Check(); err != nil {
		t.Error(err)
	}
	t.Logf("changes %v, worst wait %v, leases refused by the host %d, stops %d", done, worst, refused, h.stops)
	if losses > 0 {
		return
	}
	if done["move"] == 0 || done["split"] == 0 || done["merge"] == 0 {
		t.Errorf("not every kind of change was made: %v", done)
	}
	if refused > 0 {
		t.Errorf("the host refused %d leases", refused)
	}
	if worst > 300*time.Millisecond {
		t.Errorf("a call waited for %v", worst)
	}
}

// keyOfVersion is a key in the span of the version's function.
func keyOfVersion(v starling.VersionID, spread uint32) starling.Key64 {
	return starling.KeyOf(starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", v))}, spread)
}

// drawOrder draws a change that the map allows.
func drawOrder(rng *rand.Rand, m *partmap.Map) cluster.Order {
	for {
		i := rng.IntN(len(m.Partitions))
		p := m.Partitions[i]
		switch rng.IntN(3) {
		case 0:
			return cluster.Order{Kind: partmap.Move, Partition: p.ID, To: 3 - p.Owner}
		case 1:
			at := keyOfVersion(starling.VersionID(1+rng.IntN(6)), 1<<31) // inside the span of a function that is called
			if p.Range.Contains(at) && at != p.Range.Lo && len(m.Partitions) < 8 {
				return cluster.Order{Kind: partmap.Split, Partition: p.ID, At: at}
			}
		case 2:
			if i+1 < len(m.Partitions) && m.Partitions[i+1].Owner == p.Owner {
				return cluster.Order{Kind: partmap.Merge, Partition: p.ID, With: m.Partitions[i+1].ID}
			}
		}
	}
}

// acquireAt asks whoever owns the key until there is a grant.
func (f *frontend) acquireAt(k starling.Key64, v starling.VersionID, patience time.Duration) (starling.Lease, error) {
	ch := make(chan wire.Message, 4)
	f.mu.Lock()
	f.calls++
	call := f.calls
	f.mu.Unlock()
	var last wire.Message
	for end := time.Now().Add(patience); time.Now().Before(end); {
		p, _ := f.c.topos[f.id].Map().Lookup(k)
		f.mu.Lock()
		f.waits[call] = ch
		f.mu.Unlock()
		f.c.hubs[f.id].Send(wire.Address{Node: p.Owner, Partition: p.ID}, &wire.Acquire{Call: call, Partition: p.ID, Epoch: p.Epoch, Key: k, Version: v, Wait: 10 * time.Second})
		select {
		case last = <-ch:
			if g, ok := last.(*wire.Grant); ok {
				f.onlyOne(call, ch)
				return g.Lease, nil
			}
		case <-f.c.topos[f.id].Changed():
		case <-time.After(250 * time.Millisecond):
		}
		time.Sleep(time.Millisecond)
	}
	return starling.Lease{}, fmt.Errorf("no grant of version %d within %v; last answer %+v", v, patience, last)
}

// onlyOne gives back what else was granted to a call that has its slot.
func (f *frontend) onlyOne(call uint64, ch <-chan wire.Message) {
	f.mu.Lock()
	delete(f.waits, call)
	f.mu.Unlock()
	for {
		select {
		case m := <-ch:
			if g, ok := m.(*wire.Grant); ok {
				f.releaseAt(g.Lease)
			}
		default:
			return
		}
	}
}

// releaseAt gives a lease back to whoever has its key now.
func (f *frontend) releaseAt(l starling.Lease) {
	p, _ := f.c.topos[f.id].Map().Lookup(l.Key)
	f.c.hubs[f.id].Send(wire.Address{Node: p.Owner, Partition: p.ID}, &wire.Release{Partition: l.Partition, Epoch: l.Epoch, Leases: []starling.LeaseID{l.ID}})
}
