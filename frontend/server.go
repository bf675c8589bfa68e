// Package frontend is the way in: HTTP/1.1, HTTP/2 and HTTP/3 for everybody, and a lean protocol over QUIC for
// programs that call often. It authenticates, resolves a function to a version, and gives the call to the
// dispatcher; control requests go to frontend/api.
package frontend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/quic-go/quic-go/http3"

	"starling"
	"starling/cluster"
	"starling/frontend/api"
	"starling/frontend/auth"
	"starling/frontend/lean"
	"starling/frontend/overload"
	"starling/frontend/protocol"
	"starling/internal/run"
	"starling/sched/flow"
	"starling/transport"
)

// Timeouts and limits of the public servers.
const (
	headerTime  = 10 * time.Second // for the header of a request
	bodyTime    = time.Minute      // for the body of an invocation
	idleTime    = 2 * time.Minute  // of a kept connection
	answerTime  = starling.CallTimeMax + starling.QueueAgeMax + 2*time.Minute
	streamTime  = 30 * time.Second // for a reader to take one piece of a streamed answer
	headerMax   = 32 << 10         // bytes of a request's header
	streamsMax  = 1000             // concurrent requests of one HTTP/2 or HTTP/3 connection
	memoryMax   = 1 << 30          // bytes of payloads and answers held at once, as a default
	inFlightMax = 20_000           // invocations at once, as a default
)

// A Dispatcher brings calls to instances; frontend/dispatch has the real one.
type Dispatcher interface {
	Invoke(ctx context.Context, v *starling.Version, inv *starling.Invocation, sink starling.Sink) (starling.Outcome, starling.Phases, error)
}

// Deps is what the frontend works with. TLS and the limits may be left out.
type Deps struct {
	API      api.Deps // Auth and Log in it are used for invocations too
	Catalog  cluster.Catalog
	Dispatch Dispatcher

	Addr string      // host:port of the public server
	TLS  *tls.Config // certificate of the public server; nil serves plain HTTP/1.1 and HTTP/2 without TLS, and no HTTP/3

	MemoryMax   int64 // bytes of payloads and answers held at once; 0 for 1 GiB
	InFlightMax int64 // invocations at once; 0 for 20,000

	// Visits tells what frontends of other nodes asked of this node's host since it was asked last; nil without a host.
	Visits func() []flow.Demand
	// Callers hears every flow.Window which accounts call at this node's door, in no order; nil without a host.
	Callers func([]starling.AccountID)
}

// Server is the public side of one frontend. Create it with New, Handle clients on the node's endpoint with
// ServeClient if wanted, Open it, and Close it; Close waits for every goroutine but those of calls that outlive its
// deadline. It has one goroutine that watches the node's load, one for each listener and one for each connection, its own or net/http's.
type Server struct {
	deps     Deps
	log      *slog.Logger
	auth     *auth.Authenticator
	api      http.Handler
	http     *http.Server
	lean     *lean.Server // nil with TLS
	h3       *http3.Server
	listener net.Listener
	packets  net.PacketConn
	altSvc   []string
	group    *run.Group
	numbers  *numbers
	memory   atomic.Int64
	inFlight atomic.Int64
	gate     overload.Gate
	draining atomic.Bool
	buffers  buffers
	clients  clients
}

// New returns a server that does nothing yet.
func New(d Deps) *Server {
	if d.MemoryMax == 0 {
		d.MemoryMax = memoryMax
	}
	if d.Callers == nil {
		d.Callers = func([]starling.AccountID) {}
	}
	if d.Visits == nil {
		d.Visits = func() []flow.Demand { return nil }
	}
	if d.InFlightMax == 0 {
		d.InFlightMax = inFlightMax
	}
	s := &Server{deps: d, log: d.API.Log, auth: d.API.Auth, api: api.New(d.API)}
	s.numbers = newNumbers(s)
	began := time.Now()
	s.gate.Now = func() int64 { return int64(time.Since(began)) }
	s.clients.open = map[transport.Stream]func(){}
	return s
}

// Metrics returns the server's numbers.
func (s *Server) Metrics() *metrics.Set { return s.numbers.set }

// Addr is the address that was bound, with its port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Open binds the address and serves. With TLS it serves HTTP/3 on the UDP port of the same number.
func (s *Server) Open(ctx context.Context) error {
	l, err := net.Listen("tcp", s.deps.Addr)
	if err != nil {
		return starling.Errorf(starling.Unavailable, "open frontend", "cannot listen on %s, is another program there? %w", s.deps.Addr, err)
	}
	s.listener = l
	s.http = s.server()
	if s.deps.TLS != nil {
		if err := s.openHTTP3(); err != nil {
			l.Close()
			return err
		}
		cfg := s.deps.TLS.Clone()
		cfg.NextProtos = []string{"h2", "http/1.1"}
		l = tls.NewListener(l, cfg)
	}
	s.group = run.New(context.WithoutCancel(ctx)) // Close ends it, in its turn: not whatever ends ctx
	if s.deps.TLS == nil {
		plain := l
		s.lean = lean.New(lean.Config{Handle: s.invokeLean, Log: s.log, BodyMax: starling.PayloadMax,
			Idle: idleTime, HeadTime: headerTime, BodyTime: bodyTime, Stall: streamTime})
		l = s.lean.Rest(plain)
		s.group.Go(func(context.Context) { s.ended("lean", s.lean.Serve(plain)) })
	}
	s.group.Go(func(context.Context) { s.ended("http", s.http.Serve(l)) })
	s.group.Go(s.watch)
	if s.h3 != nil {
		s.group.Go(func(context.Context) { s.ended("http3", s.h3.Serve(s.packets)) })
	}
	return nil
}

// ended logs why a listener stopped, unless it was told to.
func (s *Server) ended(what string, err error) {
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !s.draining.Load() {
		s.log.Error("server stopped", "server", what, "error", err)
	}
}

func (s *Server) server() *http.Server {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(s.deps.TLS == nil)
	return &http.Server{
		Handler: s, Protocols: &p,
		ReadHeaderTimeout: headerTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: headerMax,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: streamsMax},
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

func (s *Server) openHTTP3() error {
	addr, err := net.ResolveUDPAddr("udp", s.listener.Addr().String())
	if err != nil {
		return fmt.Errorf("open HTTP/3: %w", err)
	}
	s.packets, err = net.ListenUDP("udp", addr)
	if err != nil {
		return starling.Errorf(starling.Unavailable, "open frontend", "cannot listen on UDP %s for HTTP/3: %w", addr, err)
	}
	cfg := http3.ConfigureTLSConfig(s.deps.TLS.Clone())
	cfg.MinVersion = tls.VersionTLS13
	s.h3 = &http3.Server{Handler: s, TLSConfig: cfg, QUICConfig: http3Config(), MaxHeaderBytes: headerMax, IdleTimeout: idleTime,
		Logger: slog.New(quiet{s.log.Handler()})}
	s.altSvc = []string{fmt.Sprintf(`h3=":%d"; ma=3600`, addr.Port)}
	return nil
}

// Close stops accepting, lets calls in flight finish until ctx ends, and then cuts what is left.
func (s *Server) Close(ctx context.Context) error {
	if s.draining.Swap(true) || s.group == nil {
		return nil
	}
	s.clients.goodbye()
	lean := make(chan error, 1)
	s.group.Go(func(context.Context) { // beside net/http's: neither takes new calls while the other waits
		if s.lean == nil {
			lean <- nil
			return
		}
		lean <- s.lean.Shutdown(ctx)
	})
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	if e := <-lean; e != nil {
		err = e
	}
	if s.h3 != nil {
		if e := s.h3.Shutdown(ctx); e != nil && err == nil {
			err = e
		}
		s.h3.Close()
		s.packets.Close()
	}
	s.clients.drain(ctx)
	s.group.Stop()
	if err != nil {
		return fmt.Errorf("close frontend: calls were cut off: %w", err)
	}
	return nil
}

const (
	functionsPath   = "/v1/functions/"
	invocationsPath = "/invocations"
)

// ServeHTTP serves invocations itself and leaves the rest to the control interface.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.altSvc != nil && r.ProtoMajor < 3 {
		w.Header()["Alt-Svc"] = s.altSvc
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, functionsPath); ok {
		if name, ok := strings.CutSuffix(rest, invocationsPath); ok && strings.IndexByte(name, '/') < 0 && r.Method == http.MethodPost {
			s.invoke(w, r, starling.FunctionName(name))
			return
		}
	}
	s.control(w, r)
}

// controlTime bounds a control request that is not a stream.
const controlTime = 15 * time.Second

// control serves everything but invocations. Streams (uploads, logs) live as long as they need.
func (s *Server) control(w http.ResponseWriter, r *http.Request) {
	w.Header()[protocol.HeaderRequestID] = []string{requestID(header(r.Header, protocol.HeaderRequestID)).String()}
	stream := r.URL.Path == "/v1/code" || strings.HasSuffix(r.URL.Path, "/logs")
	if !stream {
		ctx, cancel := context.WithTimeout(r.Context(), controlTime)
		defer cancel()
		r = r.WithContext(ctx)
	}
	s.api.ServeHTTP(w, r)
}
