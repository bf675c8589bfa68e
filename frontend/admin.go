package frontend

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"starling"
	"starling/frontend/protocol"
	"starling/internal/run"
	"starling/metrics/profile"
)

// AdminDeps is what the operators' server shows.
type AdminDeps struct {
	Addr    string                // host:port; an address that tenants cannot reach
	Metrics func(io.Writer) error // writes the exposition of all parts
	// Functions returns the busiest functions that this node decides for, at most so many; nil for none.
	Functions func(ctx context.Context, rows int) []protocol.FunctionLoad
	// Profiles returns what calls of one function used on this node, or of all for an empty name; nil on a node without the role host.
	Profiles func(name starling.FunctionName) []profile.Profile
	// Uplinks returns how this node's gateway is plugged into networks; nil on a node that has none.
	Uplinks func() protocol.Uplinks
	Ready   func() error // nil when this node can serve; the error says what is missing
	Pprof   bool         // also /debug/pprof
	Log     *slog.Logger
}

// Admin is the operators' server: metrics, health, and profiles if asked for. It has no key, so its address is
// what guards it. Create it with NewAdmin, Open it, Close it.
type Admin struct {
	deps     AdminDeps
	http     *http.Server
	listener net.Listener
	group    *run.Group
}

// NewAdmin returns a server that does nothing yet.
func NewAdmin(d AdminDeps) *Admin { return &Admin{deps: d} }

// Handler serves what the server serves.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := a.deps.Metrics(w); err != nil {
			a.deps.Log.Warn("write metrics", "error", err)
		}
	})
	mux.HandleFunc("GET /functions", a.functions)
	mux.HandleFunc("GET /profiles", a.profiles)
	mux.HandleFunc("GET /uplinks", a.uplinks)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.deps.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ok\n")
	})
	if a.deps.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// functions answers with a JSON list; ?rows=N bounds it.
func (a *Admin) functions(w http.ResponseWriter, r *http.Request) {
	rows, err := strconv.Atoi(cmp.Or(r.FormValue("rows"), "20"))
	if err != nil || rows < 1 || rows > functionRows {
		http.Error(w, fmt.Sprintf("rows: use 1-%d", functionRows), http.StatusBadRequest)
		return
	}
	list := []protocol.FunctionLoad{}
	if a.deps.Functions != nil {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		list = append(list, a.deps.Functions(ctx, rows)...)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the caller left
}

// profiles answers with a JSON list of all functions, or of ?function=NAME; the book of a host bounds it.
func (a *Admin) profiles(w http.ResponseWriter, r *http.Request) {
	list := []profile.Profile{}
	if a.deps.Profiles != nil {
		list = append(list, a.deps.Profiles(starling.FunctionName(r.FormValue("function")))...)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(list) // the caller left
}

// uplinks answers with a JSON object; the limits of a file of uplinks bound it.
func (a *Admin) uplinks(w http.ResponseWriter, _ *http.Request) {
	out := protocol.Uplinks{Uplinks: []protocol.Uplink{}}
	if a.deps.Uplinks != nil {
		out = a.deps.Uplinks()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out) // the caller left
}

// functionRows bounds one answer of /functions.
const functionRows = 1000

// Addr is the address that was bound, with its port.
func (a *Admin) Addr() string { return a.listener.Addr().String() }

// Open binds the address and serves.
func (a *Admin) Open(ctx context.Context) error {
	l, err := net.Listen("tcp", a.deps.Addr)
	if err != nil {
		return starling.Errorf(starling.Unavailable, "open admin server", "cannot listen on %s, is another program there? %w", a.deps.Addr, err)
	}
	a.listener = l
	a.http = &http.Server{Handler: a.Handler(), ReadTimeout: headerTime, WriteTimeout: 5 * time.Minute, IdleTimeout: idleTime, MaxHeaderBytes: headerMax,
		ErrorLog: slog.NewLogLogger(a.deps.Log.Handler(), slog.LevelDebug)}
	a.group = run.New(context.WithoutCancel(ctx)) // Close ends it, in its turn: not whatever ends ctx
	a.group.Go(func(context.Context) { a.http.Serve(l) })
	return nil
}

// Close stops the server; requests in flight get until ctx ends.
func (a *Admin) Close(ctx context.Context) error {
	if a.group == nil {
		return nil
	}
	err := a.http.Shutdown(ctx)
	if err != nil {
		a.http.Close()
	}
	a.group.Stop()
	if err != nil {
		return fmt.Errorf("close admin server: %w", err)
	}
	return nil
}
