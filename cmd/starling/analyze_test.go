package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/cmd/starling/node"
	policy "starling/sim/compare"
	"starling/store/trace"
)

func analyzeRun(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, log bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &log, []string{"HOME=" + t.TempDir()})
	c := newRootCommand(a)
	c.SetArgs(append([]string{"analyze"}, args...))
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// The loop as the documents tell it: what a node recorded is replayed, drawn, tuned, and read by the next node.
func TestAnalyzeTunesFromARecordedTrace(t *testing.T) {
	dir := t.TempDir()
	cfg := trace.DefaultConfig()
	cfg.Dir = filepath.Join(dir, "calls")
	r := trace.New(cfg)
	if err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		r.Add(trace.Call{Start: int64(i) * int64(3*time.Minute/time.Microsecond), Account: "a", Function: "f", Version: 1, Run: 50_000,
			Cold: i == 0, Begin: 20_000, Init: 80_000, MemoryMiB: 128, Slots: 1})
	}
	r.Close()
	tuned, page := filepath.Join(dir, "tuned.yaml"), filepath.Join(dir, "front.html")
	out, err := analyzeRun(t, cfg.Dir, "-o", "json", "--tune", tuned, "--html", page, "--sweep", "worth=1m,30m", "--budget-of", "fixed 10 min")
	if err != nil {
		t.Fatal(err)
	}
	var report policy.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Rivals) != 6 || len(report.Sweep) != 2 || report.Rivals[0].Calls != 200 || report.Rivals[0].Cold != 1 || report.Tuned == nil {
		t.Fatalf("%d policies, %d settings, %+v, tuned %v", len(report.Rivals), len(report.Sweep), report.Rivals[0], report.Tuned)
	}
	settings, err := node.ReadScaling(tuned)
	if err != nil || settings.Text("worth") != report.Setting["worth"] {
		t.Errorf("the node reads %+v, %v; the report says %v", settings, err, report.Setting)
	}
	if text, err := os.ReadFile(page); err != nil || strings.Count(string(text), "<circle") != 2*8 {
		t.Errorf("the page has not two charts of 8 points: %v", err)
	}
}

func TestAnalyzeRefusesWhatCannotBe(t *testing.T) {
	for _, args := range [][]string{{"--functions", "0"}, {"--sweep", "worth"}, {"--sweep", "worht=1m"}, {"--burst", "--budget-of", "nobody"}, {"--burst", "--sweep", "none", "--tune", filepath.Join(t.TempDir(), "x")}, {"--functions", "5", "--calls-max", "10"}, {"--scale-config", "/none"}} {
		_, err := analyzeRun(t, args...)
		if k := starling.KindOf(err); err == nil || k == starling.Internal && !strings.Contains(err.Error(), "--") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
