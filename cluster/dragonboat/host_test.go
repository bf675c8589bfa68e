package dragonboat

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	pb "github.com/lni/dragonboat/v4/raftpb"
	"github.com/lni/vfs"

	"starling"
	"starling/cluster/identity"
	"starling/transport"
	"starling/transport/inmem"
	"starling/transport/quic"
)

// register is the machine of the tests: words in order, each with the index that put it there.
type register struct {
	mu    sync.Mutex // Apply and a test's look at it from outside may meet
	words map[string]uint64
}

func newRegister() *register { return &register{words: map[string]uint64{}} }

// Apply notes a word and answers with how many there are.
func (r *register) Apply(index uint64, cmd []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.words[string(cmd)] = index
	return fmt.Appendf(nil, "%d", len(r.words))
}

// Query answers with the index of a word, 0 for none, with the count for nil, and with a number that tells any two
// registers apart for "the sum".
func (r *register) Query(q any) (any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q == nil {
		return uint64(len(r.words)), nil
	}
	if q == "refuse" {
		return nil, starling.Errorf(starling.NotFound, "query", "refused as asked")
	}
	if q == "the sum" {
		var sum uint64
		for w, i := range r.words {
			f := fnv.New64a()
			fmt.Fprint(f, w, " ", i)
			sum += f.Sum64()
		}
		return sum, nil
	}
	return r.words[q.(string)], nil
}

// Save writes all words.
func (r *register) Save(w io.Writer) error { return json.NewEncoder(w).Encode(r.words) }

// Restore reads all words.
func (r *register) Restore(rd io.Reader) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.words = map[string]uint64{}
	return json.NewDecoder(rd).Decode(&r.words)
}

// trio is a shard of replicas 1 to n, each with an endpoint and a directory of its own.
type trio struct {
	t        testing.TB
	dir      string
	ca       *identity.CA
	net      *inmem.Network // nil: real QUIC on loopback
	members  []uint64
	mu       sync.Mutex // guards addrs
	addrs    map[uint64]string
	ids      map[uint64]*identity.Node
	ends     map[uint64]transport.Endpoint
	hosts    map[uint64]*Host
	every    uint64
	disks    map[uint64]*vfs.MemFS // where the stores write; the machine's own when empty
	onLeader func(replica, leader uint64)
}

func newTrio(t testing.TB, n uint64, overQUIC bool) *trio {
	t.Helper()
	c := &trio{t: t, dir: t.TempDir(), addrs: map[uint64]string{}, ids: map[uint64]*identity.Node{},
		ends: map[uint64]transport.Endpoint{}, hosts: map[uint64]*Host{}, every: 1000}
	if overQUIC {
		ca, err := identity.NewCA("test", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c.ca = ca
	} else {
		c.net = inmem.New(inmem.Config{Seed: 1})
	}
	for i := uint64(1); i <= n; i++ {
		c.members = append(c.members, i)
	}
	for _, i := range c.members {
		c.listen(i)
	}
	t.Cleanup(c.close)
	return c
}

// listen opens the endpoint of a replica's node at the address it had before.
func (c *trio) listen(i uint64) {
	c.t.Helper()
	c.mu.Lock()
	addr := c.addrs[i]
	c.mu.Unlock()
	var e interface {
		transport.Endpoint
		Listen() error
	}
	if c.net != nil {
		e = c.net.Endpoint(transport.Peer{Node: starling.NodeID(i), Roles: starling.AllRoles, Addr: addr})
	} else {
		if c.ids[i] == nil {
			id, err := c.ca.Issue(identity.Grant{Node: starling.NodeID(i), Roles: starling.AllRoles}, time.Now())
			if err != nil {
				c.t.Fatal(err)
			}
			c.ids[i] = id
		}
		if addr == "" {
			addr = "127.0.0.1:0"
		}
		e = quic.New(quic.Config{Addr: addr, Identity: c.ids[i]})
	}
	if err := e.Listen(); err != nil {
		c.t.Fatal(err)
	}
	c.ends[i] = e
	c.mu.Lock()
	c.addrs[i] = e.Addr()
	c.mu.Unlock()
}

func (c *trio) resolve(i uint64) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	addr, ok := c.addrs[i]
	return addr, ok
}

func (c *trio) config(i uint64) Config {
	cfg := Config{Dir: filepath.Join(c.dir, fmt.Sprint(i)), Cluster: "test", Shard: 1, Replica: i, Members: c.members,
		Endpoint: c.ends[i], Resolve: c.resolve, Machine: newRegister(), SnapshotEvery: c.every}
	if d := c.disks[i]; d != nil {
		cfg.disk = d
	}
	if c.onLeader != nil {
		cfg.OnLeader = func(leader, _ uint64) { c.onLeader(i, leader) }
	}
	return cfg
}

func (c *trio) open(cfg Config) *Host {
	c.t.Helper()
	h, err := Open(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.hosts[cfg.Replica] = h
	return h
}

func (c *trio) openAll() *trio {
	c.t.Helper()
	for _, i := range c.members {
		c.open(c.config(i))
	}
	return c
}

func (c *trio) close() {
	for i, h := range c.hosts {
		if err := h.Close(); err != nil {
			c.t.Errorf("close replica %d: %v", i, err)
		}
	}
	for _, e := range c.ends {
		e.Close()
	}
}

// stop closes one replica with its node.
func (c *trio) stop(i uint64) {
	c.t.Helper()
	if err := c.hosts[i].Close(); err != nil {
		c.t.Fatal(err)
	}
	delete(c.hosts, i)
	c.ends[i].Close()
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func propose(t testing.TB, h *Host, word string) uint64 {
	t.Helper()
	_, index, err := h.Propose(within(t), []byte(word))
	if err != nil {
		t.Fatalf("propose %s: %v", word, err)
	}
	return index
}

func read(t testing.TB, h *Host, q any) uint64 {
	t.Helper()
	v, err := h.Read(within(t), q)
	if err != nil {
		t.Fatalf("read %v: %v", q, err)
	}
	return v.(uint64)
}

// leader waits until some replica knows a leader that is running.
func (c *trio) leader() uint64 {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, h := range c.hosts {
			if l, _, ok := h.Leader(); ok && c.hosts[l] != nil {
				return l
			}
		}
	}
	c.t.Fatal("no leader")
	return 0
}

func (c *trio) anyBut(i uint64) *Host {
	for _, m := range c.members {
		if h := c.hosts[m]; m != i && h != nil {
			return h
		}
	}
	return nil
}

func TestEveryReplicaReadsWhatOneProposed(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 3, true).openAll()
	index := propose(t, c.hosts[1], "a")
	if more := propose(t, c.hosts[2], "b"); more <= index {
		t.Errorf("the second command has index %d after %d", more, index)
	}
	for i, h := range c.hosts {
		if got := read(t, h, "a"); got != index {
			t.Errorf("replica %d reads %d, want %d", i, got, index)
		}
	}
	if reply, _, err := c.hosts[3].Propose(within(t), []byte("a")); err != nil || string(reply) != "2" {
		t.Errorf("the machine's answer is %q, %v", reply, err)
	}
	if _, err := c.hosts[1].Read(within(t), "refuse"); starling.KindOf(err) != starling.NotFound {
		t.Errorf("a refusal by the machine comes as %v", err)
	}
	if _, _, err := c.hosts[1].Propose(within(t), make([]byte, CommandMax+1)); starling.KindOf(err) != starling.TooLarge {
		t.Errorf("a command over the limit: %v", err)
	}
}

func TestLeaderLeavesAndAcknowledgedWritesStay(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 3, true)
	leaders := make(chan uint64, 64)
	c.onLeader = func(replica, leader uint64) {
		select {
		case leaders <- leader:
		default:
		}
	}
	c.openAll()
	var words []string
	for round := range 3 {
		old := c.leader()
		word := fmt.Sprintf("before %d", round)
		propose(t, c.hosts[old], word)
		words = append(words, word)
		c.stop(old)
		start := time.Now()
		word = fmt.Sprintf("after %d", round)
		propose(t, c.anyBut(old), word)
		words = append(words, word)
		t.Logf("leader %d closed; next write after %v", old, time.Since(start).Round(time.Millisecond))
		c.listen(old)
		c.open(c.config(old))
	}
	for i, h := range c.hosts {
		for _, w := range words {
			if read(t, h, w) == 0 {
				t.Errorf("replica %d has lost %q", i, w)
			}
		}
	}
	if len(leaders) == 0 {
		t.Error("nobody heard of a leader")
	}
}

func TestWholeShardRestartsWithSnapshotAndLog(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 3, false)
	c.every = 25
	c.openAll()
	for i := range 60 {
		propose(t, c.hosts[1+uint64(i%3)], fmt.Sprint("word ", i))
	}
	if err := c.hosts[1].Snapshot(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.hosts[1].Snapshot(within(t)); err != nil {
		t.Errorf("a second snapshot of the same state: %v", err)
	}
	for _, i := range c.members {
		c.stop(i)
	}
	for _, i := range c.members {
		c.listen(i)
		cfg := c.config(i)
		cfg.Members = nil // a restart needs no list
		c.open(cfg)
	}
	for i, h := range c.hosts {
		if n := read(t, h, nil); n != 60 {
			t.Errorf("replica %d has %d words of 60", i, n)
		}
	}
}

func TestTransferAndMembership(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 3, false)
	c.every = 20
	c.openAll()
	c.leader()
	to := c.leader()%3 + 1
	start := time.Now()
	if err := c.anyBut(to).Transfer(within(t), to); err != nil {
		t.Fatal(err)
	}
	t.Logf("leadership moved in %v", time.Since(start).Round(100*time.Microsecond))
	for i := range 100 {
		propose(t, c.hosts[1], fmt.Sprint(i))
	}
	// Replica 4 arrives after the log was cut, so it must be sent a snapshot.
	if err := c.hosts[1].AddReplica(within(t), 4); err != nil {
		t.Fatal(err)
	}
	if err := c.hosts[2].AddReplica(within(t), 4); err != nil {
		t.Errorf("adding a member again: %v", err)
	}
	c.listen(4)
	cfg := c.config(4)
	cfg.Members, cfg.Join = nil, true
	c.open(cfg)
	if n := read(t, c.hosts[4], nil); n != 100 {
		t.Errorf("the new replica reads %d words of 100", n)
	}
	if err := c.hosts[1].RemoveReplica(within(t), 2); err != nil {
		t.Fatal(err)
	}
	if err := c.hosts[1].AddReplica(within(t), 2); starling.KindOf(err) != starling.Invalid || err == nil {
		t.Errorf("a number was used again: %v", err)
	}
	if m, err := c.hosts[4].Members(within(t)); err != nil || fmt.Sprint(m) != "[1 3 4]" {
		t.Errorf("members %v, %v", m, err)
	}
}

func TestMinorityAnswersNothing(t *testing.T) {
	t.Parallel()
	c := newTrio(t, 3, false).openAll()
	propose(t, c.hosts[1], "before")
	lone := c.leader()
	var others []string
	for _, i := range c.members {
		if i != lone {
			others = append(others, c.addrs[i])
		}
	}
	c.net.Partition([]string{c.addrs[lone]}, others, true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := c.hosts[lone].Propose(ctx, []byte("lost")); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("a leader without followers: %v, want Unavailable", err)
	}
	if _, err := c.hosts[lone].Read(ctx, "before"); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("a read in the minority: %v, want Unavailable", err)
	}
	propose(t, c.anyBut(lone), "majority")
	c.net.Partition([]string{c.addrs[lone]}, others, false)
	if read(t, c.hosts[lone], "majority") == 0 {
		t.Error("the healed replica does not see what the majority wrote")
	}
}

func TestCloseTwiceAndUseAfterwards(t *testing.T) {
	c := newTrio(t, 1, false).openAll()
	h := c.hosts[1]
	propose(t, h, "a")
	for range 2 {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := h.Propose(t.Context(), []byte("b")); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("propose after Close: %v", err)
	}
	if _, err := h.Read(t.Context(), "a"); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := h.StaleRead("a"); starling.KindOf(err) != starling.Unavailable {
		t.Errorf("stale read after Close: %v", err)
	}
}

func BenchmarkPropose(b *testing.B) {
	c := newTrio(b, 3, true).openAll()
	h := c.hosts[c.leader()]
	cmd := make([]byte, 64)
	for _, n := range []int{1, 32, 128} {
		b.Run(fmt.Sprint(2*n), func(b *testing.B) {
			b.SetParallelism(n)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, err := h.Propose(b.Context(), cmd); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "proposals/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	c := newTrio(b, 3, true).openAll()
	leader := c.leader()
	propose(b, c.hosts[leader], "a")
	for name, h := range map[string]*Host{"leader": c.hosts[leader], "follower": c.anyBut(leader)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := h.Read(b.Context(), "a"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("stale", func(b *testing.B) {
		for b.Loop() {
			if _, err := c.hosts[leader].StaleRead("a"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func discardMessages(pb.MessageBatch) {}
func discardChunks(pb.Chunk) bool     { return true }
