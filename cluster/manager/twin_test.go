package manager

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/cluster"
	"starling/transport"
)

// A network joins the endpoints of a test. A cut from a to b stalls what a writes to b, as a frozen machine or
// a dropped packet would; nothing is reset, so only deadlines notice.
type network struct {
	mu    sync.Mutex
	ends  map[string]*endpoint
	cuts  map[[2]string]chan struct{} // closed when healed
	delay time.Duration               // of each write
}

func newNetwork() *network {
	return &network{ends: map[string]*endpoint{}, cuts: map[[2]string]chan struct{}{}, delay: 200 * time.Microsecond}
}

// cut stalls both ways between a and b until heal.
func (n *network) cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cutWay(a, b)
	n.cutWay(b, a)
}

// mute stalls only what a writes to b.
func (n *network) mute(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cutWay(a, b)
}

func (n *network) cutWay(a, b string) {
	if way := [2]string{a, b}; n.cuts[way] == nil {
		n.cuts[way] = make(chan struct{})
	}
}

func (n *network) heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, way := range [][2]string{{a, b}, {b, a}} {
		if n.cuts[way] != nil {
			close(n.cuts[way])
			delete(n.cuts, way)
		}
	}
}

func (n *network) isCut(a, b string) chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[[2]string{a, b}]
}

func (n *network) endpoint(addr string, peer transport.Peer) *endpoint {
	e := &endpoint{net: n, addr: addr, peer: peer, handlers: map[transport.Channel]func(transport.Stream){}}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ends[addr] = e
	return e
}

type endpoint struct {
	net      *network
	addr     string
	peer     transport.Peer
	handlers map[transport.Channel]func(transport.Stream)
	mu       sync.Mutex
	closed   bool
	streams  []*link
	group    sync.WaitGroup
}

func (e *endpoint) Addr() string { return e.addr }

func (e *endpoint) Handle(ch transport.Channel, f func(transport.Stream)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handlers[ch] = f
}

func (e *endpoint) Close() error {
	e.mu.Lock()
	e.closed = true
	for _, s := range e.streams {
		s.Cancel()
	}
	e.mu.Unlock()
	e.group.Wait()
	return nil
}

func (e *endpoint) Open(ctx context.Context, addr string, ch transport.Channel) (transport.Stream, error) {
	e.net.mu.Lock()
	to := e.net.ends[addr]
	e.net.mu.Unlock()
	if e.net.isCut(e.addr, addr) != nil {
		<-ctx.Done()
		return nil, starling.Errorf(starling.Unavailable, "open stream", "no route")
	}
	if to == nil {
		return nil, starling.Errorf(starling.Unavailable, "open stream", "nobody there")
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	handler := to.handlers[ch]
	if to.closed || handler == nil {
		return nil, starling.Errorf(starling.Unavailable, "open stream", "refused")
	}
	a, b := newPipe(transport.Peer{})
	a.peer, b.peer = transport.Peer{Node: to.peer.Node, Roles: to.peer.Roles, Addr: addr}, transport.Peer{Node: e.peer.Node, Roles: e.peer.Roles, Addr: e.addr}
	near := &link{pipe: a, net: e.net, way: [2]string{e.addr, addr}, dead: make(chan struct{})}
	far := &link{pipe: b, net: e.net, way: [2]string{addr, e.addr}, dead: make(chan struct{})}
	to.streams = append(to.streams, far)
	to.group.Go(func() { handler(far); far.Cancel() })
	return near, nil
}

// A link is a stream over the network.
type link struct {
	*pipe
	net   *network
	way   [2]string
	once  sync.Once
	dead  chan struct{}
	mu    sync.Mutex
	until time.Time
}

func (l *link) SetWriteDeadline(t time.Time) error {
	l.mu.Lock()
	l.until = t
	l.mu.Unlock()
	return l.pipe.SetWriteDeadline(t)
}

func (l *link) Cancel() { l.once.Do(func() { close(l.dead) }); l.pipe.Cancel() }

func (l *link) Write(b []byte) (int, error) {
	time.Sleep(l.net.delay)
	for {
		cut := l.net.isCut(l.way[0], l.way[1])
		if cut == nil {
			return l.pipe.Write(b)
		}
		l.mu.Lock()
		until := l.until
		l.mu.Unlock()
		var expired <-chan time.Time
		if !until.IsZero() {
			expired = time.After(time.Until(until))
		}
		select {
		case <-cut:
		case <-l.dead:
			return 0, errors.New("stream cancelled")
		case <-expired:
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// A quorum is a set of replicas that agree at once, with a leader that the test chooses. A replica that cannot
// reach a majority keeps believing what it last knew, as a real one does for a while.
type quorum struct {
	net       *network
	mu        sync.Mutex
	log       [][]byte
	leader    uint64
	replicas  map[uint64]*replica
	lose      int                    // so many proposals are applied and their answers lost
	proposing atomic.Pointer[func()] // called once while the next command is proposed; nil for nothing
}

type replica struct {
	q       *quorum
	id      uint64
	addr    string
	machine *cluster.Machine
	applied int
	belief  uint64 // who leads, as far as it knows
	down    bool
}

func newQuorum(net *network) *quorum { return &quorum{net: net, replicas: map[uint64]*replica{}} }

func (q *quorum) add(id uint64, addr string) *replica {
	q.mu.Lock()
	defer q.mu.Unlock()
	r := &replica{q: q, id: id, addr: addr, machine: cluster.NewMachine()}
	q.replicas[id] = r
	return r
}

// elect makes a replica the leader; those that reach it learn so.
func (q *quorum) elect(id uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leader = id
	q.learn()
}

func (q *quorum) learn() {
	lead := q.replicas[q.leader]
	for _, r := range q.replicas {
		if q.reach(r, lead) {
			r.belief = q.leader
		}
	}
}

func (q *quorum) reach(a, b *replica) bool {
	return a != nil && b != nil && !a.down && !b.down && (a == b || q.net.isCut(a.addr, b.addr) == nil)
}

// led reports whether r reaches the leader and that one a majority.
func (q *quorum) led(r *replica) bool {
	lead := q.replicas[q.leader]
	if !q.reach(r, lead) {
		return false
	}
	votes := 0
	for _, other := range q.replicas {
		if q.reach(lead, other) {
			votes++
		}
	}
	return 2*votes > len(q.replicas)
}

// await waits until r is led, or ctx ends. It returns with the lock held when it is.
func (q *quorum) await(ctx context.Context, r *replica) error {
	for {
		q.mu.Lock()
		if q.led(r) {
			q.learn()
			return nil
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (r *replica) Propose(ctx context.Context, cmd []byte) ([]byte, uint64, error) {
	time.Sleep(2 * time.Millisecond)
	if f := r.q.proposing.Swap(nil); f != nil {
		(*f)()
	}
	if err := r.q.await(ctx, r); err != nil {
		return nil, 0, err
	}
	defer r.q.mu.Unlock()
	r.q.log = append(r.q.log, cmd)
	var reply []byte
	for _, other := range r.q.replicas {
		if r.q.reach(r.q.replicas[r.q.leader], other) {
			if last := other.catchUp(); other == r {
				reply = last
			}
		}
	}
	if r.q.lose > 0 {
		r.q.lose--
		return nil, 0, errors.New("the answer was lost")
	}
	return reply, uint64(len(r.q.log)), nil
}

// catchUp applies what the replica has not applied and returns the last reply. The quorum's lock is held.
func (r *replica) catchUp() (reply []byte) {
	for ; r.applied < len(r.q.log); r.applied++ {
		reply = r.machine.Apply(uint64(r.applied+1), r.q.log[r.applied])
	}
	return reply
}

func (r *replica) Read(ctx context.Context, query any) (any, error) {
	time.Sleep(time.Millisecond)
	if err := r.q.await(ctx, r); err != nil {
		return nil, err
	}
	defer r.q.mu.Unlock()
	r.catchUp()
	return r.machine.Query(query)
}

func (r *replica) Leader() (uint64, uint64, bool) {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.belief, 1, r.belief != 0 && !r.down
}

func (r *replica) Members(context.Context) ([]uint64, error) {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	var ids []uint64
	for id := range r.q.replicas {
		ids = append(ids, id)
	}
	return ids, nil
}

func (r *replica) Transfer(_ context.Context, to uint64) error { r.q.elect(to); return nil }

func (r *replica) AddReplica(context.Context, uint64) error    { return nil }
func (r *replica) RemoveReplica(context.Context, uint64) error { return nil }

// height returns how many commands the replica has applied.
func (r *replica) height() int {
	r.q.mu.Lock()
	defer r.q.mu.Unlock()
	return r.applied
}
