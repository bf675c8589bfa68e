package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/internal/audit"
	"starling/internal/judge"
)

// A netLoad is everything that clients do while faults happen, with its history.
type netLoad struct {
	cluster *netCluster
	seed    uint64
	end     context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex // guards what follows
	value   int        // of the last Create
	calls   []judge.Call
	sights  []judge.Sight
	wrong   []string       // maps that do not tile the key space
	changes map[string]int // by kind and outcome
	answers map[string]int // of invocations, by kind
}

func startNetLoad(c *netCluster, functions []starling.FunctionName, seed uint64) *netLoad {
	ctx, cancel := context.WithCancel(context.Background())
	l := &netLoad{cluster: c, seed: seed, end: cancel, changes: map[string]int{}, answers: map[string]int{}}
	for _, n := range c.nodes[1:] {
		for k := range 2 {
			l.loop(ctx, uint64(10*n.number+k), 15*time.Millisecond, func(rng *rand.Rand) { l.control(ctx, n, 10*n.number+k, rng) })
		}
		for k := range 3 {
			l.loop(ctx, uint64(100*n.number+k), 20*time.Millisecond, func(rng *rand.Rand) { l.invoke(ctx, n, functions[rng.IntN(len(functions))]) })
		}
		l.loop(ctx, uint64(n.number), 60*time.Millisecond, func(*rand.Rand) { l.look(ctx, n) })
	}
	l.loop(ctx, 7, 150*time.Millisecond, func(rng *rand.Rand) { l.change(ctx, rng) })
	return l
}

// loop does f again and again, with a pause of at most twice as long between, until ctx ends.
func (l *netLoad) loop(ctx context.Context, stream uint64, pause time.Duration, f func(*rand.Rand)) {
	rng := rand.New(rand.NewPCG(l.seed, stream))
	l.wg.Go(func() {
		for ctx.Err() == nil {
			f(rng)
			select {
			case <-ctx.Done():
			case <-time.After(pause/2 + time.Duration(rng.Int64N(int64(3*pause/2)))):
			}
		}
	})
}

// namesAtOnce is how many names clients work on together, callsPerName after how many others come: a history that is
// judged as one stays short.
const (
	namesAtOnce  = 3
	callsPerName = 40
)

// control does one control operation and writes it down. What has no certain answer is open to the end of the history.
func (l *netLoad) control(ctx context.Context, n *netNode, id int, rng *rand.Rand) {
	l.mu.Lock()
	l.value++
	c := judge.Call{Client: id, Value: 1 + l.value%900, Name: fmt.Sprintf("r%d-%d", len(l.calls)/(namesAtOnce*callsPerName), rng.IntN(namesAtOnce))}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	account := starling.AccountID(c.Name)
	c.Called = audit.Now()
	var err error
	switch rng.IntN(4) {
	case 0:
		c.Act = judge.Create
		_, err = n.admin.CreateAccount(ctx, protocol.AccountSpec{ID: account, ConcurrencyMax: c.Value})
		c.Conflicted = starling.KindOf(err) == starling.Conflict
		c.Unknown = err != nil && !c.Conflicted
	case 1:
		c.Act = judge.Delete
		if err = n.admin.DeleteAccount(ctx, account); starling.KindOf(err) == starling.NotFound {
			c.Act, c.Value, err = judge.Read, 0, nil // it only tells that there is none
		}
		c.Unknown = err != nil
	default:
		c.Act = judge.Read
		var a starling.Account
		if a, err = n.admin.Account(ctx, account); starling.KindOf(err) == starling.NotFound {
			err = nil
		}
		c.Value, c.Unknown = a.ConcurrencyMax, err != nil
	}
	c.Returned = audit.Now()
	l.mu.Lock()
	l.calls = append(l.calls, c)
	l.mu.Unlock()
}

func (l *netLoad) invoke(ctx context.Context, n *netNode, f starling.FunctionName) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	r, err := n.http.Invoke(ctx, client.Call{Function: f, Payload: []byte(`{"n":1}`)})
	if err == nil {
		err = r.Err()
	}
	word := "ok"
	if err != nil {
		word = starling.KindOf(err).String()
	}
	l.mu.Lock()
	l.answers[word]++
	l.mu.Unlock()
}

// look writes down the map as one node sees it.
func (l *netLoad) look(ctx context.Context, n *netNode) {
	life := n.life()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	list, err := n.admin.Partitions(ctx)
	if err != nil || len(list) == 0 || n.life() != life {
		return
	}
	seen := audit.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var next starling.Key64
	for i, p := range list {
		r := starling.Range{Lo: key64(p.Lo), Hi: key64(p.Hi)}
		if r.Lo != next || (r.Hi == 0) != (i == len(list)-1) {
			l.wrong = append(l.wrong, fmt.Sprintf("%s shows a map that does not tile the key space at %s: %+v", life, p.ID, list))
		}
		next = r.Hi
		l.sights = append(l.sights, judge.Sight{Seen: seen, By: life, Partition: p.ID, Epoch: p.Epoch, Owner: p.Owner, Range: r})
	}
}

func key64(s string) starling.Key64 {
	k, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		panic(err) // a node wrote it
	}
	return starling.Key64(k)
}

// change moves, splits or merges a partition, through any node.
func (l *netLoad) change(ctx context.Context, rng *rand.Rand) {
	n := l.cluster.nodes[1+rng.IntN(3)]
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	list, err := n.admin.Partitions(ctx)
	if err != nil || len(list) == 0 {
		return
	}
	nodes, err := n.admin.Nodes(ctx)
	if err != nil || len(nodes) == 0 {
		return
	}
	i := rng.IntN(len(list))
	p, change := list[i], protocol.PartitionChange{}
	switch k := rng.IntN(3); {
	case k == 0 && len(list) < 12:
		lo, hi := uint64(key64(p.Lo)), uint64(key64(p.Hi))
		change.Change, change.At = "split", fmt.Sprintf("%016x", lo+(hi-lo)/2)
	case k == 1 && len(list) > 5 && i+1 < len(list):
		change.Change, change.With = "merge", list[i+1].ID
	default:
		change.Change, change.Node = "move", nodes[rng.IntN(len(nodes))].ID
		if change.Node == p.Owner {
			return
		}
	}
	word := change.Change + " done"
	if err := n.admin.ChangePartition(ctx, p.ID, change); err != nil {
		word = change.Change + " refused"
	}
	l.mu.Lock()
	l.changes[word]++
	l.mu.Unlock()
}

// stop ends all clients. What had no answer stays open to the end.
func (l *netLoad) stop() {
	l.end()
	l.wg.Wait()
	end := audit.Now()
	for i := range l.calls {
		if l.calls[i].Unknown {
			l.calls[i].Returned = end
		}
	}
}
