package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"starling"
	"starling/bench"
	"starling/frontend/protocol"
	"starling/vpcproxy/capture"
)

// cluster is the HTTP interface of a frontend with functions in memory, as far as the command line uses it.
type fakeFrontend struct {
	t         *testing.T
	functions map[string]starling.Version
	zips      map[starling.CodeHash][]byte
	refuse    *protocol.ErrorBody // answer everything with this
	status    int
}

func (f *fakeFrontend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(v any) { json.NewEncoder(w).Encode(v) }
	fail := func(status int, kind starling.Kind, message string) {
		w.WriteHeader(status)
		answer(protocol.ErrorBody{Kind: kind.String(), Message: message})
	}
	if f.refuse != nil {
		w.WriteHeader(f.status)
		answer(f.refuse)
		return
	}
	if r.Header.Get("Authorization") != "Bearer stk_good" {
		fail(401, starling.Denied, "this key is not known")
		return
	}
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/functions/"), "/")
	v, known := f.functions[name]
	switch route := r.Method + " " + r.URL.Path; {
	case route == "GET /v1/whoami":
		answer(protocol.Identity{Account: "acme", Role: starling.KeyUser, KeyID: "good", Cluster: "test"})
	case route == "GET /v1/nodes":
		answer(protocol.Page[protocol.Node]{Items: []protocol.Node{{Node: starling.Node{ID: 1, Name: "one", Addr: "127.0.0.1:1"}, Roles: "manager,host", State: "alive"}}})
	case route == "GET /v1/partitions":
		answer(protocol.Page[protocol.Partition]{Items: []protocol.Partition{{ID: 3, Owner: 1, Epoch: 2, State: "owned"}, {ID: 4, State: "unowned"}}})
	case route == "POST /v1/code":
		b, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(b)) {
			f.t.Errorf("upload of %d bytes, said %d: %v", len(b), r.ContentLength, err)
		}
		f.zips["h1"] = b
		answer(protocol.Code{Hash: "h1", Size: int64(len(b))})
	case route == "POST /v1/functions", r.Method == "PUT":
		var spec protocol.FunctionSpec
		if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
			f.t.Error(err)
		}
		if r.Method == "PUT" && !known {
			fail(404, starling.NotFound, "no function "+name)
			return
		}
		v = starling.Version{ID: 7, Function: starling.FunctionRef{Account: "acme", Name: spec.Name}, Config: *spec.Config, Code: spec.Code}
		f.functions[string(spec.Name)] = v
		answer(v)
	case route == "GET /v1/functions":
		page := protocol.Page[starling.Version]{}
		for _, v := range f.functions {
			page.Items = append(page.Items, v)
		}
		answer(page)
	case !known:
		fail(404, starling.NotFound, "no function "+name)
	case rest == "invocations":
		b, _ := io.ReadAll(r.Body)
		w.Header().Set(protocol.HeaderRequestID, "0b1946ac-92d2-4cd5-9b5e-3a6f6d3f4a51")
		w.Header().Set(protocol.HeaderVersion, "latest")
		w.Header().Set(protocol.HeaderServerTiming, "run;dur=1.5")
		if string(b) == `"fail"` {
			w.Header().Set(protocol.HeaderFunctionError, "Handled")
			w.Header().Set(protocol.HeaderErrorType, "ValueError")
			w.WriteHeader(502)
			io.WriteString(w, `{"errorMessage":"no","errorType":"ValueError"}`)
			return
		}
		w.Write(b)
	case rest == "logs":
		answer(protocol.LogRecord{Function: "hello", Stream: "stdout", Line: "\x1b[2Jboo"})
	case r.Method == "DELETE":
		delete(f.functions, name)
	default:
		fail(404, starling.NotFound, "no route "+route)
	}
}

// cli runs one command line against a frontend of its own and returns what it wrote.
type cli struct {
	t        *testing.T
	frontend *fakeFrontend
	env      []string
	home     string
}

func newCLI(t *testing.T) *cli {
	f := &fakeFrontend{t: t, functions: map[string]starling.Version{}, zips: map[starling.CodeHash][]byte{}}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	home := t.TempDir()
	return &cli{t, f, []string{"HOME=" + home, "STARLING_SERVER=" + srv.URL, "STARLING_KEY=stk_good"}, home}
}

func (c *cli) run(in string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(context.Background(), newApp(strings.NewReader(in), &o, &e, c.env), args)
	return code, o.String(), e.String()
}

func (c *cli) must(args ...string) string {
	c.t.Helper()
	code, out, errs := c.run("", args...)
	if code != 0 {
		c.t.Fatalf("starling %v: exit %d: %s", args, code, errs)
	}
	return out
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "hello")
	for name, body := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDeployInvokeAndDelete(t *testing.T) {
	c := newCLI(t)
	dir := folder(t, map[string]string{"main.py": "def handler(e, c): return e", "lib/x.py": "", "__pycache__/x.pyc": "junk", ".git/config": "junk",
		"starling.yaml": "memoryMiB: 256\nenv: {A: one, B: two}\n"})
	out := c.must("deploy", dir, "--env", "B=flag", "--timeout", "5000")
	if !strings.Contains(out, "Created hello: python3.11") {
		t.Errorf("said %q", out)
	}
	v := c.frontend.functions["hello"]
	if v.Config.MemoryMiB != 256 || v.Config.Env["A"] != "one" || v.Config.Env["B"] != "flag" || v.Config.Handler != "main.handler" || v.Config.TimeoutMS != 5000 {
		t.Errorf("deployed %+v", v.Config)
	}
	z, err := zip.NewReader(bytes.NewReader(c.frontend.zips["h1"]), int64(len(c.frontend.zips["h1"])))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range z.File {
		names = append(names, f.Name)
	}
	if got := strings.Join(names, " "); got != "lib/x.py main.py" {
		t.Errorf("packed %q", got)
	}
	first := c.frontend.zips["h1"]
	if out := c.must("deploy", dir, "-o", "json"); !strings.Contains(out, `"created": false`) {
		t.Errorf("second deploy: %s", out)
	}
	if !bytes.Equal(first, c.frontend.zips["h1"]) {
		t.Error("the same files gave another zip")
	}

	if out := c.must("invoke", "hello", `{"a":1}`); out != `{"a":1}` {
		t.Errorf("answer %q", out)
	}
	payload := filepath.Join(t.TempDir(), "p")
	os.WriteFile(payload, []byte("from a file"), 0o600)
	if out := c.must("invoke", "hello", "--file", payload); out != "from a file" {
		t.Errorf("answer %q", out)
	}
	if code, out, _ := c.run("from stdin", "invoke", "hello", "-"); code != 0 || out != "from stdin" {
		t.Errorf("exit %d, answer %q", code, out)
	}
	code, out, errs := c.run("", "invoke", "hello", `"fail"`)
	if code != exitFailed || out != "" || !strings.Contains(errs, "ValueError") {
		t.Errorf("failing function: exit %d, out %q, err %q", code, out, errs)
	}
	var call invocation
	if err := json.Unmarshal([]byte(c.must("invoke", "hello", "1", "-o", "json")), &call); err != nil || call.Payload != "1" || call.Timing["run"] != 1.5 || call.Status != "succeeded" {
		t.Errorf("structured answer %+v, %v", call, err)
	}
	if out := c.must("logs", "hello"); !strings.Contains(out, `\x1b[2Jboo`) || strings.Contains(out, "\x1b") {
		t.Errorf("log line %q", out)
	}
	if out := c.must("functions", "-o", "yaml"); !strings.Contains(out, "runtime: python3.11") {
		t.Errorf("listed %q", out)
	}
	c.must("delete", "hello")
	if code, _, _ := c.run("", "invoke", "hello"); code != exitNotFound {
		t.Errorf("exit %d after delete", code)
	}
}

func TestBenchMeasuresFunctions(t *testing.T) {
	c := newCLI(t)
	dir := folder(t, map[string]string{"index.js": ""})
	c.must("deploy", dir)
	out := filepath.Join(t.TempDir(), "results", "warm")
	report := c.must("bench", "warm", "--function", "hello", "-c", "2", "-d", "100ms", "--warmup", "20ms", "--no-floor", "--out", out)
	if !strings.Contains(report, "served/s") || strings.Contains(report, "failed:") {
		t.Errorf("report %q", report)
	}
	b, err := os.ReadFile(out + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "stk_good") {
		t.Error("the report holds the key")
	}
	if _, err := os.Stat(out + ".html"); err != nil {
		t.Error(err)
	}

	var doc struct{ Results []bench.Result }
	cold := c.must("bench", "cold", "--package", dir, "-n", "5", "--rate", "100", "--no-floor", "-o", "json")
	if err := json.Unmarshal([]byte(cold), &doc); err != nil || len(doc.Results) != 1 {
		t.Fatalf("%v: %s", err, cold)
	}
	if r := doc.Results[0]; r.Calls != 5 || r.Phases["run"].P50 != 1500 {
		t.Errorf("cold: %+v", r)
	}
	if len(c.frontend.functions) != 1 {
		t.Errorf("%d functions are left", len(c.frontend.functions))
	}
	burst := c.must("bench", "burst", "--function", "hello", "--burst", "10", "--rate", "100", "-d", "300ms", "--warmup", "0", "--no-floor", "-o", "json")
	if err := json.Unmarshal([]byte(burst), &doc); err != nil || doc.Results[0].Calls != 30 {
		t.Errorf("burst: %v, %+v", err, doc.Results)
	}
}

func TestTopShowsNodesAndWhatChanges(t *testing.T) {
	c := newCLI(t)
	n := 0
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/functions" {
			fmt.Fprintln(w, `[{"function":{"account":"acme","name":"quiet"},"version":4},
				{"function":{"account":"acme","name":"resize"},"version":3,"wanted":7,"ready":5,"starting":2,"waiting":9,"cold":0.125,"held":"Runtime.ExitError"}]`)
			return
		}
		n++
		fmt.Fprintf(w, "process_cpu_seconds_total %d\nstarling_calls_total %d\nstarling_still_total 5\n", n, n*100)
	}))
	defer admin.Close()
	out := c.must("top", "--once", "--every", "100ms", "--admin", admin.URL+",http://127.0.0.1:1")
	for _, want := range []string{"one", "alive", "starling_calls_total", "connection refused", "acme/resize", "12.5%", "Runtime.ExitError"} {
		if !strings.Contains(out, want) {
			t.Errorf("top does not show %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "starling_still_total") {
		t.Error("top shows a counter that does not move")
	}
	if out := c.must("partitions"); !strings.Contains(out, "p3") || !strings.Contains(out, "unowned") {
		t.Errorf("partitions:\n%s", out)
	}
}

func TestExitCodesFollowTheKind(t *testing.T) {
	c := newCLI(t)
	for kind, want := range exitCodes {
		c.frontend.refuse, c.frontend.status = &protocol.ErrorBody{Kind: kind.String(), Message: "because"}, 500
		code, _, errs := c.run("", "functions")
		if code != want || !strings.Contains(errs, "because") {
			t.Errorf("%v: exit %d, want %d; said %q", kind, code, want, errs)
		}
	}
	c.frontend.refuse, c.frontend.status = &protocol.ErrorBody{Kind: "overloaded", Reason: "QueueFull", Message: "later"}, 429
	code, _, errs := c.run("", "functions", "-o", "json")
	var doc struct{ Error struct{ Kind, Reason string } }
	if err := json.Unmarshal([]byte(errs), &doc); err != nil || code != exitOverloaded || doc.Error.Reason != "QueueFull" {
		t.Errorf("exit %d, %q", code, errs)
	}
}

func TestMistakesAreToldWithAWayOut(t *testing.T) {
	c := newCLI(t)
	empty := folder(t, map[string]string{"README": "no code"})
	for _, m := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"nonsense"}, exitUsage, "nonsense"},
		{[]string{"invoke"}, exitUsage, "starling invoke NAME"},
		{[]string{"functions", "--nope"}, exitUsage, "--nope"},
		{[]string{"functions", "-o", "xml"}, exitUsage, "table, json or yaml"},
		{[]string{"deploy", "/nowhere"}, exitUsage, "folder or zip"},
		{[]string{"deploy", empty}, exitUsage, "guess the runtime"},
		{[]string{"deploy", empty, "--runtime", "cobol"}, exitUsage, "python3.11"},
		{[]string{"invoke", "hello", "{}", "--file", "x"}, exitUsage, "not both"},
		{[]string{"logs", "hello", "--since", "yesterday"}, exitUsage, "15m"},
		{[]string{"functions", "--key", "stk_bad"}, exitDenied, "flag --key"},
		{[]string{"functions", "--server", "http://127.0.0.1:1"}, exitUnavailable, "starling up"},
		{[]string{"functions", "--profile", "nope"}, exitUsage, "login --profile nope"},
		{[]string{"bench", "warm"}, exitUsage, "--function"},
		{[]string{"invoke", "hello", "--quic"}, exitUsage, "--pin"},
		{[]string{"invoke", "hello", "--quic", "--pin", "abc"}, exitUsage, "64 hex digits"},
		{[]string{"invoke", "hello", "--quic", "--ca", "/nowhere"}, exitUsage, "--ca"},
	} {
		code, _, errs := c.run("", m.args...)
		if code != m.code || !strings.Contains(errs, m.says) {
			t.Errorf("%v: exit %d, want %d; said %q, want %q", m.args, code, m.code, errs, m.says)
		}
	}
}

func TestSettingsTellWhereTheyComeFrom(t *testing.T) {
	c := newCLI(t)
	server := strings.TrimPrefix(c.env[1], "STARLING_SERVER=")
	c.env = []string{"HOME=" + c.home}
	if code, _, errs := c.run("stk_good\n", "login", "--server", server); code != 0 {
		t.Fatalf("login: %s", errs)
	}
	if code, _, errs := c.run("stk_wrong\n", "login", "--server", server, "--profile", "bad"); code != exitDenied {
		t.Fatalf("login with a wrong key: exit %d, %s", code, errs)
	}
	path := strings.TrimSpace(c.must("config", "path"))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	b, _ := os.ReadFile(path)
	if err := os.WriteFile(path, append(b, "node:\n  pool: 9\n  drain: 5s\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	c.env = append(c.env, "STARLING_NODE_ZONE=z1", "STARLING_QUIC_ADDR=1.2.3.4:5")
	c.must("whoami")
	var list []shownSetting
	if err := json.Unmarshal([]byte(c.must("config", "show", "-o", "json", "--account", "acme")), &list); err != nil {
		t.Fatal(err)
	}
	got := map[string]shownSetting{}
	for _, s := range list {
		got[s.Key] = s
	}
	for key, want := range map[string][2]string{
		"server": {server, "profile default of " + path}, "key": {"stk_go...", "profile default of " + path}, "node.pool": {"9", "file " + path}, "node.drain": {"5s", "file " + path},
		"node.zone": {"z1", "environment STARLING_NODE_ZONE"}, "quic-addr": {"1.2.3.4:5", "environment STARLING_QUIC_ADDR"}, "account": {"acme", "flag --account"}, "node.partitions": {"64", "default"}} {
		if s := got[key]; s.Value != want[0] || s.From != want[1] {
			t.Errorf("%s is %q from %q, want %q", key, s.Value, s.From, want)
		}
	}
	os.WriteFile(path, []byte("sever: x\n"), 0o600)
	if code, _, errs := c.run("", "config", "show"); code != exitUsage || !strings.Contains(errs, "sever") {
		t.Errorf("misspelt setting: exit %d, %q", code, errs)
	}
}

func TestEveryCommandHasHelpAndAnExample(t *testing.T) {
	c := newCLI(t)
	root := newRootCommand(newApp(nil, io.Discard, io.Discard, c.env))
	for _, cmd := range root.Commands() {
		if cmd.Short == "" || !cmd.HasSubCommands() && cmd.Example == "" && cmd.Name() != "completion" && cmd.Name() != "help" {
			t.Errorf("%s has no help or no example", cmd.Name())
		}
		if out := c.must(cmd.Name(), "--help"); out == "" {
			t.Errorf("%s --help says nothing", cmd.Name())
		}
	}
	if out := c.must("completion", "bash"); !strings.Contains(out, "starling") {
		t.Error("no completion")
	}
}

func TestDoctorTellsEveryCheck(t *testing.T) {
	c := newCLI(t)
	code, out, errs := c.run("", "doctor", "-o", "json", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0")
	var list []finding
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s %s", err, out, errs)
	}
	seen := map[string]bool{}
	failed := false
	for _, f := range list {
		seen[f.Name] = true
		failed = failed || f.Level == levelFail
		if f.Level == levelFail && f.Fix == "" {
			t.Errorf("%s fails and has no fix", f.Name)
		}
	}
	for _, name := range []string{"kernel", "namespaces", "cgroups", "seccomp", "landlock", "disk", "clock", "ports", "runtime python3.11", "runtime nodejs20", "limits", "memory", "idle cores"} {
		if !seen[name] {
			t.Errorf("nothing about %s", name)
		}
	}
	if failed != (code == exitUnavailable) || !failed && code != 0 {
		t.Errorf("exit %d, failed %v", code, failed)
	}
}

// The doctor says what would catch functions' connections, and whether what the operator wants can.
func TestDoctorSaysWhatCatchesConnections(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, means := range []capture.Means{capture.Lookup, capture.TPROXY} {
		_, out, errs := newCLI(t).run("", "doctor", "-o", "json", "--capture", string(means), "--data", t.TempDir())
		var list []finding
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatalf("%v: %s %s", err, out, errs)
		}
		i := slices.IndexFunc(list, func(f finding) bool { return f.Name == "networks of functions" })
		if i < 0 || !strings.Contains(list[i].Detail, means.String()) || (list[i].Level == levelOK) != (means.Try() == nil) {
			t.Errorf("--capture %s: %+v", means, list)
		}
	}
}

func TestErrorsKeepTheirKindThroughWrapping(t *testing.T) {
	var e bytes.Buffer
	a := newApp(nil, &e, &e, nil)
	if code := a.finish(quiet{starling.Errorf(starling.Failed, "invoke", "no")}); code != exitFailed || e.Len() != 0 {
		t.Errorf("exit %d, said %q", code, e.String())
	}
	if code := a.finish(errors.New("odd \x1b[31m")); code != exitInternal || strings.Contains(e.String(), "\x1b") {
		t.Errorf("exit %d, said %q", code, e.String())
	}
}
