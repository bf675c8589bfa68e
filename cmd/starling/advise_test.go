package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"starling"
	"starling/frontend/client"
	"starling/frontend/protocol"
	"starling/metrics/profile"
	"starling/sched/advise"
)

// profilesOf is an admin server that saw so many calls of 20 ms with 1 ms of CPU.
func profilesOf(t *testing.T, calls int) string {
	book := profile.NewBook(4)
	v := &starling.Version{ID: 7, Function: starling.FunctionRef{Account: "acme", Name: "resize"}, Config: starling.Config{MemoryMiB: 1769, TimeoutMS: 3000}}
	var y profile.Tally
	y.Read(0, 0)
	for range calls {
		y.Add(20 * time.Millisecond)
	}
	y.Read(time.Duration(calls)*time.Millisecond, y.Reading())
	y.MemoryMax = 40 << 20
	book.Add(v, &y, time.Now())
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(book.Profiles(starling.FunctionName(r.FormValue("function"))))
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestAdviseMergesWhatNodesSaw(t *testing.T) {
	c := newCLI(t)
	one, two := profilesOf(t, 60), profilesOf(t, 60)
	out := c.must("advise", "--admin", one)
	if !strings.Contains(out, "only 60 calls were seen, 100 are needed") || strings.Contains(out, "128 MiB") {
		t.Errorf("60 calls:\n%s", out)
	}
	code, out, errs := c.run("", "advise", "acme/resize", "--admin", one+","+two+",http://127.0.0.1:1")
	if code != 0 || !strings.Contains(errs, "Without the calls of http://127.0.0.1:1") {
		t.Errorf("exit %d, said %q", code, errs)
	}
	for _, want := range []string{"acme/resize", "120", "shrink", "128 MiB", "(93%)", "low", "advised", "884 MiB"} {
		if !strings.Contains(out, want) {
			t.Errorf("120 calls of two nodes: no %q in\n%s", want, out)
		}
	}
	if code, _, errs := c.run("", "advise", "other/resize", "--admin", one); code != exitNotFound || !strings.Contains(errs, "no call of other/resize was seen") {
		t.Errorf("exit %d, said %q", code, errs)
	}
	if code, _, errs := c.run("", "advise", "--admin", "http://127.0.0.1:1"); code != exitUnavailable {
		t.Errorf("nobody there: exit %d, said %q", code, errs)
	}
	if code, _, errs := c.run("", "advise", "--headroom", "-1"); code != exitUsage || !strings.Contains(errs, "headroom") {
		t.Errorf("exit %d, said %q", code, errs)
	}
}

// TestE2EAdvise calls two functions on a real node: one waits and uses little memory, the other computes.
func TestE2EAdvise(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a real node")
	}
	c := startCluster(t, 1)
	n := c.nodes[0]
	call := func(name starling.FunctionName, body string, calls, callers int) {
		t.Helper()
		code, err := n.http.PutCode(t.Context(), bytes.NewReader(zipOf(t, map[string]string{"main.py": body})), -1)
		if err != nil {
			t.Fatal(err)
		}
		config := starling.Config{Runtime: starling.Python311, MemoryMiB: starling.MemoryOfCPU, TimeoutMS: 10_000}
		if _, err := n.http.CreateFunction(t.Context(), protocol.FunctionSpec{Name: name, Config: &config, Code: code.Hash}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range calls / callers {
					if r, err := n.http.Invoke(t.Context(), client.Call{Function: name, Payload: []byte("1")}); err != nil || r.Err() != nil {
						t.Errorf("%s: %v %v", name, err, r.Err())
						return
					}
				}
			})
		}
		wg.Wait()
	}
	call("waits", "import time\ndef handler(event, context):\n    time.sleep(.02)\n", 200, 4)
	call("computes", "import time\ndef handler(event, context):\n    end = time.process_time() + .01\n    while time.process_time() < end: pass\n", 120, 1)

	ask := func(name string) adviceLine {
		t.Helper()
		var view adviseView
		text := starlingCLI(t, []string{"HOME=" + os.Getenv("HOME")}, "advise", name, "--admin", n.health, "--calls-min", "120", "-o", "json")
		if err := json.Unmarshal([]byte(text), &view); err != nil || len(view.Functions) != 1 {
			t.Fatalf("%v: %s", err, text)
		}
		return view.Functions[0]
	}
	var waits, computes adviceLine
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) { // a beat after the last call
		if waits, computes = ask("waits"), ask("computes"); waits.Calls >= 200 && computes.Calls >= 120 && computes.Advice.Verdict != advise.Unknown {
			break
		}
	}
	if a := waits.Advice; waits.Calls != 200 || a.Verdict != advise.Shrink || a.Best.MemoryMiB >= starling.MemoryOfCPU/2 || a.SavesShare < .5 || a.Saves <= 0 {
		t.Errorf("waits: %+v", waits)
	}
	if a := computes.Advice; a.Sizes[0].MemoryMiB != starling.MemoryOfCPU/2 || float64(a.Sizes[0].Run) < 1.3*float64(a.Now.Run) || computes.CPUMS < 5 {
		t.Errorf("computes, at half the memory: %+v", computes)
	}
	t.Logf("waits: %.1f MiB, %.2f ms of CPU, %+v", waits.PeakP99MiB, waits.CPUMS, waits.Advice)
	t.Logf("computes: %.1f MiB, %.2f ms of CPU, %+v", computes.PeakP99MiB, computes.CPUMS, computes.Advice)
}
