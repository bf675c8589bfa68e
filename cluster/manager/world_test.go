package manager

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/balance"
	"starling/cluster/partmap"
	"starling/transport"
)

// A world is a cluster in one bubble of virtual time: nodes 1 to managers hold the state and schedule, the
// rest schedule only.
type world struct {
	t     testing.TB
	net   *network
	q     *quorum
	nodes map[starling.NodeID]*node
	done  chan struct{}
	quiet bool // nothing is evened
	group sync.WaitGroup
	mu    sync.Mutex // guards bad, and view and load of the nodes
	bad   string     // the first time that two nodes held one partition; "" for never
}

// verdict returns what the watcher found.
func (w *world) verdict() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bad
}

type node struct {
	w       *world
	id      starling.NodeID
	addr    string
	rate    float64      // of its clock
	stood   atomic.Int64 // nanoseconds for which its process stood still, so far
	end     *endpoint
	replica *replica
	manager *Manager
	view    *cluster.View
	load    cluster.Load
	rows    []partmap.Load
	freezer sync.Mutex                              // a leaf: guards frozen
	frozen  map[starling.PartitionID]starling.Epoch // for which it stopped to act
}

// keep carries out the node's orders as an owner does, without any state to hand over, until the world ends.
func (n *node) keep(view *cluster.View) {
	orders := view.Orders()
	n.w.group.Go(func() {
		for {
			select {
			case <-n.w.done:
				return
			case o := <-orders:
				n.freeze(o, true)
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				known, err := view.ProposeChange(ctx, o.Change())
				cancel()
				if known && err != nil {
					n.freeze(o, false)
				}
				view.OrderDone(o.ID, err)
			}
		}
	})
}

// freeze makes the node stop to act for the partitions of an order, or act again.
func (n *node) freeze(o cluster.Order, frozen bool) {
	n.freezer.Lock()
	defer n.freezer.Unlock()
	if n.frozen == nil {
		n.frozen = map[starling.PartitionID]starling.Epoch{}
	}
	n.frozen[o.Partition], n.frozen[o.With] = o.Epoch, o.WithEpoch
	if !frozen {
		delete(n.frozen, o.Partition)
		delete(n.frozen, o.With)
	}
}

func addrOf(id starling.NodeID) string { return fmt.Sprintf("node-%d", id) }

func newWorld(t testing.TB, managers, others, partitions int) *world {
	return newDriftingWorld(t, managers, others, partitions, func() float64 { return 1 })
}

// newDriftingWorld is newWorld with a rate for each node's clock.
func newDriftingWorld(t testing.TB, managers, others, partitions int, rate func() float64) *world {
	return newWorldOf(t, managers, others, partitions, rate, false)
}

// newQuietWorld is newWorld without anything that evens partitions by itself.
func newQuietWorld(t testing.TB, managers, others, partitions int) *world {
	return newWorldOf(t, managers, others, partitions, func() float64 { return 1 }, true)
}

func newWorldOf(t testing.TB, managers, others, partitions int, rate func() float64, quiet bool) *world {
	w := &world{t: t, quiet: quiet, net: newNetwork(), nodes: map[starling.NodeID]*node{}, done: make(chan struct{})}
	w.q = newQuorum(w.net)
	for i := 1; i <= managers+others; i++ {
		n := &node{w: w, id: starling.NodeID(i), addr: addrOf(starling.NodeID(i)), rate: rate()}
		n.end = w.net.endpoint(n.addr, transport.Peer{Node: n.id, Roles: starling.AllRoles})
		if i <= managers {
			n.replica = w.q.add(uint64(i), n.addr)
		}
		w.nodes[n.id] = n
	}
	w.q.elect(1)
	w.propose(cluster.InitCluster{Name: "test", Partitions: partitions})
	for i := 1; i <= managers+others; i++ {
		roles := starling.AllRoles
		if i > managers {
			roles = starling.RoleScheduler | starling.RoleFrontend
		}
		w.join(starling.NodeID(i), roles)
	}
	for i := 1; i <= managers+others; i++ {
		w.nodes[starling.NodeID(i)].start(true)
	}
	w.group.Go(w.watch)
	return w
}

// propose changes the state without a view.
func (w *world) propose(cmd cluster.Command) cluster.Reply {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	reply, err := Propose(ctx, w.q.replicas[w.q.leader], cmd)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply
}

// join makes a node a member, under the id it has in the test.
func (w *world) join(id starling.NodeID, roles starling.Roles) {
	var token [32]byte
	if id != 1 {
		token = sha256.Sum256([]byte{byte(id)})
		w.propose(cluster.AddToken{Hash: token, Roles: starling.AllRoles, Expires: 1 << 40})
	}
	reply := w.propose(cluster.AddNode{Token: token, PublicKey: token, Node: starling.Node{Addr: addrOf(id), Roles: roles}})
	if reply.Node.ID != id {
		w.t.Fatalf("node %d became %v", id, reply.Node.ID)
	}
}

// now is the node's clock, which may run too fast or too slow.
func (n *node) now() time.Time {
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where every bubble begins
	return start.Add(time.Duration(float64(time.Since(start))*n.rate) + time.Duration(n.stood.Load()))
}

func (n *node) start(withManager bool) {
	var local cluster.Local
	if n.replica != nil {
		if withManager {
			balancing, pause := balance.DefaultConfig(), time.Duration(0)
			if n.w.quiet {
				balancing.Looks, pause = 1<<30, time.Hour
			}
			n.manager = New(Config{Balance: balancing, MovePause: pause, Node: n.id, Endpoint: n.end, Machine: n.replica.machine, Signer: signer{}, Log: quiet(), Now: n.now})
			n.manager.Open(n.replica, n.id, n.replica.id)
		}
		local = n.manager
	}
	var managers []string
	for _, m := range n.w.q.replicas {
		managers = append(managers, m.addr)
	}
	load := func() cluster.Load {
		n.w.mu.Lock()
		defer n.w.mu.Unlock()
		return n.load
	}
	report := func() []partmap.Load {
		n.w.mu.Lock()
		defer n.w.mu.Unlock()
		return n.rows
	}
	view := cluster.NewView(cluster.ViewConfig{Node: starling.Node{ID: n.id, Addr: n.addr}, Dialer: n.end, Managers: managers,
		Local: local, Load: load, Report: report, Log: quiet(), Now: n.now})
	view.Open()
	n.w.mu.Lock()
	n.view = view
	n.w.mu.Unlock()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// close ends everything, so that the bubble can.
func (w *world) close() {
	close(w.done)
	w.group.Wait()
	for i := 1; i <= len(w.nodes); i++ {
		for j := 1; j < i; j++ {
			w.net.heal(addrOf(starling.NodeID(i)), addrOf(starling.NodeID(j)))
		}
	}
	for _, n := range w.nodes {
		if err := n.view.Close(); err != nil {
			w.t.Error(err)
		}
	}
	for _, n := range w.nodes {
		if n.manager != nil {
			_ = n.manager.Close()
		}
		_ = n.end.Close()
	}
	if bad := w.verdict(); bad != "" {
		w.t.Error(bad)
	}
}

// watch looks every millisecond whether two nodes act for one partition.
func (w *world) watch() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		w.mu.Lock()
		owned := map[starling.NodeID][]starling.PartitionID{}
		for id, n := range w.nodes {
			owned[id] = n.owns()
		}
		if bad := conflict(owned); w.bad == "" {
			w.bad = bad
		}
		w.mu.Unlock()
		select {
		case <-w.done:
			return
		case <-tick.C:
		}
	}
}

// conflict names a partition that two nodes act for; "" when there is none.
func conflict(owned map[starling.NodeID][]starling.PartitionID) string {
	owner := map[starling.PartitionID]starling.NodeID{}
	for id, partitions := range owned {
		for _, p := range partitions {
			if other, taken := owner[p]; taken {
				return fmt.Sprintf("%v and %v both act for %v", id, other, p)
			}
			owner[p] = id
		}
	}
	return ""
}

// owns returns the partitions for which the node would grant now.
func (n *node) owns() []starling.PartitionID {
	if n.view == nil || !n.now().Before(n.view.LeaseUntil().Add(-starling.NodeLeaseGuard)) {
		return nil
	}
	var ids []starling.PartitionID
	n.freezer.Lock()
	defer n.freezer.Unlock()
	for _, p := range n.view.Map().OwnedBy(n.id) {
		if e, frozen := n.frozen[p.ID]; !frozen || e != p.Epoch {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// isolate cuts a node off from all others.
func (w *world) isolate(id starling.NodeID) {
	for other := range w.nodes {
		if other != id {
			w.net.cut(addrOf(id), addrOf(other))
		}
	}
}

func (w *world) rejoin(id starling.NodeID) {
	for other := range w.nodes {
		if other != id {
			w.net.heal(addrOf(id), addrOf(other))
		}
	}
}

// waitFor waits at most limit for what, and returns how long it took.
func (w *world) waitFor(limit time.Duration, what string, ok func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			w.t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// served reports whether every partition is acted for by one of the nodes.
func (w *world) served(ids ...starling.NodeID) bool {
	total := 0
	for _, id := range ids {
		total += len(w.nodes[id].owns())
	}
	return total == len(w.q.replicas[w.q.leader].machine.Topology().Map.Partitions)
}

// even reports whether no node of ids has two partitions more than another.
func (w *world) even(ids ...starling.NodeID) bool {
	low, high := 1<<30, 0
	for _, id := range ids {
		low, high = min(low, len(w.nodes[id].owns())), max(high, len(w.nodes[id].owns()))
	}
	return high-low < 2
}

// A signer signs by writing down what it signed.
type signer struct{}

func (signer) Sign(_ []byte, n starling.NodeID, r starling.Roles) ([]byte, error) {
	return []byte(n.String() + " " + r.String()), nil
}
func (signer) Certificate() []byte      { return []byte("authority") }
func (signer) Marshal() ([]byte, error) { return []byte("secret"), nil }

func assign(p starling.PartitionID, e starling.Epoch, to starling.NodeID) []partmap.Change {
	return []partmap.Change{{Kind: partmap.Assign, Partition: p, Epoch: e, To: to}}
}
