// Package api is the control interface over HTTP: accounts, keys, code, functions, logs and the cluster's own
// state, with an OpenAPI document made from the same code. It is the only importer of huma.
package api

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"starling"
	"starling/cluster"
	"starling/frontend/auth"
	"starling/frontend/protocol"
)

// A CodeStore keeps uploaded packages, each under the account that uploaded it.
type CodeStore interface {
	// Put reads one zip, checks it and keeps it.
	Put(ctx context.Context, account starling.AccountID, r io.Reader) (starling.CodeHash, int64, error)
	// Size returns the bytes of a package of account; NotFound when the account never uploaded it, even if
	// another one did.
	Size(ctx context.Context, account starling.AccountID, hash starling.CodeHash) (int64, error)
	// Unpacked returns how many bytes its files have, in blocks of 4 KiB; NotFound as Size.
	Unpacked(ctx context.Context, account starling.AccountID, hash starling.CodeHash) (int64, error)
}

// A LogReader finds output of functions on all hosts.
type LogReader interface {
	// Query yields the lines that q selects, oldest first, until they end, ctx ends (with Follow) or the
	// caller stops. An error is the last thing it yields.
	Query(ctx context.Context, f starling.FunctionRef, q protocol.LogQuery) iter.Seq2[protocol.LogRecord, error]
}

// Deps is what the control interface works with. All but Logs and Operator is needed.
type Deps struct {
	Cluster  cluster.Client
	Topology func() *cluster.Topology
	Alive    func(starling.NodeID) bool
	Operator Operator // nil on a frontend that carries no operators' wishes
	Auth     *auth.Authenticator
	Code     CodeStore
	Logs     LogReader
	// Probe asks what a connection from a network to a host's port would meet; nil on a frontend that knows no gateways.
	Probe func(ctx context.Context, ref starling.NetworkRef, host string, port uint16) (protocol.NetworkTest, error)
	Log   *slog.Logger
	CA    [32]byte         // SHA-256 of the cluster's CA certificate, for join tokens
	Now   func() time.Time // stamps what is created; time.Now when nil
	// Backup passes on the whole replicated state as the leader gives it (cluster.View does); nil on a frontend that cannot.
	Backup func(ctx context.Context, begin func(cluster.Backup) error, piece func([]byte) error) error
}

type api struct {
	Deps
	huma huma.API
	mux  *http.ServeMux
}

// New returns the handler of everything under /v1 but invocations, of /openapi.json and of /docs.
func New(d Deps) http.Handler {
	if d.Now == nil {
		d.Now = time.Now
	}
	a := &api{Deps: d, mux: http.NewServeMux()}
	cfg := huma.DefaultConfig("Starling", "1")
	cfg.Info.Description = "Functions on your own machines. Every request carries a bearer key; the account is the key's."
	cfg.CreateHooks = nil // answers are plain JSON, without links to schemas
	cfg.DocsPath, cfg.SchemasPath = "", ""
	cfg.Security = []map[string][]string{{"key": {}}}
	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer", BearerFormat: "stk_<id>_<secret>"}}
	a.huma = humago.New(a.mux, cfg)
	a.accounts()
	a.functions()
	a.layers()
	a.code()
	a.logs()
	a.state()
	a.balance()
	a.isolations()
	a.networks()
	a.tokens()
	a.backup()
	a.docs()
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, d.Log, w.Header().Get(protocol.HeaderRequestID), starling.Errorf(starling.NotFound, "find route", "%s %s is no route of this API: see /docs", r.Method, r.URL.Path).With("NoRoute"))
	})
	return a.mux
}

// Credentials are what every input carries. It is exported, like all that is embedded, because huma fills in exported fields only.
type Credentials struct {
	Authorization string `header:"Authorization" hidden:"true"`
	Account       string `header:"X-Starling-Account" doc:"admin only: act for this account"`
}

func (c *Credentials) presented() *Credentials { return c }

type input[T any] interface {
	*T
	presented() *Credentials
}

// A right is what a caller must be to use a route.
type right bool

const (
	anyKey   right = false
	adminKey right = true
)

// register adds one operation. The key is checked before the body is read, and again for the handler, which
// gets the principal; contexts carry no data here.
func register[I, O any, P input[I]](a *api, op huma.Operation, need right, f func(context.Context, auth.Principal, *I) (*O, error)) {
	op.Errors = []int{400, 401, 403, 404, 409, 429, 500, 503}
	op.Middlewares = huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		if _, err := a.enter(ctx.Context(), ctx.Header("Authorization"), ctx.Header(protocol.HeaderAccount), need); err != nil {
			_, w := humago.Unwrap(ctx)
			WriteError(w, a.Log, w.Header().Get(protocol.HeaderRequestID), err)
			return
		}
		next(ctx)
	}}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		c := P(in).presented()
		p, err := a.enter(ctx, c.Authorization, c.Account, need)
		if err != nil {
			return nil, a.refuse(err)
		}
		out, err := f(ctx, p, in)
		if err != nil {
			return nil, a.refuse(err)
		}
		return out, nil
	})
}

// enter finds out for whom a request acts and whether it may.
func (a *api) enter(ctx context.Context, authorization, account string, need right) (auth.Principal, error) {
	p, err := a.Auth.Authenticate(ctx, authorization)
	if err != nil {
		return p, err
	}
	if need == adminKey {
		if err := p.MustAdmin(); err != nil {
			return p, err
		}
	}
	return p.For(account)
}

// handle adds a route that reads or writes a stream, which huma would buffer; describe puts it in the document.
func (a *api) handle(op *huma.Operation, f func(w http.ResponseWriter, r *http.Request, p auth.Principal) error) {
	op.Responses["default"] = &huma.Response{Description: "A refusal: kind, reason, message, requestId."}
	a.huma.OpenAPI().AddOperation(op)
	a.mux.HandleFunc(op.Method+" "+op.Path, func(w http.ResponseWriter, r *http.Request) {
		p, err := a.enter(r.Context(), r.Header.Get("Authorization"), r.Header.Get(protocol.HeaderAccount), anyKey)
		if err == nil {
			err = f(w, r, p)
		}
		if err != nil {
			WriteError(w, a.Log, w.Header().Get(protocol.HeaderRequestID), err)
		}
	})
}

// A refusal is an error in the form that huma writes: the same as WriteError's.
type refusal struct {
	protocol.ErrorBody
	status int
	after  string
}

func (r *refusal) Error() string { return r.Message }

// GetStatus tells huma the status.
func (r *refusal) GetStatus() int { return r.status }

// GetHeaders tells huma the headers.
func (r *refusal) GetHeaders() http.Header {
	h := http.Header{"Cache-Control": {"no-store"}}
	if r.after != "" {
		h.Set("Retry-After", r.after)
	}
	return h
}

// ContentType keeps huma from another media type.
func (r *refusal) ContentType(string) string { return "application/json" }

func (a *api) refuse(err error) error {
	if starling.KindOf(err) == starling.Internal {
		a.Log.Error("request failed", "error", err)
	}
	return &refusal{ErrorBody: Body(err, ""), status: Status(err), after: RetryAfter(err)}
}

// init gives huma's own refusals (a body that is no JSON, a field out of range) our form. Huma offers no
// other place for it than this variable.
func init() {
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		for _, e := range errs {
			if e != nil {
				msg += "; " + e.Error()
			}
		}
		kind := starling.Invalid
		switch {
		case status == http.StatusRequestEntityTooLarge:
			kind = starling.TooLarge
		case status == http.StatusRequestTimeout:
			kind = starling.Timeout
		case status >= 500:
			kind = starling.Internal
			msg = "something broke on our side"
		}
		err := starling.Errorf(kind, "read request", "%s", msg)
		return &refusal{ErrorBody: Body(err, ""), status: Status(err)}
	}
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return huma.NewErrorWithContext(nil, status, msg, errs...)
	}
}

// propose sends a command; a refusal by the state comes back as it is.
func (a *api) propose(ctx context.Context, cmd cluster.Command) (cluster.Reply, error) {
	r, err := a.Cluster.Propose(ctx, cmd)
	return r, outOfTime(err)
}

func (a *api) read(ctx context.Context, q cluster.Query) (cluster.Reply, error) {
	r, err := a.Cluster.Read(ctx, q)
	return r, outOfTime(err)
}

// outOfTime gives a bare context error its kind.
func outOfTime(err error) error {
	var e *starling.Error
	if err != nil && !errors.As(err, &e) && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return starling.Errorf(starling.Unavailable, "ask managers", "no manager answered in time; the change may or may not be made: %w", err)
	}
	return err
}

// Page reads the paging parameters.
type Page struct {
	After string `query:"after" maxLength:"128" doc:"list what comes after this name"`
	Limit int    `query:"limit" minimum:"0" maximum:"1000" doc:"at most so many; 0 means 100"`
}
