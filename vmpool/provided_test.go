package vmpool_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
)

// TestUnmodifiedGoFunctionsRun drives a real bootstrap built on aws-lambda-go.
func TestUnmodifiedGoFunctionsRun(t *testing.T) {
	dir := goBootstrap(t, "./runtimeapi/testdata/echo")
	p := plainPool(t, map[starling.Runtime]int{starling.Provided: 1})
	for _, c := range []struct {
		payload, want string
		status        starling.Status
		kind          string
	}{
		{`{"text":"hej"}`, `{"echo":"hej"}`, 0, ""},
		{`{"do":"fail","text":"no"}`, "", starling.Handled, "errorString"},
		{`{"do":"panic","text":"no"}`, "", starling.Handled, "string"},
		{`{"do":"exit","n":3}`, "", starling.Unhandled, starling.ErrExit},
		{`{"do":"sleep","n":9000}`, "", starling.Unhandled, starling.ErrTimedOut},
		{`{"do":"stream"}`, "one two", 0, ""},
		{`{"do":"broken"}`, "begun", starling.Handled, "errorString"},
		{`{"do":"large","n":6291456}`, strings.Repeat("x", 6<<20), 0, ""},
		{`{"do":"large","n":6291457}`, strings.Repeat("x", 6<<20+1), 0, ""}, // a reader: it streams
		{`not json`, "", starling.Handled, "SyntaxError"},
	} {
		t.Run(c.payload, func(t *testing.T) {
			t.Parallel()
			v, _ := version(t, starling.Provided, "bootstrap")
			i := start(t, p, v, dir, nil)
			defer i.Close()
			out, a, _ := call(t, i, c.payload, func(inv *starling.Invocation) {
				if c.kind == starling.ErrTimedOut {
					inv.Deadline = time.Now().Add(1500 * time.Millisecond)
				}
			})
			if out.Status != c.status || out.ErrorType != c.kind {
				t.Fatalf("ended %v %q %s", out.Status, out.ErrorType, out.Error)
			}
			if c.kind != starling.ErrResponseSize && a.String() != c.want {
				t.Fatalf("answered %.80q", a.String())
			}
			if c.status == starling.Succeeded {
				for range 20 {
					if out, _, _ := call(t, i, `{"text":"again"}`); out.Status != starling.Succeeded {
						t.Fatalf("a further call ended %v %q", out.Status, out.ErrorType)
					}
				}
			}
		})
	}
	t.Run("context", func(t *testing.T) {
		v, _ := version(t, starling.Provided, "bootstrap")
		i := start(t, p, v, dir, nil)
		_, a, id := call(t, i, `{"do":"context"}`, func(inv *starling.Invocation) { inv.ClientContext = "eyJjdXN0b20iOnsiYSI6ImIifX0=" })
		if want := fmt.Sprintf(`["%s","arn:aws:lambda:local:acme:function:fn",true,"b","fn"]`, id); a.String() != want {
			t.Fatalf("got %s, want %s", a.String(), want)
		}
	})
	t.Run("output", func(t *testing.T) {
		v, _ := version(t, starling.Provided, "bootstrap")
		sink := &logs{}
		i := start(t, p, v, dir, sink)
		_, _, id := call(t, i, `{"do":"print","text":"x"}`)
		if got := sink.of(id); len(got) != 4 || got[1] != "stdout: printed x" {
			t.Fatalf("logged %q", got)
		}
	})
	t.Run("concurrency", func(t *testing.T) {
		v, _ := version(t, starling.Provided, "bootstrap")
		v.Config.Concurrency = 4
		i := start(t, p, v, dir, nil)
		var wg sync.WaitGroup
		for range 4 { // one after another the last would end after its time
			wg.Go(func() {
				inv := &starling.Invocation{ID: newID(), Version: i.Version().ID, Deadline: time.Now().Add(3 * time.Second), Payload: []byte(`{"do":"sleep","n":1000}`)}
				if out, err := i.Invoke(inv, &answer{}); err != nil || out.Status != starling.Succeeded {
					t.Errorf("ended %v %q, %v", out.Status, out.ErrorType, err)
				}
			})
		}
		wg.Wait()
	})
}

func TestAMissingBootstrapIsTheFunctionsFault(t *testing.T) {
	p := plainPool(t, map[starling.Runtime]int{starling.Provided: 0})
	v, dir := version(t, starling.Provided, "bootstrap")
	_, err := p.Start(context.Background(), vmpool.InstanceConfig{Version: v, Dir: dir})
	if starling.KindOf(err) != starling.Failed || starling.ReasonOf(err) != starling.ErrEntrypoint {
		t.Fatalf("got %v", err)
	}
}
