package bench

import (
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Result is what one load on one target gave. Times are in microseconds.
type Result struct {
	Name        string         `json:"name"`
	Loop        string         `json:"loop"` // "open" or "closed"
	Concurrency int            `json:"concurrency"`
	Offered     float64        `json:"offeredPerSecond"` // open loop: scheduled; closed loop: as served
	Served      float64        `json:"servedPerSecond"`
	Seconds     float64        `json:"seconds"`
	Arrivals    int64          `json:"arrivals"`
	Calls       int64          `json:"calls"` // answered well
	Errors      map[string]int `json:"errors,omitempty"`
	Latency     Latency        `json:"latencyMicros"`
	Late        *Latency       `json:"generatorLateMicros,omitempty"` // open loop: how late the generator itself was
	Sent        *Latency       `json:"sentLatencyMicros,omitempty"`   // open loop: from when a call was really sent, to two digits; not what a user sees
	// ServerCPU is per call, of the processes that were metered; 0 when none was. ClientCPU is the generator's.
	ServerCPU float64            `json:"serverCPUMicrosPerCall,omitempty"`
	ClientCPU float64            `json:"clientCPUMicrosPerCall"`
	Phases    map[string]Latency `json:"phasesMicros,omitempty"` // as the server told: queue, place, start, init, run
	Curve     []Point            `json:"curve"`
	Windows   []Latency          `json:"windowsMicros,omitempty"` // sixths of a load bounded by its duration, to two digits
	Timeline  []Second           `json:"timeline"`
}

// A Latency is a distribution in microseconds.
type Latency struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   int64   `json:"p50"`
	P90   int64   `json:"p90"`
	P99   int64   `json:"p99"`
	P999  int64   `json:"p999"`
	Max   int64   `json:"max"`
}

// A Point of the latency curve.
type Point struct {
	Percentile float64 `json:"percentile"`
	Micros     int64   `json:"micros"`
}

// A Second of the timeline.
type Second struct {
	Calls   int   `json:"calls"`
	Errors  int   `json:"errors"`
	Slowest int64 `json:"slowestMicros"`
}

// Failed is the number of calls without a good answer.
func (r *Result) Failed() int {
	n := 0
	for _, c := range r.Errors {
		n += c
	}
	return n
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	return Latency{Count: h.TotalCount(), Mean: h.Mean(), P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90), P99: h.ValueAtQuantile(99),
		P999: h.ValueAtQuantile(99.9), Max: h.Max()}
}

var curvePercentiles = []float64{0, 10, 25, 50, 75, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.99, 99.999, 100}

// summarize joins what all callers saw.
func summarize(load Load, recorders []*recorder, arrivals int64, took, cpu time.Duration) *Result {
	r := &Result{Name: load.Name, Loop: "closed", Concurrency: load.Concurrency, Seconds: took.Seconds(), Arrivals: arrivals, Errors: map[string]int{}}
	latency, late, sent := histogram(), histogram(), coarse()
	for _, c := range recorders {
		latency.Merge(c.latency)
		late.Merge(c.late)
		sent.Merge(c.sent)
		for k, n := range c.errors {
			r.Errors[k] += n
		}
		for i, s := range c.seconds {
			if i >= len(r.Timeline) {
				r.Timeline = append(r.Timeline, Second{})
			}
			t := &r.Timeline[i]
			t.Calls += s.calls
			t.Errors += s.errors
			t.Slowest = max(t.Slowest, s.slowest)
		}
	}
	r.Latency, r.Calls = latencyOf(latency), latency.TotalCount()
	r.Served = float64(r.Calls) / took.Seconds()
	r.Offered = float64(arrivals) / took.Seconds()
	if load.Rate > 0 {
		r.Loop, r.Offered = "open", load.Rate
		l, m := latencyOf(late), latencyOf(sent)
		r.Late, r.Sent = &l, &m
	}
	if r.Calls > 0 {
		r.ClientCPU = float64(cpu.Microseconds()) / float64(r.Calls)
	}
	r.Windows = windowsOf(recorders)
	for _, p := range curvePercentiles {
		r.Curve = append(r.Curve, Point{p, latency.ValueAtQuantile(p)})
	}
	return r
}

// windowsOf joins the parts of the load; nil when it was not bounded by its duration.
func windowsOf(recorders []*recorder) []Latency {
	var out []Latency
	for i := range windowCount {
		var joined *hdrhistogram.Histogram
		for _, c := range recorders {
			switch {
			case c.windows[i] == nil:
			case joined == nil:
				joined = c.windows[i]
			default:
				joined.Merge(c.windows[i])
			}
		}
		if joined == nil {
			joined = coarse()
		}
		out = append(out, latencyOf(joined))
	}
	if !slices.ContainsFunc(out, func(l Latency) bool { return l.Count > 0 }) {
		return nil
	}
	return out
}
