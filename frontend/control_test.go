package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

var bg = context.Background()

func TestAccountsAndKeys(t *testing.T) {
	w := newWorld(t)
	admin := w.client(w.admin)
	a, err := admin.CreateAccount(bg, protocol.AccountSpec{ID: "new"})
	if err != nil || a.ConcurrencyMax != starling.ConcurrencyMax || a.Created == 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, err := admin.CreateAccount(bg, protocol.AccountSpec{ID: "new"}); starling.KindOf(err) != starling.Conflict {
		t.Fatalf("twice: %v", err)
	}
	if _, err := admin.CreateAccount(bg, protocol.AccountSpec{ID: "No Good"}); starling.KindOf(err) != starling.Invalid {
		t.Fatalf("bad name: %v", err)
	}
	p, err := admin.Accounts(bg, "", 2)
	if err != nil || len(p.Items) != 2 || p.Next == "" {
		t.Fatalf("%+v, %v", p, err)
	}
	rest, err := admin.Accounts(bg, p.Next, 0)
	if err != nil || len(rest.Items) != 2 || rest.Next != "" {
		t.Fatalf("%+v, %v", rest, err)
	}
	k, err := admin.CreateKey(bg, "new", "")
	if err != nil || k.Role != starling.KeyUser || k.Account != "new" {
		t.Fatalf("%+v, %v", k, err)
	}
	user := w.client(k.Secret)
	id, err := user.Whoami(bg)
	if err != nil || id.Account != "new" || id.Role != starling.KeyUser || id.KeyID != k.ID || id.Cluster != "test" {
		t.Fatalf("%+v, %v", id, err)
	}
	keys, err := admin.Keys(bg, "new")
	if err != nil || len(keys) != 1 || keys[0].ID != k.ID {
		t.Fatalf("%+v, %v", keys, err)
	}
	if err := admin.DeleteKey(bg, "new", k.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := user.Whoami(bg); starling.KindOf(err) != starling.Denied {
		t.Fatalf("a revoked key: %v", err)
	}
	if err := admin.DeleteAccount(bg, "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Account(bg, "new"); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("got %v", err)
	}
	if err := admin.DeleteAccount(bg, "acme"); starling.KindOf(err) != starling.Conflict {
		t.Fatalf("an account with functions: %v", err)
	}
}

func TestUsersMayNotAdminister(t *testing.T) {
	w := newWorld(t)
	c := w.client(w.user)
	_, e1 := c.Accounts(bg, "", 0)
	_, e2 := c.CreateAccount(bg, protocol.AccountSpec{ID: "x"})
	_, e3 := c.CreateKey(bg, "acme", starling.KeyAdmin)
	_, e4 := c.Nodes(bg)
	_, e5 := c.Partitions(bg)
	e6 := c.DeleteAccount(bg, "other")
	_, e7 := w.client(w.user, client.WithAccount("other")).Functions(bg, "", 0)
	for i, err := range []error{e1, e2, e3, e4, e5, e6, e7} {
		if starling.KindOf(err) != starling.Denied || starling.ReasonOf(err) != "NotPermitted" {
			t.Errorf("%d: %v", i+1, err)
		}
	}
}

func TestFunctionsFromUploadToDelete(t *testing.T) {
	w := newWorld(t)
	c := w.client(w.user)
	code, err := c.PutCode(bg, strings.NewReader("a zip"), -1)
	if err != nil || code.Size != 5 || string(code.Hash) != hashOf([]byte("a zip")) {
		t.Fatalf("%+v, %v", code, err)
	}
	v, err := c.CreateFunction(bg, protocol.FunctionSpec{Name: "f", Config: &starling.Config{Runtime: starling.NodeJS20}, Code: code.Hash})
	if err != nil || v.Config.Handler != "index.handler" || v.CodeSize != 5 || v.Function.Account != "acme" {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := c.CreateFunction(bg, protocol.FunctionSpec{Name: "f", Config: &starling.Config{Runtime: starling.NodeJS20}, Code: code.Hash}); starling.KindOf(err) != starling.Conflict {
		t.Fatalf("twice: %v", err)
	}
	n, err := c.PublishVersion(bg, "f")
	if err != nil || n.Number != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	conf := v.Config
	conf.MemoryMiB = 512
	u, err := c.UpdateFunction(bg, "f", protocol.FunctionSpec{Config: &conf, Expect: v.ID})
	if err != nil || u.Config.MemoryMiB != 512 || u.Code != v.Code || u.ID == v.ID {
		t.Fatalf("%+v, %v", u, err)
	}
	if _, err := c.UpdateFunction(bg, "f", protocol.FunctionSpec{Config: &conf, Expect: v.ID}); starling.KindOf(err) != starling.Conflict {
		t.Fatalf("an update of what changed meanwhile: %v", err)
	}
	if _, err := c.UpdateFunction(bg, "absent", protocol.FunctionSpec{Config: &conf}); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("got %v", err)
	}
	f, err := c.Function(bg, "f")
	if err != nil || f.Snapshot.ID != u.ID || len(f.Numbered) != 1 || f.Numbered[0].Number != 1 || f.Numbered[0].Config.MemoryMiB == 512 {
		t.Fatalf("%+v, %v", f, err)
	}
	r, err := c.Invoke(bg, client.Call{Function: "f", Version: 1, Payload: []byte("1")})
	if err != nil || r.Version != "1" || string(r.Payload) != "1" {
		t.Fatalf("%+v, %v", r, err)
	}
	vs, err := c.Versions(bg, "f")
	if err != nil || len(vs) != 1 {
		t.Fatalf("%+v, %v", vs, err)
	}
	l, err := c.Functions(bg, "", 0)
	if err != nil || len(l.Items) != 2 || l.Items[0].Function.Name != "echo" {
		t.Fatalf("%+v, %v", l, err)
	}
	if err := c.DeleteFunction(bg, "f"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Invoke(bg, client.Call{Function: "f"}); starling.KindOf(err) != starling.NotFound {
		t.Fatalf("got %v", err)
	}
}

// send makes a raw request as user and returns the status and the error body.
func (w *world) send(t *testing.T, method, path, body string, header ...string) (int, protocol.ErrorBody) {
	t.Helper()
	req, err := http.NewRequest(method, w.http.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.user)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	var e protocol.ErrorBody
	if res.StatusCode >= 400 {
		if err := json.Unmarshal(b, &e); err != nil || e.Kind == "" || e.Message == "" || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %d %s %q is not an error body", method, path, res.StatusCode, res.Header, b)
		}
	}
	if res.Header.Get("X-Request-Id") == "" {
		t.Errorf("%s %s: no request id", method, path)
	}
	return res.StatusCode, e
}

func TestEveryRefusalHasOneForm(t *testing.T) {
	w := newWorld(t)
	jsonType := []string{"Content-Type", "application/json"}
	for _, c := range []struct {
		method, path, body string
		header             []string
		status             int
		kind               string
	}{
		{"GET", "/v1/nothing", "", nil, 404, "not-found"},
		{"GET", "/", "", nil, 404, "not-found"},
		{"PATCH", "/v1/functions", "", nil, 404, "not-found"},
		{"POST", "/v1/functions", "{", jsonType, 400, "invalid"},
		{"POST", "/v1/functions", "[]", jsonType, 400, "invalid"},
		{"POST", "/v1/functions", `{"name":7}`, jsonType, 400, "invalid"},
		{"POST", "/v1/functions", `{"name":"x","surprise":1}`, jsonType, 400, "invalid"},
		{"POST", "/v1/functions", `{"name":"x"}`, jsonType, 400, "invalid"},
		{"POST", "/v1/functions", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, jsonType, 413, "too-large"},
		{"POST", "/v1/functions", `<x/>`, []string{"Content-Type", "text/xml"}, 400, "invalid"},
		{"GET", "/v1/functions?limit=5000", "", nil, 400, "invalid"},
		{"GET", "/v1/functions/bad%20name", "", nil, 400, "invalid"},
		{"GET", "/v1/functions/absent/logs", "", nil, 404, "not-found"},
		{"GET", "/v1/functions/echo/logs?limit=x", "", nil, 400, "invalid"},
		{"GET", "/v1/functions/echo/logs?since=yesterday", "", nil, 400, "invalid"},
		{"GET", "/v1/functions/echo/logs?request=1", "", nil, 400, "invalid"},
		{"PUT", "/v1/functions/echo", `{}`, jsonType, 400, "invalid"},
		{"PUT", "/v1/functions/echo", `{"config":{"runtime":"cobol"}}`, jsonType, 400, "invalid"},
		{"PUT", "/v1/functions/echo", `{"config":{"runtime":"nodejs20"}}`, []string{"Content-Type", "application/json", "If-Match", `"99999"`}, 409, "conflict"},
		{"POST", "/v1/functions/" + strings.Repeat("x", 65) + "/invocations", "", nil, 400, "invalid"},
		{"POST", "/v1/functions/..%2fecho/invocations", "", nil, 404, "not-found"},
		{"POST", "/v1/code", "", []string{"X-Starling-Code-Sha256", "00"}, 400, "invalid"},
		{"GET", "/v1/accounts", "", nil, 403, "denied"},
		{"GET", "/v1/whoami", "", []string{"Authorization", "Bearer x"}, 401, "denied"},
		{"POST", "/v1/code", "zip", []string{"Authorization", ""}, 401, "denied"},
		{"POST", "/v1/functions", "{", []string{"Content-Type", "application/json", "Authorization", ""}, 401, "denied"},
	} {
		if status, e := w.send(t, c.method, c.path, c.body, c.header...); status != c.status || e.Kind != c.kind {
			t.Errorf("%s %s %.40q: %d %+v, not %d %s", c.method, c.path, c.body, status, e, c.status, c.kind)
		}
	}
}

func TestIfMatchGuardsAnUpdate(t *testing.T) {
	w := newWorld(t)
	req, _ := http.NewRequest("GET", w.http.URL+"/v1/functions/echo", nil)
	req.Header.Set("Authorization", "Bearer "+w.user)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	tag := res.Header.Get("ETag")
	body := `{"config":{"runtime":"python3.11","memoryMiB":256}}`
	update := []string{"Content-Type", "application/json", "If-Match", tag}
	if status, e := w.send(t, "PUT", "/v1/functions/echo", body, update...); status != 200 {
		t.Fatalf("based on the latest: %d %+v", status, e)
	}
	if status, e := w.send(t, "PUT", "/v1/functions/echo", body, update...); status != 409 {
		t.Fatalf("based on what was replaced: %d %+v", status, e)
	}
}

func TestClusterStateForAdmins(t *testing.T) {
	w := newWorld(t)
	nodes, err := w.client(w.admin).Nodes(bg)
	if err != nil || len(nodes) != 2 || nodes[0].State != "alive" || nodes[0].Roles != "manager,frontend,scheduler,host" || nodes[1].State != "down" || nodes[1].Name != "b" {
		t.Fatalf("%+v, %v", nodes, err)
	}
	ps, err := w.client(w.admin).Partitions(bg)
	if err != nil || len(ps) != 2 || ps[0].State != "owned" || ps[0].Epoch != 3 || ps[1].State != "owner-down" || ps[1].Lo != "8000000000000000" {
		t.Fatalf("%+v, %v", ps, err)
	}
}

func TestLogsAreReadAndFollowed(t *testing.T) {
	w := newWorld(t)
	rec := protocol.LogRecord{Time: time.Unix(1, 2).UTC(), Function: "echo", Version: "latest", Stream: "stdout", Line: "\x1b[31mred\u2028<&>"}
	w.lines = []protocol.LogRecord{rec, {Function: "another"}}
	c := w.client(w.user)
	n := 0
	for got, err := range c.Logs(bg, "echo", protocol.LogQuery{All: true}) {
		if n++; err != nil || got != rec {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if n != 1 {
		t.Fatalf("%d lines", n)
	}
	next, seen := 0, []string{}
	for got, err := range c.Logs(bg, "echo", protocol.LogQuery{All: true, Follow: true}) {
		if err != nil {
			if starling.KindOf(err) != starling.Unavailable || next != 2 {
				t.Fatalf("after %d: %v", next, err)
			}
			break
		}
		seen = append(seen, got.Line)
		if next++; next == 1 {
			w.more <- protocol.LogRecord{Function: "echo", Line: "live"} // comes while the reader waits
		} else {
			close(w.more) // a host is lost: the end is no good end
		}
	}
	if len(seen) != 2 || seen[1] != "live" {
		t.Fatalf("saw %q", seen)
	}
	for _, err := range w.client(w.other).Logs(bg, "nope", protocol.LogQuery{All: true}) {
		if starling.KindOf(err) != starling.NotFound {
			t.Fatalf("got %v", err)
		}
	}
}

func TestTheDocumentDescribesEveryRoute(t *testing.T) {
	w := newWorld(t)
	res, err := http.Get(w.http.URL + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var doc struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			OperationID string `json:"operationId"`
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Fatalf("%v %v", doc.OpenAPI, err)
	}
	for _, route := range []string{"get /v1/accounts", "post /v1/accounts", "get /v1/accounts/{id}", "delete /v1/accounts/{id}", "get /v1/accounts/{id}/keys", "post /v1/accounts/{id}/keys",
		"delete /v1/accounts/{id}/keys/{key}", "post /v1/code", "get /v1/functions", "post /v1/functions", "get /v1/functions/{name}", "put /v1/functions/{name}", "delete /v1/functions/{name}",
		"get /v1/functions/{name}/versions", "post /v1/functions/{name}/versions", "post /v1/functions/{name}/invocations", "get /v1/functions/{name}/logs", "get /v1/nodes", "get /v1/partitions", "get /v1/whoami"} {
		method, path, _ := strings.Cut(route, " ")
		if doc.Paths[path][method].OperationID == "" {
			t.Errorf("%s is not in the document", route)
		}
	}
	page, err := http.Get(w.http.URL + "/docs")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Body.Close()
	b, _ := io.ReadAll(page.Body)
	if !bytes.Contains(b, []byte("/v1/functions/{name}/invocations")) || bytes.Contains(b, []byte("https://")) || bytes.Contains(b, []byte("<script")) {
		t.Error("the page lacks a route or fetches something")
	}
}
