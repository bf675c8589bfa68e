package frontend

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"starling"
	"starling/cluster"
	"starling/cluster/partmap"
	"starling/frontend/api"
	"starling/frontend/auth"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/transport"
)

// A world is the true replicated state without replicas, code and logs in memory, and functions that are Go.
type world struct {
	operator operator
	mu       sync.Mutex
	state    *cluster.State
	index    uint64
	code     map[string]int64
	lines    []protocol.LogRecord
	more     chan protocol.LogRecord
	call     function
	resets   atomic.Int64
	clock    atomic.Int64
	server   *Server
	http     *httptest.Server
	admin    string // bearer keys
	user     string
	other    string
}

func (w *world) Propose(_ context.Context, cmd cluster.Command) (cluster.Reply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	raw, err := cluster.EncodeCommand(cmd)
	if err != nil {
		return cluster.Reply{}, err
	}
	w.index++
	return cluster.DecodeReply(w.state.Apply(w.index, raw))
}

func (w *world) Read(_ context.Context, q cluster.Query) (cluster.Reply, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state.Query(q)
}

func (w *world) Version(ctx context.Context, id starling.VersionID) (*starling.Version, error) {
	r, err := w.Read(ctx, cluster.Query{What: cluster.QueryVersion, Version: id})
	return r.Version, err
}

func (w *world) Resolve(ctx context.Context, f starling.FunctionRef, n starling.VersionNumber) (*starling.Version, error) {
	r, err := w.Read(ctx, cluster.Query{What: cluster.QueryResolve, Account: f.Account, Function: f.Name, Number: n})
	return r.Version, err
}

func (w *world) Key(ctx context.Context, hash [32]byte) (starling.Key, error) {
	r, err := w.Read(ctx, cluster.Query{What: cluster.QueryKey, Hash: hash})
	if err != nil {
		return starling.Key{}, err
	}
	return *r.Key, nil
}

func (w *world) Account(ctx context.Context, id starling.AccountID) (starling.Account, error) {
	r, err := w.Read(ctx, cluster.Query{What: cluster.QueryAccount, Account: id})
	if err != nil {
		return starling.Account{}, err
	}
	return *r.Account, nil
}

func (w *world) Put(_ context.Context, account starling.AccountID, r io.Reader) (starling.CodeHash, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	hash := starling.CodeHash(hashOf(b))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.code[string(account)+"/"+string(hash)] = int64(len(b))
	return hash, int64(len(b)), nil
}

// Unpacked makes a MiB of each byte.
func (w *world) Unpacked(ctx context.Context, account starling.AccountID, hash starling.CodeHash) (int64, error) {
	n, err := w.Size(ctx, account, hash)
	return n << 20, err
}

func (w *world) Size(_ context.Context, account starling.AccountID, hash starling.CodeHash) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, ok := w.code[string(account)+"/"+string(hash)]
	if !ok {
		return 0, starling.Errorf(starling.NotFound, "find code", "no code %s", hash)
	}
	return n, nil
}

func (w *world) Query(ctx context.Context, f starling.FunctionRef, q protocol.LogQuery) iter.Seq2[protocol.LogRecord, error] {
	return func(yield func(protocol.LogRecord, error) bool) {
		for _, l := range w.lines {
			if l.Function == f.Name && !yield(l, nil) {
				return
			}
		}
		for q.Follow {
			select {
			case l, ok := <-w.more:
				if !ok {
					yield(protocol.LogRecord{}, starling.Errorf(starling.Unavailable, "read logs", "a host was lost"))
					return
				}
				if !yield(l, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (w *world) Invoke(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error) {
	w.mu.Lock()
	f := w.call
	w.mu.Unlock()
	return f(ctx, v, inv, sink)
}

type function = func(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error)

// on makes f what every function does from now on.
func (w *world) on(f function) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call = f
}

// echo answers with the payload.
func echo(_ context.Context, _ *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error) {
	sink.Start(inv.ContentType, false)
	sink.Write(inv.Payload)
	return starling.Outcome{Run: 1500 * time.Microsecond}, starling.Phases{}, nil
}

// newWorld opens a frontend with an admin key, a user of "acme" and a user of "other". Each account has the
// function "echo".
func newWorld(t testing.TB) *world {
	w := &world{state: cluster.NewState(), code: map[string]int64{}, more: make(chan protocol.LogRecord), call: echo}
	ctx := context.Background()
	must := func(cmd cluster.Command) cluster.Reply {
		t.Helper()
		r, err := w.Propose(ctx, cmd)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	must(cluster.InitCluster{Name: "test", Partitions: 2})
	key := func(account starling.AccountID, role starling.KeyRole) string {
		secret, k := auth.NewKey()
		k.Account, k.Role = account, role
		must(cluster.CreateKey{Key: k})
		return secret
	}
	for _, a := range []starling.AccountID{"root", "acme", "other"} {
		must(cluster.CreateAccount{Account: starling.Account{ID: a, ConcurrencyMax: 100}})
	}
	w.admin, w.user, w.other = key("root", starling.KeyAdmin), key("acme", starling.KeyUser), key("other", starling.KeyUser)
	for _, a := range []starling.AccountID{"acme", "other"} {
		hash, size, _ := w.Put(ctx, a, strings.NewReader("the echo of "+string(a)))
		must(cluster.PutFunction{Function: starling.FunctionRef{Account: a, Name: "echo"}, Config: starling.Config{Runtime: starling.Python311}.WithDefaults(),
			Code: hash, CodeSize: size, Now: 1, Create: true})
	}
	log := slog.New(slog.DiscardHandler)
	authn := auth.New(w)
	w.server = New(Deps{Catalog: w, Dispatch: w, Addr: "127.0.0.1:0",
		API: api.Deps{Cluster: w, Operator: &w.operator, Auth: authn, Code: w, Logs: w, Log: log, Now: func() time.Time { return time.Unix(1_800_000_000+w.clock.Add(1), 0) }, Alive: func(n starling.NodeID) bool { return n == 1 },
			Topology: func() *cluster.Topology {
				return &cluster.Topology{Cluster: "test", Nodes: []starling.Node{{ID: 1, Name: "a", Roles: starling.AllRoles}, {ID: 2, Name: "b", Roles: starling.RoleHost}},
					Map: &partmap.Map{Partitions: []partmap.Partition{{ID: 1, Owner: 1, Epoch: 3, Range: starling.Range{Hi: 1 << 63}}, {ID: 2, Owner: 2, Epoch: 1, Range: starling.Range{Lo: 1 << 63}}}}}
			}}})
	w.http = httptest.NewUnstartedServer(w.server)
	w.http.Config = w.server.server()
	w.http.Start()
	t.Cleanup(w.http.Close)
	return w
}

func (w *world) client(key string, opts ...client.Option) *client.HTTP {
	return client.NewHTTP(w.http.URL, key, opts...)
}

// A pipe is a transport.Stream over loopback TCP.
type pipe struct{ *net.TCPConn }

func (p pipe) Cancel()              { p.SetLinger(0); p.TCPConn.Close() }
func (p pipe) Peer() transport.Peer { return transport.Peer{Addr: p.RemoteAddr().String()} }

// A line is a client.Conn to a world's server.
type line struct {
	t testing.TB
	w *world
	l net.Listener
}

func (l *line) Open(context.Context) (transport.Stream, error) {
	c, err := net.Dial("tcp", l.l.Addr().String())
	if err != nil {
		return nil, err
	}
	return pipe{c.(*net.TCPConn)}, nil
}

func (l *line) Close() error { return nil }

// quic returns a client of the stream protocol.
func (w *world) quic(t testing.TB, key string) *client.QUIC {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.resets.Add(1)
			wg.Go(func() { w.server.ServeClient(pipe{c.(*net.TCPConn)}); c.Close() })
		}
	})
	q := client.NewQUIC(func(context.Context) (client.Conn, error) { return &line{t, w, l}, nil }, key, "")
	t.Cleanup(func() {
		q.Close()
		l.Close()
		wg.Wait()
	})
	return q
}
