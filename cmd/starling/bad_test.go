package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// TestBadInput runs one real node and gives it everything that can be wrong: requests, packages, functions and
// callers. Each wrong thing must get its own typed answer, must leave the node serving others, and nothing may be left behind.
func TestBadInput(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a real node and its time limits take half a minute")
	}
	t.Parallel()
	c := startCluster(t, 1)
	w := &badWorld{t: t, testCluster: c, node: c.nodes[0], bootstraps: buildBootstraps(t, "rawbootstrap", "sdkstream")}
	w.deploy(t, "echo", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    return event\n"}, nil)
	t.Run("requests", w.requests)
	t.Run("packages", w.packages)
	t.Run("commands", w.commands)
	t.Run("joins", w.joins)
	t.Run("words", w.words)
	t.Run("streams", w.streams)
	t.Run("faults", func(t *testing.T) {
		w.pythonFaults(t)
		w.nodeFaults(t)
		w.bootstrapFaults(t)
		w.callers(t)
	})
	w.echoes(t)
	t.Run("metrics", w.metrics)
	w.nothingLeft(t)
}

// A badWorld is a cluster of one node and what the cases share.
type badWorld struct {
	t *testing.T
	*testCluster
	node       *testNode
	bootstraps map[string][]byte // of the programs in testdata
}

// buildBootstraps compiles the programs in testdata as functions of runtime provided.
func buildBootstraps(t *testing.T, names ...string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range names {
		path := filepath.Join(t.TempDir(), name)
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "lambda.norpc", "-ldflags", "-s -w", "-o", path, "./testdata/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, text)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

// zipOf packs files, all executable.
func zipOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		f, err := z.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(f, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deploy makes a function of files; change may set more of its configuration.
func (w *badWorld) deploy(t *testing.T, name string, rt starling.Runtime, files map[string]string, change func(*starling.Config)) {
	t.Helper()
	code, err := w.node.http.PutCode(t.Context(), bytes.NewReader(zipOf(t, files)), -1)
	if err != nil {
		t.Fatal(err)
	}
	config := starling.Config{Runtime: rt}
	if change != nil {
		change(&config)
	}
	if _, err := w.node.http.CreateFunction(t.Context(), protocol.FunctionSpec{Name: starling.FunctionName(name), Config: &config, Code: code.Hash}); err != nil {
		t.Fatal(err)
	}
}

// A reply is an HTTP answer, read to its end.
type reply struct {
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
	took    time.Duration
}

// errorType returns the type of a function error, from header or trailer.
func (r *reply) errorType() string {
	return r.trailer.Get(protocol.HeaderErrorType) + r.header.Get(protocol.HeaderErrorType)
}

func (r *reply) String() string {
	return fmt.Sprintf("status %d, error type %q, after %v: %.300s", r.status, r.errorType(), r.took.Round(time.Millisecond), r.body)
}

// send makes one request with the user's key; header lines replace the defaults ("Authorization: " takes it away).
func (w *badWorld) send(t *testing.T, method, path string, body io.Reader, header ...string) *reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, w.node.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.key)
	for _, h := range header {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
		if v == "" {
			req.Header.Del(k)
		}
	}
	began := time.Now()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s %s: read answer: %v", method, path, err)
	}
	return &reply{res.StatusCode, res.Header, res.Trailer, text, time.Since(began)}
}

func (w *badWorld) call(t *testing.T, function, payload string, header ...string) *reply {
	t.Helper()
	return w.send(t, "POST", "/v1/functions/"+function+"/invocations", strings.NewReader(payload), header...)
}

// refused checks a refusal of the platform.
func refused(t *testing.T, r *reply, status int, kind starling.Kind, reason string) {
	t.Helper()
	var e protocol.ErrorBody
	if err := json.Unmarshal(r.body, &e); err != nil {
		t.Errorf("%s: the body is no JSON: %v", r, err)
		return
	}
	if r.status != status || e.Kind != kind.String() || e.Reason != reason {
		t.Errorf("%s; want status %d, kind %s, reason %q", r, status, kind, reason)
	}
	if e.Message == "" || r.header.Get("Content-Type") != "application/json" || r.header.Get(protocol.HeaderRequestID) == "" {
		t.Errorf("%s: without a message, its type or a request id; header %v", r, r.header)
	}
	if kind == starling.Overloaded && r.header.Get("Retry-After") == "" {
		t.Errorf("%s: without Retry-After", r)
	}
}

// failed checks the answer of a function that failed and returns its document.
func failed(t *testing.T, r *reply, word, errorType, message string) protocol.FunctionError {
	t.Helper()
	var e protocol.FunctionError
	if err := json.Unmarshal(r.body, &e); err != nil {
		t.Errorf("%s: the body is no JSON: %v", r, err)
		return e
	}
	if r.status != http.StatusBadGateway || r.header.Get(protocol.HeaderFunctionError) != word || r.errorType() != errorType || e.Type != errorType || !strings.Contains(e.Message, message) {
		t.Errorf("%s (%s); want 502 %s %s with %q", r, r.header.Get(protocol.HeaderFunctionError), word, errorType, message)
	}
	return e
}

// echoes checks that another function of the node still answers.
func (w *badWorld) echoes(t *testing.T) {
	t.Helper()
	if r := w.call(t, "echo", `{"n":1}`); r.status != http.StatusOK || string(r.body) != `{"n": 1}` {
		t.Errorf("the neighbour does not answer: %s", r)
	}
}

// cgroups lists the sandboxes' cgroups of the node: its tag ends with its port.
func (n *testNode) cgroups(t *testing.T) []string {
	t.Helper()
	_, port, _ := strings.Cut(n.quic, ":")
	var all []string
	for _, controller := range []string{"pids", "memory", "cpu", "freezer", "."} {
		list, err := filepath.Glob("/sys/fs/cgroup/" + controller + "/starling-*-" + port + "/*/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			all = list // every hierarchy holds the same
		}
	}
	return all
}

// nothingLeft waits until the only sandboxes are those of the pool and of healthy instances, stops the node and
// looks for what it left.
func (w *badWorld) nothingLeft(t *testing.T) {
	t.Helper()
	var groups, want int
	settled := within(20*time.Second, func() bool {
		want = int(w.node.sum(t, "starling_pool_ready") + w.node.sum(t, "starling_instances"))
		groups = len(w.node.cgroups(t))
		return groups == want && groups > 0
	})
	if !settled {
		t.Errorf("%d sandboxes have a cgroup, but the pool and the instances are %d", groups, want)
	}
	for _, name := range []string{"starling_dispatch_waiting", "starling_frontend_in_flight", "starling_frontend_payload_bytes", "starling_host_calls_in_flight"} {
		if n := w.node.sum(t, name); n != 0 {
			t.Errorf("%s is %v after all calls", name, n)
		}
	}
	w.node.stop()
	if left := w.node.cgroups(t); len(left) > 0 {
		t.Errorf("left after the node stopped: %v", left)
	}
	if text, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(text), w.node.dir) {
		t.Errorf("mounts of the node are left (%v)", err)
	}
}

// within polls ok until it holds or d has passed.
func within(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return ok()
}
