package metrics

import (
	"bytes"
	"strings"
	"testing"

	vm "github.com/VictoriaMetrics/metrics"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

func TestExpositionPassesThePrometheusLinter(t *testing.T) {
	var r Registry
	for _, p := range []string{"p1", "p2"} {
		s := vm.NewSet()
		s.NewCounter(`starling_grants_total{partition="` + p + `"}`).Add(3)
		s.NewGauge(`starling_queue_calls{partition="`+p+`"}`, func() float64 { return 2 })
		s.NewPrometheusHistogram(`starling_wait_seconds{partition="` + p + `"}`).Update(0.2)
		r.Add(s)
		r.Add(s)
	}
	r.Describe("starling_grants_total", "Leases granted.")
	var out bytes.Buffer
	if err := r.WritePrometheus(&out); err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(out.Bytes())).Lint()
	if err != nil {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, want := range []string{"# HELP starling_grants_total Leases granted.\n# TYPE starling_grants_total counter\n", "# TYPE starling_wait_seconds histogram\n",
		`starling_grants_total{partition="p1"} 3`, `starling_grants_total{partition="p2"} 3`, "\nprocess_cpu_seconds_total "} {
		if strings.Count(out.String(), want) != 1 {
			t.Errorf("%q is not there once in\n%s", want, out.String())
		}
	}
}

func TestRemovedSetsAreGone(t *testing.T) {
	var r Registry
	s := vm.NewSet()
	s.NewCounter("starling_x_total").Inc()
	r.Add(s)
	r.Remove(s)
	var out bytes.Buffer
	if err := r.WritePrometheus(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "starling_x_total") {
		t.Fatal("a removed set was written")
	}
}
