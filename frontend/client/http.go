// Package client is the Go client of Starling: HTTP is the control interface and one way to invoke, Dial
// is the QUIC way to invoke.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// answerMax bounds a control answer that is read into memory.
const answerMax = 16 << 20

// HTTP speaks to one frontend, or to a balancer before several. It is safe for concurrent use and starts
// no goroutine of its own.
type HTTP struct {
	base, key string
	account   starling.AccountID
	http      *http.Client
}

// An Option changes how a client speaks.
type Option func(*HTTP)

// WithHTTPClient makes the client use h, for instance one that trusts a private CA.
func WithHTTPClient(h *http.Client) Option { return func(c *HTTP) { c.http = h } }

// WithAccount makes an admin key act for account.
func WithAccount(a starling.AccountID) Option { return func(c *HTTP) { c.account = a } }

// NewHTTP returns a client of the frontend at baseURL ("http://host:port") that presents key.
func NewHTTP(baseURL, key string, opts ...Option) *HTTP {
	c := &HTTP{base: strings.TrimRight(baseURL, "/"), key: key, http: &http.Client{}}
	for _, o := range opts {
		o(c)
	}
	return c
}

// Whoami says whom the key stands for.
func (c *HTTP) Whoami(ctx context.Context) (id protocol.Identity, err error) {
	return id, c.json(ctx, http.MethodGet, "/v1/whoami", nil, &id)
}

// Accounts lists tenants by name after the given one; limit 0 means 100. Admin only.
func (c *HTTP) Accounts(ctx context.Context, after string, limit int) (p protocol.Page[starling.Account], err error) {
	return p, c.json(ctx, http.MethodGet, "/v1/accounts"+page(after, limit), nil, &p)
}

// Account returns one tenant. Admin only.
func (c *HTTP) Account(ctx context.Context, id starling.AccountID) (a starling.Account, err error) {
	return a, c.json(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(string(id)), nil, &a)
}

// CreateAccount adds a tenant; Conflict when it exists. Admin only.
func (c *HTTP) CreateAccount(ctx context.Context, spec protocol.AccountSpec) (a starling.Account, err error) {
	return a, c.json(ctx, http.MethodPost, "/v1/accounts", spec, &a)
}

// DeleteAccount removes a tenant that owns no function. Admin only.
func (c *HTTP) DeleteAccount(ctx context.Context, id starling.AccountID) error {
	return c.json(ctx, http.MethodDelete, "/v1/accounts/"+url.PathEscape(string(id)), nil, nil)
}

// Keys lists the keys of an account, without their secrets. Admin only.
func (c *HTTP) Keys(ctx context.Context, account starling.AccountID) ([]starling.Key, error) {
	var p protocol.Page[starling.Key]
	err := c.json(ctx, http.MethodGet, "/v1/accounts/"+url.PathEscape(string(account))+"/keys", nil, &p)
	return p.Items, err
}

// CreateKey makes a key of an account; its secret is in the answer and nowhere else. Admin only.
func (c *HTTP) CreateKey(ctx context.Context, account starling.AccountID, role starling.KeyRole) (k protocol.NewKey, err error) {
	return k, c.json(ctx, http.MethodPost, "/v1/accounts/"+url.PathEscape(string(account))+"/keys", protocol.KeySpec{Role: role}, &k)
}

// DeleteKey revokes a key by its id. Admin only.
func (c *HTTP) DeleteKey(ctx context.Context, account starling.AccountID, id string) error {
	return c.json(ctx, http.MethodDelete, "/v1/accounts/"+url.PathEscape(string(account))+"/keys/"+url.PathEscape(id), nil, nil)
}

// PutCode uploads a zip of size bytes; a size below 0 is unknown. Uploading the same zip again is harmless.
func (c *HTTP) PutCode(ctx context.Context, zip io.Reader, size int64) (code protocol.Code, err error) {
	req, err := c.request(ctx, http.MethodPost, "/v1/code", zip)
	if err != nil {
		return code, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/zip")
	return code, c.do(req, &code)
}

// Functions lists the latest snapshots by name after the given one; limit 0 means 100.
func (c *HTTP) Functions(ctx context.Context, after string, limit int) (p protocol.Page[starling.Version], err error) {
	return p, c.json(ctx, http.MethodGet, "/v1/functions"+page(after, limit), nil, &p)
}

// Function returns one function with its versions.
func (c *HTTP) Function(ctx context.Context, name starling.FunctionName) (f protocol.Function, err error) {
	return f, c.json(ctx, http.MethodGet, function(name), nil, &f)
}

// CreateFunction makes a function from uploaded code; Conflict when it exists.
func (c *HTTP) CreateFunction(ctx context.Context, spec protocol.FunctionSpec) (v starling.Version, err error) {
	return v, c.json(ctx, http.MethodPost, "/v1/functions", spec, &v)
}

// UpdateFunction replaces the latest snapshot; what spec leaves out stays. NotFound when there is none.
func (c *HTTP) UpdateFunction(ctx context.Context, name starling.FunctionName, spec protocol.FunctionSpec) (v starling.Version, err error) {
	return v, c.json(ctx, http.MethodPut, function(name), spec, &v)
}

// DeleteFunction removes a function and its versions.
func (c *HTTP) DeleteFunction(ctx context.Context, name starling.FunctionName) error {
	return c.json(ctx, http.MethodDelete, function(name), nil, nil)
}

// PublishVersion numbers a copy of the latest snapshot.
func (c *HTTP) PublishVersion(ctx context.Context, name starling.FunctionName) (v starling.Version, err error) {
	return v, c.json(ctx, http.MethodPost, function(name)+"/versions", nil, &v)
}

// Versions lists the published versions, oldest first.
func (c *HTTP) Versions(ctx context.Context, name starling.FunctionName) ([]starling.Version, error) {
	var p protocol.Page[starling.Version]
	err := c.json(ctx, http.MethodGet, function(name)+"/versions", nil, &p)
	return p.Items, err
}

// Nodes lists the members of the cluster. Admin only.
func (c *HTTP) Nodes(ctx context.Context) ([]protocol.Node, error) {
	var p protocol.Page[protocol.Node]
	err := c.json(ctx, http.MethodGet, "/v1/nodes", nil, &p)
	return p.Items, err
}

// Partitions lists the partitions by range. Admin only.
func (c *HTTP) Partitions(ctx context.Context) ([]protocol.Partition, error) {
	var p protocol.Page[protocol.Partition]
	err := c.json(ctx, http.MethodGet, "/v1/partitions", nil, &p)
	return p.Items, err
}

// Backup streams the whole replicated state of the cluster in the format of cluster/backup. The caller closes it and
// verifies what came: a backup that was cut short has no end. Admin only.
func (c *HTTP) Backup(ctx context.Context) (io.ReadCloser, error) {
	req, err := c.request(ctx, http.MethodGet, "/v1/backup", nil)
	if err != nil {
		return nil, err
	}
	res, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 {
		defer res.Body.Close()
		return nil, refusal(res)
	}
	return res.Body, nil
}

func function(name starling.FunctionName) string {
	return "/v1/functions/" + url.PathEscape(string(name))
}

func page(after string, limit int) string {
	q := url.Values{}
	if after != "" {
		q.Set("after", after)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

func (c *HTTP) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "call frontend", "%s is no server address, use http://host:port: %w", c.base, err)
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	if c.account != "" {
		req.Header.Set(protocol.HeaderAccount, string(c.account))
	}
	return req, nil
}

// json sends in as a JSON body, if any, and reads the answer into out, if any.
func (c *HTTP) json(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.do(req, out)
}

func (c *HTTP) do(req *http.Request, out any) error {
	res, err := c.send(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return refusal(res)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, answerMax)).Decode(out); err != nil {
		return starling.Errorf(starling.Internal, "call frontend", "%s answered something that is no Starling JSON; is the address right? %w", req.URL.Host, err)
	}
	return nil
}

// Reasons of Unavailable errors that no frontend sent.
const (
	ReasonUnreachable = "Unreachable" // nothing was sent: nobody listens at the address
	ReasonNoAnswer    = "NoAnswer"    // the connection broke after the request may have left: it may have been carried out
)

// send turns transport failures into typed errors.
func (c *HTTP) send(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	var op *net.OpError
	switch {
	case err == nil:
		return res, nil
	case errors.Is(err, context.DeadlineExceeded):
		return nil, starling.Errorf(starling.Timeout, "call frontend", "no answer from %s in time: %w", req.URL.Host, err)
	case errors.Is(err, context.Canceled):
		return nil, err
	}
	if errors.As(err, &op) && op.Op == "dial" {
		return nil, starling.Errorf(starling.Unavailable, "call frontend", "cannot reach %s, check the address and that a frontend runs there: %w", req.URL.Host, err).With(ReasonUnreachable)
	}
	return nil, starling.Errorf(starling.Unavailable, "call frontend", "the connection to %s broke before it answered; the request may have been carried out: %w", req.URL.Host, err).With(ReasonNoAnswer)
}

// refusal reads a typed error; anything else becomes one by its status.
func refusal(res *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return starling.Errorf(starling.Unavailable, "call frontend", "the connection broke: %w", err).With(ReasonNoAnswer)
	}
	var e protocol.ErrorBody
	if json.Unmarshal(b, &e) != nil || e.Kind == "" {
		return starling.Errorf(kindOfStatus(res.StatusCode), "call frontend", "status %s, without a Starling error; is the address right?", res.Status)
	}
	out := &starling.Error{Kind: starling.ParseKind(e.Kind), Reason: e.Reason, Message: e.Message}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		out.After = time.Duration(s) * time.Second
	}
	return out
}

func kindOfStatus(status int) starling.Kind {
	switch {
	case status == http.StatusNotFound:
		return starling.NotFound
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return starling.Denied
	case status == http.StatusTooManyRequests:
		return starling.Overloaded
	case status == http.StatusRequestEntityTooLarge:
		return starling.TooLarge
	case status == http.StatusGatewayTimeout:
		return starling.Timeout
	case status == http.StatusBadGateway || status == http.StatusServiceUnavailable:
		return starling.Unavailable
	case status >= 500:
		return starling.Internal
	}
	return starling.Invalid
}
