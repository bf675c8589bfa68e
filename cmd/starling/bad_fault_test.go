package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

// A fault is a function that does something bad, and what its caller must be told.
type fault struct {
	name      string
	code      string
	handler   string // the default when empty
	payload   string // {} when empty
	timeoutMS int
	memoryMiB int
	word      string // Handled or Unhandled
	errorType string
	message   string
	again     bool   // call it twice
	logged    string // must be in the function's log
	more      func(t *testing.T, r *reply, e protocol.FunctionError)
}

// run deploys each function and calls it in parallel with the others.
func (w *badWorld) runFaults(t *testing.T, language string, rt starling.Runtime, file string, faults []fault) {
	for i, f := range faults {
		t.Run(language+" "+f.name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("%s-%d", language, i)
			w.deploy(t, name, rt, map[string]string{file: f.code}, func(c *starling.Config) { c.Handler, c.TimeoutMS, c.MemoryMiB = f.handler, f.timeoutMS, f.memoryMiB })
			if f.payload == "" {
				f.payload = "{}"
			}
			r := w.call(t, name, f.payload)
			w.fault(t, f, r)
			if f.again {
				w.fault(t, f, w.call(t, name, f.payload)) // a new instance, or the same: the same answer
			}
			if f.logged != "" && !within(20*time.Second, func() bool { return strings.Contains(w.lines(t, name, ""), f.logged) }) {
				t.Errorf("the log does not say %s:\n%s", f.logged, w.lines(t, name, ""))
			}
			w.echoes(t)
		})
	}
}

// fault checks one answer of a function that does something bad.
func (w *badWorld) fault(t *testing.T, f fault, r *reply) {
	t.Helper()
	t.Log(r)
	if f.errorType == "" {
		if r.status != http.StatusOK {
			t.Errorf("%s; want an answer", r)
		}
		return
	}
	e := failed(t, r, f.word, f.errorType, f.message)
	if strings.HasPrefix(e.Message, "init function") || strings.HasPrefix(e.Message, e.Type+": ") {
		t.Errorf("the message repeats what stands beside it: %s", r)
	}
	if f.more != nil {
		f.more(t, r, e)
	}
	if f.errorType == starling.ErrTimedOut {
		if over := r.took - w.cold(r) - time.Duration(f.timeoutMS)*time.Millisecond; over < 0 || over > 10*time.Second {
			t.Errorf("the deadline of %d ms was answered %v after it: %s", f.timeoutMS, over, r.header.Get("Server-Timing"))
		}
	}
}

// cold is the part of a call that the starting of its instance took, before its deadline began to run.
func (w *badWorld) cold(r *reply) (d time.Duration) {
	for part := range strings.SplitSeq(r.header.Get("Server-Timing"), ", ") {
		name, text, _ := strings.Cut(part, ";dur=")
		var ms float64
		if _, err := fmt.Sscan(text, &ms); err == nil && name != "run" {
			d += time.Duration(ms * float64(time.Millisecond))
		}
	}
	return d
}

// hasStack wants the function's own lines in the stack trace, and none of the runtime's.
func hasStack(line string) func(*testing.T, *reply, protocol.FunctionError) {
	return func(t *testing.T, r *reply, e protocol.FunctionError) {
		var doc map[string]any
		json.Unmarshal(r.body, &doc)
		trace := string(e.Trace)
		if trace == "" {
			b, _ := json.Marshal(doc["trace"]) // where Node has it, as on AWS
			trace = string(b)
		}
		if !strings.Contains(trace, line) {
			t.Errorf("the stack trace does not name %s: %s", line, r.body)
		}
	}
}

func (w *badWorld) pythonFaults(t *testing.T) {
	handler := func(body string) string {
		return "import os, sys, time, json\n\ndef handler(event, context):\n    " + strings.ReplaceAll(body, "\n", "\n    ") + "\n"
	}
	w.runFaults(t, "python", starling.Python311, "main.py", []fault{
		{name: "missing module", code: "", handler: "absent.handler", word: "Unhandled", errorType: starling.ErrImport, message: "absent"},
		{name: "missing import", code: "import absent_library\n", word: "Unhandled", errorType: starling.ErrImport, message: "absent_library"},
		{name: "missing handler", code: "x = 1\n", word: "Unhandled", errorType: starling.ErrHandler, message: "handler"},
		{name: "handler that is no function", code: "handler = 5\n", word: "Unhandled", errorType: starling.ErrHandler, message: "handler", again: true},
		{name: "syntax error", code: "def handler(:\n", word: "Unhandled", errorType: starling.ErrSyntax, message: "main.py:1"},
		{name: "init raises", code: "raise KeyError('no table')\n", word: "Unhandled", errorType: "KeyError", message: "no table", logged: "main.py\\\", line 1"},
		{name: "init exits", code: "import os\nos._exit(4)\n", word: "Unhandled", errorType: starling.ErrExit, message: "exit status 4"},
		{name: "init calls sys.exit", code: "import sys\nsys.exit(5)\n", word: "Unhandled", errorType: starling.ErrExit, message: "exit status 5"},
		{name: "init hangs", code: "import time\ntime.sleep(3600)\n", word: "Unhandled", errorType: starling.ErrInitTimeout, message: "in time"},
		{name: "handler raises", code: handler("raise ValueError('boom')"), word: "Handled", errorType: "ValueError", message: "boom", more: hasStack("main.py"), again: true},
		{name: "handler exits", code: handler("os._exit(7)"), word: "Unhandled", errorType: starling.ErrExit, message: "exit status 7", again: true},
		{name: "handler calls sys.exit", code: handler("sys.exit(8)"), word: "Unhandled", errorType: starling.ErrExit, message: "exit status 8", again: true},
		{name: "handler kills itself", code: handler("import ctypes\nctypes.string_at(0)"), word: "Unhandled", errorType: starling.ErrExit, message: "signal", again: true},
		{name: "handler sleeps", code: handler("time.sleep(3600)"), timeoutMS: 700, word: "Unhandled", errorType: starling.ErrTimedOut, message: "0.70 seconds"},
		{name: "handler spins", code: handler("while True: pass"), timeoutMS: 700, word: "Unhandled", errorType: starling.ErrTimedOut, message: "0.70 seconds"},
		{name: "forks without end", code: handler("while True:\n    try: os.fork()\n    except OSError: pass"), timeoutMS: 1500, memoryMiB: 1024, word: "Unhandled", errorType: starling.ErrTimedOut, message: "1.50 seconds", again: true},
		{name: "eats memory", code: handler("b = []\nwhile True: b.append(bytearray(8 << 20))"), timeoutMS: 20000, word: "Unhandled", errorType: starling.ErrOutOfMemory, message: "memory", again: true},
		{name: "fills /tmp", code: handler("with open('/tmp/x', 'wb') as f:\n    while True: f.write(b'x' * (1 << 20))"), timeoutMS: 20000, word: "Handled", errorType: "OSError", message: "No space left"},
		{name: "writes elsewhere", code: handler("open('/usr/x', 'w')"), word: "Handled", errorType: "OSError", message: "Read-only"},
		{name: "floods stdout", code: handler("for i in range(200): print('x' * 100000)\nreturn 1"), timeoutMS: 20000, again: true},
		{name: "answers too much", code: handler("return 'x' * (7 << 20)"), timeoutMS: 20000, word: "Unhandled", errorType: starling.ErrResponseSize, message: "6291456", again: true},
		{name: "answers no JSON", code: handler("return object()"), word: "Handled", errorType: starling.ErrMarshal, message: "object", again: true},
		{name: "is sent no JSON", code: handler("return event"), payload: "{", word: "Handled", errorType: "Runtime.UnmarshalError", message: "unmarshal"},
		{name: "closes its channel", code: handler("os.close(4)\nreturn 1"), word: "Unhandled", errorType: starling.ErrExit, message: ""},
		{name: "writes into its channel", code: handler("os.write(4, b'x' * 100)\ntime.sleep(5)"), word: "Unhandled", errorType: starling.ErrProtocol, message: "protocol"},
	})
}

func (w *badWorld) nodeFaults(t *testing.T) {
	handler := func(body string) string { return "exports.handler = async (event) => {\n" + body + "\n};\n" }
	w.runFaults(t, "node", starling.NodeJS20, "index.js", []fault{
		{name: "missing module", code: "", handler: "absent.handler", word: "Unhandled", errorType: starling.ErrImport, message: "absent"},
		{name: "missing import", code: "require('absent-library');", word: "Unhandled", errorType: starling.ErrImport, message: "absent-library"},
		{name: "missing handler", code: "exports.other = 1;", word: "Unhandled", errorType: starling.ErrHandler, message: "handler"},
		{name: "syntax error", code: "exports.handler = (;", word: "Unhandled", errorType: starling.ErrSyntax, message: "Unexpected token"},
		{name: "init throws", code: "throw new RangeError('no table');", word: "Unhandled", errorType: "RangeError", message: "no table", logged: "index.js:1"},
		{name: "init exits", code: "process.exit(4);", word: "Unhandled", errorType: starling.ErrExit, message: "exit status 4"},
		{name: "handler throws", code: handler("throw new TypeError('boom');"), word: "Handled", errorType: "TypeError", message: "boom", more: hasStack("index.js"), again: true},
		{name: "handler throws a string", code: handler("throw 'boom';"), word: "Handled", errorType: "string", message: "boom", again: true},
		{name: "handler throws nothing", code: handler("throw null;"), word: "Handled", errorType: "Error", message: "null", again: true},
		{name: "handler exits", code: handler("process.exit(7);"), word: "Unhandled", errorType: starling.ErrExit, message: "exit status 7", again: true},
		{name: "handler never settles", code: handler("return new Promise(() => {});"), timeoutMS: 1000, word: "Handled", errorType: starling.ErrExit, message: "neither answered", again: true},
		{name: "handler waits", code: handler("return new Promise(() => setTimeout(() => {}, 1e6));"), timeoutMS: 700, word: "Unhandled", errorType: starling.ErrTimedOut, message: "0.70 seconds"},
		{name: "handler spins", code: handler("for (;;) {}"), timeoutMS: 700, word: "Unhandled", errorType: starling.ErrTimedOut, message: "0.70 seconds"},
		{name: "rejects aside", code: handler("Promise.reject(new Error('aside')); await new Promise((r) => setTimeout(r, 1000));"), word: "Handled", errorType: "Runtime.UnhandledPromiseRejection", message: "aside", again: true},
		{name: "throws aside", code: handler("setTimeout(() => { throw new Error('later'); }, 10); await new Promise((r) => setTimeout(r, 1000));"), word: "Handled", errorType: "Error", message: "later", again: true},
		{name: "eats memory", code: handler("const b = []; for (;;) b.push(Buffer.alloc(8 << 20, 1));"), timeoutMS: 20000, word: "Unhandled", errorType: starling.ErrOutOfMemory, message: "memory", again: true},
		{name: "eats its heap", code: handler("const b = []; for (;;) b.push(new Array(1000).fill(b.length + 0.5));"), timeoutMS: 20000, word: "Unhandled", errorType: starling.ErrOutOfMemory, message: "memory"},
		{name: "forks without end", code: handler("const { spawn } = require('child_process'); for (;;) { try { spawn('/bin/sleep', ['100']).on('error', () => {}); } catch {} await null; }"), timeoutMS: 1500, memoryMiB: 1024, word: "Unhandled", errorType: starling.ErrTimedOut, message: "1.50 seconds"},
		{name: "fills /tmp", code: handler("const fs = require('fs'); const f = fs.openSync('/tmp/x', 'w'); for (;;) fs.writeSync(f, Buffer.alloc(1 << 20));"), timeoutMS: 20000, word: "Handled", errorType: "Error", message: "ENOSPC"},
		{name: "floods stdout", code: handler("for (let i = 0; i < 200; i++) console.log('x'.repeat(100000)); return 1;"), timeoutMS: 20000, again: true},
		{name: "answers too much", code: handler("return 'x'.repeat(7 << 20);"), timeoutMS: 20000, word: "Unhandled", errorType: starling.ErrResponseSize, message: "6291456", again: true},
		{name: "answers no JSON", code: handler("const a = {}; a.a = a; return a;"), word: "Handled", errorType: starling.ErrMarshal, message: "circular", again: true},
		{name: "is sent no JSON", code: handler("return event;"), payload: "{", word: "Handled", errorType: "Runtime.UnmarshalError", message: "unmarshal"},
	})
	t.Run("node answers twice", func(t *testing.T) {
		t.Parallel()
		w.deploy(t, "node-twice", starling.NodeJS20, map[string]string{"index.js": "exports.handler = (event, context, callback) => { context.callbackWaitsForEmptyEventLoop = false; callback(null, event.n); callback(null, 'again'); callback(new Error('and again')); };"}, nil)
		for i := range 3 {
			if r := w.call(t, "node-twice", fmt.Sprintf(`{"n":%d}`, i)); r.status != 200 || string(r.body) != fmt.Sprint(i) {
				t.Errorf("call %d: %s", i, r)
			}
		}
	})
}

// bootstrapFaults breaks the Runtime API from inside: no bootstrap, a bad one, one that speaks it wrongly.
func (w *badWorld) bootstrapFaults(t *testing.T) {
	for i, f := range []struct {
		name, file, text, errorType, message string
	}{
		{"no bootstrap", "readme.txt", "nothing to run", starling.ErrEntrypoint, "bootstrap"},
		{"bootstrap that is no program", "bootstrap", "neither a script nor a binary", starling.ErrEntrypoint, "bootstrap"},
		{"bootstrap of another interpreter", "bootstrap", "#!/no/such/interpreter\n", starling.ErrEntrypoint, "bootstrap"},
		{"bootstrap that exits", "bootstrap", "#!/bin/sh\nexit 6\n", starling.ErrExit, "exit status 6"},
	} {
		t.Run("provided "+f.name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("provided-%d", i)
			w.deploy(t, name, starling.Provided, map[string]string{f.file: f.text}, nil)
			failed(t, w.call(t, name, "{}"), "Unhandled", f.errorType, f.message)
			w.echoes(t)
		})
	}
	t.Run("provided speaks wrongly", func(t *testing.T) {
		t.Parallel()
		w.deploy(t, "raw", starling.Provided, map[string]string{"bootstrap": string(w.bootstraps["rawbootstrap"])}, func(c *starling.Config) { c.TimeoutMS = 1000 })
		for _, f := range []struct {
			do, word, errorType, message string // the answer's, when there is no error type
		}{
			{"answer", "", "", `{"before":0}`},
			{"twice", "", "", `{"before":202}`},
			{"answer", "", "", `{"before":400}`}, // the second answer was refused, and the instance lives on
			{"wrong-id", "", "", `{"before":202}`},
			{"answer", "", "", `{"before":400}`},
			{"error", "Handled", "OrderError", "no such order"},
			{"answer", "", "", `{"before":202}`},
			{"big", "Unhandled", starling.ErrResponseSize, "6291456"},
			{"late", "Unhandled", starling.ErrTimedOut, "1.00 seconds"},
			{"silent", "Unhandled", starling.ErrTimedOut, "1.00 seconds"},
			{"half", "Unhandled", starling.ErrProtocol, "in the middle"},
			{"garbage", "Unhandled", starling.ErrExit, "exit status 3"},
			{"answer", "", "", `{"before":0}`}, // a new instance
		} {
			r := w.call(t, "raw", fmt.Sprintf(`{"do":%q}`, f.do))
			switch {
			case f.errorType != "":
				failed(t, r, f.word, f.errorType, f.message)
			case r.status != 200 || string(r.body) != f.message:
				t.Errorf("%s: %s; want %s", f.do, r, f.message)
			}
		}
	})
	t.Run("provided with the Go library", func(t *testing.T) {
		t.Parallel()
		w.deploy(t, "sdk", starling.Provided, map[string]string{"bootstrap": string(w.bootstraps["sdkstream"])}, nil)
		failed(t, w.call(t, "sdk", `{"do":"fail"}`), "Handled", "errorString", "no such order")
		e := failed(t, w.call(t, "sdk", `{"do":"panic"}`), "Handled", "string", "out of orders")
		if !strings.Contains(string(e.Trace), "main.go") {
			t.Errorf("the stack of a panic is %s", e.Trace)
		}
		if r := w.call(t, "sdk", `{}`); r.status != 200 || !strings.HasSuffix(string(r.body), "part2\n") {
			t.Errorf("after a panic: %s", r)
		}
	})
}

// callers go away, or send less than they said.
func (w *badWorld) callers(t *testing.T) {
	t.Run("caller that sends less than it said", func(t *testing.T) {
		t.Parallel()
		c, err := net.Dial("tcp", strings.TrimPrefix(w.node.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /v1/functions/echo/invocations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{\"half\":", w.key)
		c.(*net.TCPConn).CloseWrite()
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, &reply{status: res.StatusCode, header: res.Header, body: text}, 400, starling.Invalid, "")
	})
	t.Run("callers of one instance that leave", func(t *testing.T) {
		t.Parallel()
		w.deploy(t, "single", starling.Python311, map[string]string{"main.py": "import time\ndef handler(event, context):\n    time.sleep(0.1)\n    return event\n"}, func(c *starling.Config) { c.InstanceMax = 1 })
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50+20*i)*time.Millisecond)
				defer cancel()
				if i%4 == 0 { // the command line leaves on its own timeout
					code, _, diag := w.run(t, nil, "invoke", "single", "1", "--timeout", "60ms")
					if code != exitTimeout && code != exitOK {
						t.Errorf("exit %d: %s", code, diag)
					}
					return
				}
				w.node.http.Invoke(ctx, client.Call{Function: "single", Payload: []byte(`1`)}) // most leave before their turn
			})
		}
		wg.Wait()
		if r := w.call(t, "single", `"mine"`); r.status != 200 || string(r.body) != `"mine"` {
			t.Errorf("after callers that left: %s", r)
		}
	})
	t.Run("log of a flood", func(t *testing.T) {
		t.Parallel()
		w.deploy(t, "flood", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    for i in range(20000): print('line', i, 'x' * 90)\n    return 1\n"}, func(c *starling.Config) { c.TimeoutMS = 20000 })
		id := "6f1d5a36-4444-4000-8000-000000000001"
		if r := w.call(t, "flood", "{}", protocol.HeaderRequestID+": "+id); r.status != 200 {
			t.Fatal(r)
		}
		var log string
		if !within(20*time.Second, func() bool { log = w.lines(t, "flood", id); return strings.Contains(log, "REPORT") }) {
			t.Fatal("the log of a flood has no end")
		}
		if !strings.Contains(log, "is dropped: it is over the limit") || len(log) > 3*starling.LogCallMax {
			t.Errorf("%d bytes of log", len(log))
		}
	})
	t.Run("caller that goes away", func(t *testing.T) {
		t.Parallel()
		w.deploy(t, "patient", starling.Python311, map[string]string{"main.py": "import time\nn = 0\ndef handler(event, context):\n    global n\n    n += 1\n    time.sleep(event.get('s', 0))\n    print('finished', event)\n    return n\n"}, nil)
		if r := w.call(t, "patient", "{}"); string(r.body) != "1" {
			t.Fatal(r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "POST", w.node.url+"/v1/functions/patient/invocations", bytes.NewReader([]byte(`{"s":1}`)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+w.key)
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			t.Fatal("an answer came before the function's end")
		}
		if !within(20*time.Second, func() bool { return strings.Contains(w.lines(t, "patient", ""), "finished {'s': 1}") }) {
			t.Error("the call of a caller that left did not run to its end")
		}
		if r := w.call(t, "patient", "{}"); string(r.body) != "3" {
			t.Errorf("the instance was lost with its caller: %s", r)
		}
	})
}
