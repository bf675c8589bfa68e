package vmpool_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/fake"
	"starling/vmpool/runtimes"
)

// logs keeps every record, copied, as a sink must.
type logs struct {
	mu   sync.Mutex
	recs []vmpool.LogRecord
}

func (l *logs) Append(rec *vmpool.LogRecord) {
	c := *rec
	c.Lines = nil
	for _, line := range rec.Lines {
		c.Lines = append(c.Lines, vmpool.LogLine{Stream: line.Stream, Text: bytes.Clone(line.Text)})
	}
	l.mu.Lock()
	l.recs = append(l.recs, c)
	l.mu.Unlock()
}

// of returns the lines that carry a request, as "stream: text".
func (l *logs) of(id starling.RequestID) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, r := range l.recs {
		if r.Request == id {
			for _, line := range r.Lines {
				out = append(out, line.Stream.String()+": "+string(line.Text))
			}
		}
	}
	return out
}

// answer is a sink that keeps everything.
type answer struct {
	content string
	stream  bool
	starts  int
	bytes.Buffer
	pieces int
}

func (a *answer) Start(contentType string, streaming bool) {
	a.content, a.stream = contentType, streaming
	a.starts++
}

func (a *answer) Write(p []byte) (int, error) {
	a.pieces++
	return a.Buffer.Write(p)
}

func newID() (id starling.RequestID) {
	for i := range id {
		id[i] = byte(rand.Uint32())
	}
	return id
}

// plainPool returns an open pool of real interpreters.
func plainPool(t testing.TB, sizes map[starling.Runtime]int) *vmpool.Pool {
	t.Helper()
	dir := t.TempDir()
	if err := runtimes.Write(dir); err != nil {
		t.Fatal(err)
	}
	d := &fake.Plain{Dir: dir, Python: "/usr/bin/python3", Node: "/usr/bin/node"}
	p := vmpool.NewPool(vmpool.PoolConfig{Driver: d, Sizes: sizes, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelError}))})
	if err := p.Open(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) { w.t.Log(string(p)); return len(p), nil }

// version makes a version and writes its code; files are name, text pairs.
func version(t testing.TB, rt starling.Runtime, handler string, files ...string) (*starling.Version, string) {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(files[i+1]), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := starling.Config{Runtime: rt, Handler: handler, Env: map[string]string{"GREETING": "hej"}}.WithDefaults()
	return &starling.Version{ID: 7, Function: starling.FunctionRef{Account: "acme", Name: "fn"}, Config: c}, dir
}

func start(t testing.TB, p *vmpool.Pool, v *starling.Version, dir string, sink vmpool.LogSink) *vmpool.Instance {
	t.Helper()
	i, err := p.Start(context.Background(), vmpool.InstanceConfig{ID: starling.InstanceID{Partition: 1, Epoch: 1, Seq: 1}, Version: v, Dir: dir, Logs: sink})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func call(t testing.TB, i *vmpool.Instance, payload string, change ...func(*starling.Invocation)) (starling.Outcome, *answer, starling.RequestID) {
	t.Helper()
	inv := &starling.Invocation{ID: newID(), Version: i.Version().ID, Deadline: time.Now().Add(3 * time.Second), Payload: []byte(payload)}
	for _, f := range change {
		f(inv)
	}
	var a answer
	out, err := i.Invoke(inv, &a)
	if err != nil {
		t.Fatal(err)
	}
	return out, &a, inv.ID
}

const pythonCode = `
import os, time, json, sys
loaded = []
def echo(event, context): return event
def greet(event, context): return {"g": os.environ["GREETING"], "cwd": os.getcwd(), "api": "AWS_LAMBDA_RUNTIME_API" in os.environ}
def ctx(event, context):
    return [context.aws_request_id, context.function_name, context.function_version, context.memory_limit_in_mb,
            0 < context.get_remaining_time_in_millis() <= 3000, context.invoked_function_arn, context.client_context.custom["a"], context.log_group_name]
def fail(event, context): raise ValueError("no " + event["what"])
def raw(event, context): return b"\x00\xff" * event
def size(event, context): return len(event) if isinstance(event, bytes) else "not bytes"
def stream(event, context):
    for n in range(event):
        yield f"part {n}\n"
def half(event, context):
    yield "one"
    raise KeyError("two")
def prints(event, context):
    print("to stdout", event); print("to stderr", file=sys.stderr); sys.stdout.write("no newline")
    return 1
def flood(event, context):
    line = "x" * 1000
    for _ in range(event): print(line)
    return "done"
def longline(event, context):
    print("y" * 100000); return 1
def leave(event, context): os._exit(event)
def sysexit(event, context): sys.exit(event)
def hang(event, context): time.sleep(60)
def marshal(event, context): return {1, 2}
def nan(event, context): return float("nan")
def twice(event, context):
    import __main__ as m
    m._send(context._request, b"text/plain", b"first"); return "second"
def wrongid(event, context):
    import __main__ as m
    m._send(b"0" * 16, b"text/plain", b"forged"); return "x"
def huge(event, context):
    import __main__ as m
    os.write(4, b"\xff\xff\xff\xff\x15"); return 1
def mute(event, context):
    os.close(4); time.sleep(60)
def random(event, context):
    import random; return random.random()
def fork(event, context):
    pid = os.fork()
    if pid == 0:
        try:
            os.write(4, b"forged")
        except OSError:
            os._exit(7)
        os._exit(8)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
`

func TestPythonServesCallsAsLambdaDoes(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 2})
	big := strings.Repeat("z", 3<<20)
	mib := bytes.Repeat([]byte{0, 0xff}, 5<<19)
	for _, c := range []struct {
		handler, payload, want, content string
		status                          starling.Status
		kind                            string
	}{
		{"echo", `{"a":[1,2.5,"ü",null]}`, `{"a": [1, 2.5, "ü", null]}`, "application/json", 0, ""},
		{"echo", ``, `{}`, "application/json", 0, ""},
		{"echo", `"` + big + `"`, `"` + big + `"`, "application/json", 0, ""},
		{"raw", `3`, "\x00\xff\x00\xff\x00\xff", "application/octet-stream", 0, ""},
		{"raw", `2621440`, string(mib), "application/octet-stream", 0, ""},
		{"raw", `3145729`, "", "", starling.Unhandled, starling.ErrResponseSize},
		{"stream", `3`, "part 0\npart 1\npart 2\n", "text/plain; charset=utf-8", 0, ""},
		{"stream", `0`, "", "application/octet-stream", 0, ""},
		{"fail", `{"what":"luck"}`, "", "", starling.Handled, "ValueError"},
		{"half", `1`, "one", "text/plain; charset=utf-8", starling.Handled, "KeyError"},
		{"marshal", `1`, "", "", starling.Handled, starling.ErrMarshal},
		{"nan", `1`, "", "", starling.Handled, starling.ErrMarshal},
		{"echo", `{"a":`, "", "", starling.Handled, "Runtime.UnmarshalError"},
		{"leave", `3`, "", "", starling.Unhandled, starling.ErrExit},
		{"sysexit", `0`, "", "", starling.Unhandled, starling.ErrExit},
		{"wrongid", `1`, "", "", starling.Unhandled, starling.ErrProtocol},
		{"huge", `1`, "", "", starling.Unhandled, starling.ErrProtocol},
		{"fork", `1`, "7", "application/json", 0, ""},
	} {
		t.Run(c.handler+"/"+c.payload[:min(len(c.payload), 8)], func(t *testing.T) {
			v, dir := version(t, starling.Python311, "main."+c.handler, "main.py", pythonCode)
			i := start(t, p, v, dir, nil)
			defer i.Close()
			out, a, _ := call(t, i, c.payload)
			if out.Status != c.status || out.ErrorType != c.kind {
				t.Fatalf("ended %v %q: %s", out.Status, out.ErrorType, out.Error)
			}
			if a.String() != c.want || a.content != c.content {
				t.Fatalf("answered %.80q as %q", a.String(), a.content)
			}
			if c.status != starling.Succeeded {
				var doc struct{ ErrorMessage, ErrorType string }
				if err := json.Unmarshal(out.Error, &doc); err != nil || doc.ErrorType != c.kind || doc.ErrorMessage == "" {
					t.Fatalf("error document %s: %v", out.Error, err)
				}
			}
			if c.status == starling.Unhandled {
				_, err := i.Invoke(&starling.Invocation{ID: newID(), Deadline: time.Now().Add(time.Second)}, &answer{})
				if starling.KindOf(err) != starling.Moved {
					t.Fatalf("a faulty instance took another call: %v", err)
				}
			} else if out, a, _ := call(t, i, c.payload); out.Status != c.status || a.String() != c.want {
				t.Fatalf("the second call ended %v with %.80q", out.Status, a.String())
			}
		})
	}
}

func TestPythonContextSaysWhatLambdaSays(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 1})
	v, dir := version(t, starling.Python311, "main.ctx", "main.py", pythonCode)
	i := start(t, p, v, dir, nil)
	_, a, id := call(t, i, "{}", func(inv *starling.Invocation) { inv.ClientContext = "eyJjdXN0b20iOnsiYSI6ImIifX0=" })
	want := fmt.Sprintf(`["%s", "fn", "$LATEST", "128", true, "arn:aws:lambda:local:acme:function:fn", "b", "/starling/acme/fn"]`, id)
	if a.String() != want {
		t.Fatalf("got  %s\nwant %s", a.String(), want)
	}
}

func TestInitFailuresAreTyped(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 0, starling.NodeJS20: 0})
	for _, c := range []struct {
		rt            starling.Runtime
		handler, code string
		want          string
	}{
		{starling.Python311, "main.handler", "import nothere", starling.ErrImport},
		{starling.Python311, "other.handler", "", starling.ErrImport},
		{starling.Python311, "main.handler", "def f(:", starling.ErrSyntax},
		{starling.Python311, "main.handler", "x = 1", starling.ErrHandler},
		{starling.Python311, "main.handler", "1/0", "ZeroDivisionError"},
		{starling.Python311, "main.handler", "import os; os._exit(3)", starling.ErrExit},
		{starling.Python311, "main.handler", "import time; time.sleep(30)", starling.ErrInitTimeout},
		{starling.NodeJS20, "main.handler", "require('nothere')", starling.ErrImport},
		{starling.NodeJS20, "other.handler", "", starling.ErrImport},
		{starling.NodeJS20, "main.handler", "exports.handler = (", starling.ErrSyntax},
		{starling.NodeJS20, "main.handler", "exports.x = 1", starling.ErrHandler},
		{starling.NodeJS20, "main.handler", "null.x", "TypeError"},
		{starling.NodeJS20, "main.handler", "process.exit(3)", starling.ErrExit},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			file := map[starling.Runtime]string{starling.Python311: "main.py", starling.NodeJS20: "main.js"}[c.rt]
			v, dir := version(t, c.rt, c.handler, file, c.code)
			_, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir, InitTimeout: 1500 * time.Millisecond})
			if starling.KindOf(err) != starling.Failed || starling.ReasonOf(err) != c.want {
				t.Fatalf("got %v %q: %v", starling.KindOf(err), starling.ReasonOf(err), err)
			}
		})
	}
}

const nodeCode = `
exports.echo = async (event) => event;
exports.sync = (event) => ({ sync: event });
exports.callback = (event, context, done) => { setTimeout(() => done(null, { cb: event }), 5); };
exports.callfail = (event, context, done) => { done(new RangeError('cb')); };
exports.fail = async (event) => { throw new TypeError('no ' + event.what); };
exports.nothing = async () => {};
exports.raw = async (n) => Buffer.alloc(n, 0xff);
exports.stream = async function* (n) { for (let i = 0; i < n; i++) yield 'part ' + i + '\n'; };
exports.response = awslambda.streamifyResponse(async (event, stream, context) => {
  stream.setContentType('text/html'); stream.write('<p>'); stream.write('hej'); stream.end();
});
exports.leave = async (n) => process.exit(n);
exports.reject = async () => { Promise.reject(new Error('lost')); await new Promise((r) => setTimeout(r, 500)); };
exports.forever = (event, context, done) => {};
exports.marshal = async () => 10n;
exports.ctx = async (event, c) => [c.functionName, c.functionVersion, c.memoryLimitInMB, c.awsRequestId.length, c.getRemainingTimeInMillis() > 0, process.env.GREETING, process.cwd() === event];
exports.timer = async (event) => { const was = global.fired || 0; setTimeout(() => { global.fired = was + 1; }, 1); await new Promise((r) => setTimeout(r, 3)); return global.fired; };
exports.print = async () => { console.log('out'); console.error('err'); return 1; };
`

func TestNodeServesCallsAsLambdaDoes(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.NodeJS20: 2})
	big := strings.Repeat("z", 2<<20)
	for _, c := range []struct {
		handler, payload, want, content string
		status                          starling.Status
		kind                            string
	}{
		{"echo", `{"a":[1,2.5,"ü",null]}`, `{"a":[1,2.5,"ü",null]}`, "application/json", 0, ""},
		{"echo", `"` + big + `"`, `"` + big + `"`, "application/json", 0, ""},
		{"sync", `1`, `{"sync":1}`, "application/json", 0, ""},
		{"callback", `1`, `{"cb":1}`, "application/json", 0, ""},
		{"callfail", `1`, "", "", starling.Handled, "RangeError"},
		{"nothing", `1`, "null", "application/json", 0, ""},
		{"raw", `3`, "\xff\xff\xff", "application/octet-stream", 0, ""},
		{"stream", `3`, "part 0\npart 1\npart 2\n", "text/plain; charset=utf-8", 0, ""},
		{"response", `3`, "<p>hej", "text/html", 0, ""},
		{"fail", `{"what":"luck"}`, "", "", starling.Handled, "TypeError"},
		{"marshal", `1`, "", "", starling.Handled, starling.ErrMarshal},
		{"forever", `1`, "null", "application/json", 0, ""},
		{"reject", `1`, "", "", starling.Handled, "Runtime.UnhandledPromiseRejection"},
		{"leave", `3`, "", "", starling.Unhandled, starling.ErrExit},
		{"timer", `1`, "1", "application/json", 0, ""},
	} {
		t.Run(c.handler, func(t *testing.T) {
			v, dir := version(t, starling.NodeJS20, "index."+c.handler, "index.js", nodeCode)
			i := start(t, p, v, dir, nil)
			defer i.Close()
			out, a, _ := call(t, i, c.payload)
			if out.Status != c.status || out.ErrorType != c.kind || a.String() != c.want || a.content != c.content {
				t.Fatalf("ended %v %q %s, answered %.80q as %q", out.Status, out.ErrorType, out.Error, a.String(), a.content)
			}
		})
	}
	t.Run("module", func(t *testing.T) {
		v, dir := version(t, starling.NodeJS20, "index.handler", "index.mjs", "import fs from 'fs'; export const handler = async () => 'esm';")
		if _, a, _ := call(t, start(t, p, v, dir, nil), "1"); a.String() != `"esm"` {
			t.Fatalf("got %q", a.String())
		}
	})
	t.Run("package type module", func(t *testing.T) {
		v, dir := version(t, starling.NodeJS20, "index.handler", "package.json", `{"type":"module"}`, "index.js", "export const handler = async () => 'esm';")
		if _, a, _ := call(t, start(t, p, v, dir, nil), "1"); a.String() != `"esm"` {
			t.Fatalf("got %q", a.String())
		}
	})
	t.Run("many calls", func(t *testing.T) {
		v, dir := version(t, starling.NodeJS20, "index.echo", "index.js", nodeCode)
		i := start(t, p, v, dir, nil)
		for n := range 200 {
			if _, a, _ := call(t, i, fmt.Sprint(n)); a.String() != fmt.Sprint(n) {
				t.Fatalf("call %d answered %q", n, a.String())
			}
		}
	})
	t.Run("context", func(t *testing.T) {
		v, dir := version(t, starling.NodeJS20, "index.ctx", "index.js", nodeCode)
		_, a, _ := call(t, start(t, p, v, dir, nil), fmt.Sprintf("%q", dir))
		if a.String() != `["fn","$LATEST","128",36,true,"hej",true]` {
			t.Fatalf("got %s", a.String())
		}
	})
}

func TestTimeoutEndsTheInstance(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 1})
	for _, handler := range []string{"hang", "mute"} {
		v, dir := version(t, starling.Python311, "main."+handler, "main.py", pythonCode)
		v.Config.TimeoutMS = 300
		sink := &logs{}
		ended := make(chan string, 1)
		i, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir, Logs: sink, Ended: func(_ *vmpool.Instance, why string) { ended <- why }})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		out, _, id := call(t, i, "1", func(inv *starling.Invocation) { inv.Deadline = time.Now().Add(300 * time.Millisecond) })
		took := time.Since(begun)
		want, reason := fmt.Sprintf(`{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: %s Error: Task timed out after 0.30 seconds"}`, id), starling.ErrTimedOut
		if handler == "mute" {
			want, reason = fmt.Sprintf(`{"errorType":"Runtime.ProtocolError","errorMessage":"RequestId: %s Error: The runtime closed its connection in the middle of a call"}`, id), starling.ErrProtocol
		} else if took < 300*time.Millisecond {
			t.Errorf("the call took %v", took)
		}
		if out.Status != starling.Unhandled || string(out.Error) != want {
			t.Errorf("%s: ended %v %q\n got %s\nwant %s", handler, out.Status, out.ErrorType, out.Error, want)
		}
		if why := <-ended; why != reason {
			t.Errorf("the instance ended by %q", why)
		}
		if lines := sink.of(id); len(lines) != 4 || !strings.Contains(lines[1], "Task timed out") && handler == "hang" {
			t.Errorf("logged %q", lines)
		}
	}
}

func TestOutputBelongsToItsCall(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 1})
	v, dir := version(t, starling.Python311, "main.prints", "main.py", pythonCode)
	sink := &logs{}
	i := start(t, p, v, dir, sink)
	for n := range 50 {
		out, _, id := call(t, i, fmt.Sprint(n), func(inv *starling.Invocation) { inv.Tail = n%2 == 0 })
		got := sink.of(id)
		if len(got) != 6 {
			t.Fatalf("call %d logged %q", n, got)
		}
		report := fmt.Sprintf("platform: REPORT RequestId: %s\tDuration: %.2f ms\tBilled Duration: ", id, float64((out.Run+5*time.Microsecond)/(10*time.Microsecond))/100)
		want := map[string]bool{"platform: START RequestId: " + id.String() + " Version: $LATEST": true, fmt.Sprintf("stdout: to stdout %d", n): true,
			"stderr: to stderr": true, "stdout: no newline": true, "platform: END RequestId: " + id.String(): true}
		for _, line := range got {
			if !want[line] && !strings.HasPrefix(line, report) {
				t.Fatalf("call %d logged %q, wanted %q", n, line, report)
			}
		}
		if !strings.HasPrefix(got[0], "platform: START") || !strings.HasPrefix(got[5], "platform: REPORT") {
			t.Fatalf("call %d logged in the wrong order: %q", n, got)
		}
		if strings.Contains(got[5], "Init Duration") != (n == 0) {
			t.Fatalf("call %d reported %q", n, got[5])
		}
		if tail := string(out.LogTail); (n%2 == 0) != (strings.Contains(tail, "to stdout") && strings.Contains(tail, "REPORT")) {
			t.Fatalf("call %d has tail %q", n, tail)
		}
	}
}

func TestFloodsAreCutAndTheCallCompletes(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 1})
	v, dir := version(t, starling.Python311, "main.flood", "main.py", pythonCode)
	sink := &logs{}
	i := start(t, p, v, dir, sink)
	out, a, id := call(t, i, "2000", func(inv *starling.Invocation) { inv.Tail = true })
	if out.Status != starling.Succeeded || a.String() != `"done"` {
		t.Fatalf("ended %v %q", out.Status, out.ErrorType)
	}
	size := 0
	for _, line := range sink.of(id) {
		size += len(line)
	}
	if size > starling.LogCallMax+8<<10 || size < starling.LogCallMax-8<<10 {
		t.Errorf("kept %d bytes", size)
	}
	if len(out.LogTail) > starling.LogTailMax || !bytes.Contains(out.LogTail, []byte("over the limit")) {
		t.Errorf("tail of %d bytes: %.200q", len(out.LogTail), out.LogTail)
	}
	v, dir = version(t, starling.Python311, "main.longline", "main.py", pythonCode)
	i = start(t, p, v, dir, sink)
	_, _, id = call(t, i, "1")
	if got := sink.of(id); len(got) != 4 || len(got[1]) != len("stdout: ")+starling.LogLineMax {
		t.Errorf("a long line gave %d lines", len(got))
	}
}

func TestAnswersTwiceAreNoticedAndHarmOnlyTheInstance(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 1})
	v, dir := version(t, starling.Python311, "main.twice", "main.py", pythonCode)
	i := start(t, p, v, dir, nil)
	out, a, _ := call(t, i, "1")
	if out.Status != starling.Succeeded || a.String() != "first" {
		t.Fatalf("ended %v with %q", out.Status, a.String())
	}
	// The second answer either came with the first or meets the next call.
	inv := &starling.Invocation{ID: newID(), Deadline: time.Now().Add(time.Second), Payload: []byte("1")}
	out, err := i.Invoke(inv, &answer{})
	if err == nil && out.ErrorType != starling.ErrProtocol || err != nil && starling.KindOf(err) != starling.Moved {
		t.Fatalf("the next call ended %v %q, %v", out.Status, out.ErrorType, err)
	}
}

func TestClonesDrawTheirOwnRandomNumbers(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Python311: 3})
	v, dir := version(t, starling.Python311, "main.random", "main.py", pythonCode)
	seen := map[string]bool{}
	for range 3 {
		_, a, _ := call(t, start(t, p, v, dir, nil), "1")
		seen[a.String()] = true
	}
	if len(seen) != 3 {
		t.Fatalf("three instances drew %v", seen)
	}
}

// goBootstrap builds a program of testdata as a bootstrap.
func goBootstrap(t testing.TB, pkg string) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bootstrap"), pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build bootstrap: %v\n%s", err, out)
	}
	return dir
}
