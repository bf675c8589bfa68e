package partition

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/actors"
	"starling/actors/wire"
	"starling/cluster/partmap"
	"starling/sched"
	"starling/transport"
	"starling/transport/inmem"
)

// A testCluster is hubs over one network, a map that the test changes, hosts and frontends that keep the protocol.
type testCluster struct {
	t      *testing.T
	net    *inmem.Network
	addrs  map[starling.NodeID]string
	ends   map[starling.NodeID]*inmem.Endpoint
	hubs   map[starling.NodeID]*actors.Hub
	topos  map[starling.NodeID]*topology
	closes []func()
}

func newCluster(t *testing.T) *testCluster {
	c := &testCluster{t: t, net: inmem.New(inmem.Config{Seed: 1, DelayMin: 100 * time.Microsecond, DelayMax: time.Millisecond}),
		addrs: map[starling.NodeID]string{}, ends: map[starling.NodeID]*inmem.Endpoint{}, hubs: map[starling.NodeID]*actors.Hub{}, topos: map[starling.NodeID]*topology{}}
	return c
}

func (c *testCluster) close() {
	for i := len(c.closes) - 1; i >= 0; i-- {
		c.closes[i]()
	}
}

// node adds a hub; the parts are bound by open.
func (c *testCluster) node(id starling.NodeID, roles starling.Roles) *actors.Hub {
	e := c.net.Endpoint(transport.Peer{Node: id, Roles: roles})
	h := actors.NewHub(actors.HubConfig{Self: id, Endpoint: e, Log: slog.New(slog.DiscardHandler),
		Addr: func(n starling.NodeID) string { return c.addrs[n] }})
	c.addrs[id], c.ends[id], c.hubs[id] = e.Addr(), e, h
	c.topos[id] = &topology{changed: make(chan struct{})}
	c.closes = append(c.closes, func() { h.Close(); e.Close() })
	return h
}

// keeper runs the scheduler part of a node.
func (c *testCluster) keeper(id starling.NodeID, extra func(*Config)) *Keeper {
	cfg := Config{Node: id, Post: c.hubs[id], Topology: c.topos[id], Catalog: catalog{}, Sched: sched.DefaultConfig(), Log: slog.New(slog.DiscardHandler)}
	if extra != nil {
		extra(&cfg)
	}
	k := New(cfg)
	if err := k.Open(context.Background()); err != nil {
		c.t.Fatal(err)
	}
	c.closes = append(c.closes, func() {
		if err := k.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return k
}

// publish gives every node, or only those named, the same map and members.
func (c *testCluster) publish(m *partmap.Map, alive []starling.Node, to ...starling.NodeID) {
	for id, t := range c.topos {
		for _, n := range to {
			if n == id {
				t.set(m, alive)
			}
		}
		if len(to) == 0 {
			t.set(m, alive)
		}
	}
}

// isolate cuts a node off from all others, or joins it again.
func (c *testCluster) isolate(id starling.NodeID, cut bool) {
	var others []string
	for n, a := range c.addrs {
		if n != id {
			others = append(others, a)
		}
	}
	c.net.Partition([]string{c.addrs[id]}, others, cut)
}

func oneOwner(owner starling.NodeID, e starling.Epoch) *partmap.Map {
	return &partmap.Map{Partitions: []partmap.Partition{{ID: 1, Epoch: e, Owner: owner}}}
}

type topology struct {
	mu      sync.Mutex
	m       *partmap.Map
	alive   []starling.Node
	until   time.Time
	changed chan struct{}
}

func (t *topology) set(m *partmap.Map, alive []starling.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.m, t.alive = m, alive
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *topology) lease(until time.Time) { t.mu.Lock(); t.until = until; t.mu.Unlock() }

func (t *topology) Map() *partmap.Map        { t.mu.Lock(); defer t.mu.Unlock(); return t.m }
func (t *topology) Changed() <-chan struct{} { t.mu.Lock(); defer t.mu.Unlock(); return t.changed }
func (t *topology) Alive() []starling.Node   { t.mu.Lock(); defer t.mu.Unlock(); return t.alive }
func (t *topology) Members() []starling.Node { return t.Alive() }
func (t *topology) LeaseUntil() time.Time    { t.mu.Lock(); defer t.mu.Unlock(); return t.until }

// A catalog knows versions 1 to 99 of account acme, with one instance of one slot for odd ones.
type catalog struct{}

func (catalog) Version(_ context.Context, id starling.VersionID) (*starling.Version, error) {
	if id > 99 {
		return nil, starling.Errorf(starling.NotFound, "find version", "no version %d", id)
	}
	return &starling.Version{ID: id, Function: starling.FunctionRef{Account: "acme", Name: starling.FunctionName(fmt.Sprint("f", id))},
		Config: starling.Config{Runtime: starling.Python311, InstanceMax: 3}.WithDefaults()}, nil
}

func (catalog) Account(context.Context, starling.AccountID) (starling.Account, error) {
	return starling.Account{ID: "acme", ConcurrencyMax: 100}, nil
}

func (catalog) Resolve(context.Context, starling.FunctionRef, starling.VersionNumber) (*starling.Version, error) {
	return nil, nil
}

func (catalog) Key(context.Context, [32]byte) (starling.Key, error) { return starling.Key{}, nil }

// A host starts instances in 10 ms, obeys the highest epoch it was fenced with, and honours older leases only while
// they are in use.
type host struct {
	c    *testCluster
	id   starling.NodeID
	mu   sync.Mutex
	runs map[starling.InstanceID]*running
	high starling.Epoch
	last starling.NodeID // who fenced last
	oops []string        // slots used twice
}

type running struct {
	start wire.Start
	ready bool
	inUse map[leaseKey]starling.Lease
}

type leaseKey struct {
	e  starling.Epoch
	id starling.LeaseID
}

func newHost(c *testCluster, id starling.NodeID) *host {
	return &host{c: c, id: id, runs: map[starling.InstanceID]*running{}}
}

// report sends the host's room to every scheduler.
func (h *host) report(to ...starling.NodeID) {
	for _, n := range to {
		h.c.hubs[h.id].Send(wire.Address{Node: n}, &wire.HostReport{Host: h.id, FreeMiB: 1 << 20, TotalMiB: 1 << 20, Instances: 1000})
	}
}

func (h *host) Receive(from starling.NodeID, batch []wire.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range batch {
		switch m := m.(type) {
		case *wire.Start:
			h.start(from, *m)
		case *wire.Stop:
			if m.Epoch >= h.high {
				delete(h.runs, m.Instance)
				h.send(from, m.Partition, &wire.Exited{Partition: m.Partition, Host: h.id, Instance: m.Instance, Reason: "stopped"})
			}
		case *wire.Fence:
			h.fence(from, m)
		}
	}
}

func (h *host) send(to starling.NodeID, p starling.PartitionID, m wire.Message) {
	hub := h.c.hubs[h.id]
	go hub.Send(wire.Address{Node: to, Partition: p}, m)
}

func (h *host) start(from starling.NodeID, m wire.Start) {
	if m.Epoch < h.high {
		h.send(from, m.Partition, &wire.StartFailed{Partition: m.Partition, Host: h.id, Instance: m.Instance, Fault: starling.Moved, Reason: "Moved"})
		return
	}
	if h.runs[m.Instance] == nil {
		h.runs[m.Instance] = &running{start: m, inUse: map[leaseKey]starling.Lease{}}
	}
	time.AfterFunc(10*time.Millisecond, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if r := h.runs[m.Instance]; r != nil {
			r.ready = true
			h.send(from, m.Partition, &wire.Started{Partition: m.Partition, Host: h.id, Instance: m.Instance, Start: 5 * time.Millisecond, Init: 5 * time.Millisecond})
		}
	})
}

func (h *host) fence(from starling.NodeID, m *wire.Fence) {
	if m.Epoch < h.high {
		return
	}
	h.high, h.last = m.Epoch, from
	out := &wire.Fenced{Partition: m.Partition, Epoch: m.Epoch, Host: h.id}
	for id, r := range h.runs {
		line := wire.InstanceReport{Instance: id, Key: r.start.Key, Version: r.start.Version, Ready: r.ready, Busy: uint16(len(r.inUse))}
		for _, l := range r.inUse {
			line.Leases = append(line.Leases, l)
		}
		out.Instances = append(out.Instances, line)
	}
	h.send(from, m.Partition, out)
}

// begin starts a call under a lease; false when the host does not honour it.
func (h *host) begin(l starling.Lease) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.runs[l.Instance]
	k := leaseKey{l.Epoch, l.ID}
	if r == nil || !r.ready || l.Epoch < h.high && r.inUse[k].ID == 0 {
		return false
	}
	if len(r.inUse) > 0 {
		h.oops = append(h.oops, fmt.Sprintf("%s: lease %d of epoch %d beside %v", l.Instance, l.ID, l.Epoch, r.inUse))
		return false
	}
	r.inUse[k] = l
	return true
}

func (h *host) end(l starling.Lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.runs[l.Instance]; r != nil {
		delete(r.inUse, leaseKey{l.Epoch, l.ID})
	}
}

// A frontend asks the owner its map names, again and again until it is answered, and keeps every grant's story.
type frontend struct {
	c      *testCluster
	id     starling.NodeID
	mu     sync.Mutex
	calls  uint64
	waits  map[uint64]chan wire.Message
	grants []granted
}

type granted struct {
	at    time.Time
	epoch starling.Epoch
	from  starling.NodeID
}

func newFrontend(c *testCluster, id starling.NodeID) *frontend {
	return &frontend{c: c, id: id, waits: map[uint64]chan wire.Message{}}
}

func (f *frontend) Receive(from starling.NodeID, batch []wire.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range batch {
		var call uint64
		switch m := m.(type) {
		case *wire.Grant:
			call = m.Call
			f.grants = append(f.grants, granted{time.Now(), m.Lease.Epoch, from})
		case *wire.Reject:
			call = m.Call
		default:
			continue
		}
		ch := f.waits[call]
		if g, ok := m.(*wire.Grant); ok && ch == nil && g.Lease.Key != 0 {
			go f.releaseAt(g.Lease) // its call was served by another one
		} else if ch != nil {
			delete(f.waits, call)
			ch <- m
		}
	}
}

// ask sends one acquire to a node and waits for its answer; nil when none comes in time.
func (f *frontend) ask(to starling.NodeID, e starling.Epoch, v starling.VersionID, wait time.Duration) wire.Message {
	ch := make(chan wire.Message, 1)
	f.mu.Lock()
	f.calls++
	call := f.calls
	f.waits[call] = ch
	f.mu.Unlock()
	f.c.hubs[f.id].Send(wire.Address{Node: to, Partition: 1}, &wire.Acquire{Call: call, Partition: 1, Epoch: e, Key: 5, Version: v, Wait: 10 * time.Second})
	select {
	case m := <-ch:
		return m
	case <-time.After(wait):
		f.mu.Lock()
		delete(f.waits, call)
		f.mu.Unlock()
		return nil
	}
}

// acquire asks whoever owns the partition until there is a grant, as a frontend does.
func (f *frontend) acquire(v starling.VersionID, patience time.Duration) (starling.Lease, error) {
	var last wire.Message
	for end := time.Now().Add(patience); time.Now().Before(end); {
		p := f.c.topos[f.id].Map().Partitions[0]
		last = f.ask(p.Owner, p.Epoch, v, 250*time.Millisecond)
		if g, ok := last.(*wire.Grant); ok {
			return g.Lease, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return starling.Lease{}, fmt.Errorf("no grant within %v; last answer %+v", patience, last)
}

func (f *frontend) release(l starling.Lease) {
	p := f.c.topos[f.id].Map().Partitions[0]
	f.c.hubs[f.id].Send(wire.Address{Node: p.Owner, Partition: 1}, &wire.Release{Partition: 1, Epoch: l.Epoch, Leases: []starling.LeaseID{l.ID}})
}
