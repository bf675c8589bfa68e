package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/transport/quic"
)

// lines returns the log of a function, of one call when request is not empty.
func (w *badWorld) lines(t *testing.T, function, request string) string {
	t.Helper()
	path := "/v1/functions/" + function + "/logs?limit=1000"
	if request != "" {
		path += "&request=" + request
	}
	return string(w.send(t, "GET", path, nil).body)
}

var (
	startLine  = regexp.MustCompile(`^START RequestId: [0-9a-f-]{36} Version: \$LATEST$`)
	endLine    = regexp.MustCompile(`^END RequestId: [0-9a-f-]{36}$`)
	reportLine = regexp.MustCompile(`^REPORT RequestId: [0-9a-f-]{36}\tDuration: [0-9.]+ ms\tBilled Duration: \d+ ms\tMemory Size: 128 MB\tMax Memory Used: \d+ MB\t(Init Duration: [0-9.]+ ms\t?)?$`)
)

// words checks what a call writes to the log and to its tail, on every runtime.
func (w *badWorld) words(t *testing.T) {
	w.deploy(t, "say-python", starling.Python311, map[string]string{"main.py": "def handler(event, context):\n    print('saying', event)\n    return 1\n"}, nil)
	w.deploy(t, "say-node", starling.NodeJS20, map[string]string{"index.js": "exports.handler = async (event) => { console.log('saying', JSON.stringify(event)); return 1; };"}, nil)
	w.deploy(t, "say-provided", starling.Provided, map[string]string{"bootstrap": string(w.bootstraps["rawbootstrap"])}, nil)
	for _, name := range []string{"say-python", "say-node", "say-provided"} {
		t.Run(name, func(t *testing.T) {
			first := "6f1d5a36-1111-4000-8000-00000000000" + string('0'+rune(len(name)%10))
			second := strings.Replace(first, "1111", "2222", 1)
			cold := w.call(t, name, `{"do":"first"}`, protocol.HeaderRequestID+": "+first, protocol.HeaderLogTail+": 1")
			warm := w.call(t, name, `{"do":"second"}`, protocol.HeaderRequestID+": "+second)
			if cold.status != 200 || warm.status != 200 || cold.header.Get(protocol.HeaderRequestID) != first {
				t.Fatalf("%s\n%s", cold, warm)
			}
			tail, err := base64.StdEncoding.DecodeString(cold.header.Get(protocol.HeaderLogResult))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(tail)), "\n")
			n := len(lines)
			if n < 4 || !startLine.MatchString(lines[0]) || !endLine.MatchString(lines[n-2]) || !reportLine.MatchString(lines[n-1]) || !strings.Contains(lines[n-1], "Init Duration") {
				t.Errorf("the tail of a cold call is\n%s", tail)
			}
			if !strings.Contains(string(tail), "first") || warm.header.Get(protocol.HeaderLogResult) != "" {
				t.Errorf("tails: %q, %q", tail, warm.header.Get(protocol.HeaderLogResult))
			}
			timing := cold.header.Get("Server-Timing")
			for _, phase := range []string{"queue", "place", "start", "init", "run"} {
				if phase != "queue" && !strings.Contains(timing, phase+";dur=") {
					t.Errorf("Server-Timing of a cold call lacks %s: %s", phase, timing)
				}
			}
			if strings.Contains(warm.header.Get("Server-Timing"), "init") {
				t.Errorf("Server-Timing of a warm call: %s", warm.header.Get("Server-Timing"))
			}
			if !within(20*time.Second, func() bool { return strings.Contains(w.lines(t, name, second), "REPORT") }) {
				t.Fatal("the log has no line of the call")
			}
			if log := w.lines(t, name, second); !strings.Contains(log, "second") || strings.Contains(log, "first") {
				t.Errorf("the log of one call is\n%s", log)
			}
		})
	}
}

// streams checks that each runtime's streamed answer arrives while the function still runs, over every protocol.
func (w *badWorld) streams(t *testing.T) {
	w.deploy(t, "stream-python", starling.Python311, map[string]string{"main.py": "import time\ndef handler(event, context):\n    for i in range(3):\n        yield f'part{i}\\n'\n        time.sleep(0.3)\n    if event.get('do') == 'break':\n        raise ValueError('the source ran dry')\n"}, nil)
	w.deploy(t, "stream-node", starling.NodeJS20, map[string]string{"index.js": "exports.handler = async function* (event) { for (let i = 0; i < 3; i++) { yield `part${i}\\n`; await new Promise((r) => setTimeout(r, 300)); } if (event.do === 'break') throw new Error('the source ran dry'); };"}, nil)
	w.deploy(t, "stream-aws", starling.NodeJS20, map[string]string{"index.js": "exports.handler = awslambda.streamifyResponse(async (event, out) => { out.setContentType('text/plain'); for (let i = 0; i < 3; i++) { out.write(`part${i}\\n`); await new Promise((r) => setTimeout(r, 300)); } if (event.do === 'break') throw new Error('the source ran dry'); out.end(); });"}, nil)
	w.deploy(t, "stream-go", starling.Provided, map[string]string{"bootstrap": string(w.bootstraps["sdkstream"])}, nil)
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	via1, via2 := &http.Transport{Protocols: &h1}, &http.Transport{Protocols: &h2}
	defer via1.CloseIdleConnections()
	defer via2.CloseIdleConnections()
	_, token, _ := w.run(t, []string{"STARLING_KEY=" + w.root}, "cluster", "token")
	_, pin, _ := strings.Cut(strings.TrimSpace(token), ".")
	b, err := hex.DecodeString(pin)
	if err != nil || len(b) != 32 {
		t.Fatalf("fingerprint %q: %v", pin, err)
	}
	q, err := client.Dial(t.Context(), w.node.quic, w.key, "", quic.Trust{Pin: [32]byte(b)})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	var wg sync.WaitGroup // the clients are closed after all of them
	for _, c := range []struct {
		name string
		via  streamer
	}{
		{"HTTP/1.1", client.NewHTTP(w.node.url, w.key, client.WithHTTPClient(&http.Client{Transport: via1}))},
		{"h2c", client.NewHTTP(w.node.url, w.key, client.WithHTTPClient(&http.Client{Transport: via2}))},
		{"QUIC", q},
	} {
		for _, f := range []string{"stream-python", "stream-node", "stream-aws", "stream-go"} {
			wg.Go(func() { t.Run(c.name+" "+f, func(t *testing.T) { streamed(t, c.via, f) }) })
		}
	}
	wg.Wait()
}

// A streamer is a client of either kind.
type streamer interface {
	Stream(ctx context.Context, call client.Call, w io.Writer) (*client.Result, error)
}

// A watch notes when the parts of an answer came.
type watch struct {
	text        bytes.Buffer // not embedded: its ReadFrom would hide when the parts came
	first, last time.Time
}

func (w *watch) Write(p []byte) (int, error) {
	w.last = time.Now()
	if w.first.IsZero() {
		w.first = w.last
	}
	return w.text.Write(p)
}

// streamed calls f twice: the parts must come as they are said, and a break after the first parts must show.
func streamed(t *testing.T, via streamer, f string) {
	t.Helper()
	var got watch
	r, err := via.Stream(t.Context(), client.Call{Function: starling.FunctionName(f), Payload: []byte(`{}`)}, &got)
	if err != nil || r.Err() != nil || got.text.String() != "part0\npart1\npart2\n" {
		t.Fatalf("%v, %+v, %q", err, r, got.text.String())
	}
	// Said over 600 ms. The first may be late on a busy machine; an answer that is held back comes at once.
	if gap := got.last.Sub(got.first); gap < 50*time.Millisecond {
		t.Errorf("all parts came within %v: the answer was held back", gap)
	}
	if r.Timing["run"] < 600*time.Millisecond {
		t.Errorf("the trailer says that the function ran %v", r.Timing["run"])
	}
	var cut watch
	r, err = via.Stream(t.Context(), client.Call{Function: starling.FunctionName(f), Payload: []byte(`{"do":"break"}`), Tail: true}, &cut)
	if err != nil || r.Status == starling.Succeeded || r.ErrorType == "" || !strings.HasPrefix(cut.text.String(), "part0\n") {
		t.Errorf("an answer that breaks off looks like a whole one: %v, %+v, %q", err, r, cut.text.String())
	}
}

// metrics holds the exposition of a node that did all of this against Prometheus' own linter.
func (w *badWorld) metrics(t *testing.T) {
	text := w.node.exposition()
	if text == "" {
		t.Fatal("the node shows no metrics")
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "# HELP ")
		name, help, _ := strings.Cut(strings.TrimSpace(rest), " ")
		made := strings.ReplaceAll(strings.TrimPrefix(name, "starling_"), "_", " ") + "."
		if ok && strings.HasPrefix(name, "starling_") && strings.EqualFold(help, made) {
			t.Errorf("%s has no help of its own, add it to node/help.go: %q", name, help)
		}
	}
}
