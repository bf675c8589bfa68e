package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A Report is one scenario with the machine it ran on. It is the format of bench/results.
type Report struct {
	Scenario string    `json:"scenario"`
	When     time.Time `json:"when"`
	Command  string    `json:"command"`
	Commit   string    `json:"commit"`
	Target   string    `json:"target"` // address and protocol, without keys
	Machine  Machine   `json:"machine"`
	Results  []*Result `json:"results"` // the floor, when measured, is called "floor"
	Ratios   []Ratio   `json:"ratios"`
}

// A Machine says what the figures mean.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memoryBytes"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Load   string `json:"loadAverage"` // before the run
}

// A Ratio compares one result with the floor of the same run.
type Ratio struct {
	Name      string  `json:"name"`
	Rate      float64 `json:"servedOverFloor"` // only closed loops: in an open loop the rate is given
	P50Added  int64   `json:"p50AddedMicros"`
	P99Added  int64   `json:"p99AddedMicros"`
	ServerCPU float64 `json:"serverCPUOverFloor,omitempty"`
}

// ThisMachine describes the machine the bench runs on.
func ThisMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Go: runtime.Version(), CPU: "unknown"}
	for line := range strings.Lines(readText("/proc/cpuinfo")) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			m.CPU = strings.TrimSpace(v)
			break
		}
	}
	for line := range strings.Lines(readText("/proc/meminfo")) {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			var kib int64
			if _, err := fmt.Sscan(v, &kib); err == nil {
				m.Memory = kib << 10
			}
			break
		}
	}
	m.Kernel = strings.TrimSpace(readText("/proc/sys/kernel/osrelease"))
	m.Load = strings.TrimSpace(readText("/proc/loadavg"))
	return m
}

func readText(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// Compare fills in the ratios of every result to the floor of the same loop.
func (r *Report) Compare() {
	r.Ratios = []Ratio{}
	var floor *Result
	for _, x := range r.Results {
		if x.Name == "floor" {
			floor = x
		}
	}
	if floor == nil || floor.Calls == 0 {
		return
	}
	for _, x := range r.Results {
		if x == floor {
			continue
		}
		ratio := Ratio{Name: x.Name, P50Added: x.Latency.P50 - floor.Latency.P50, P99Added: x.Latency.P99 - floor.Latency.P99}
		if x.Loop == "closed" && floor.Served > 0 {
			ratio.Rate = x.Served / floor.Served
		}
		if floor.ServerCPU > 0 {
			ratio.ServerCPU = x.ServerCPU / floor.ServerCPU
		}
		r.Ratios = append(r.Ratios, ratio)
	}
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s · %s · %s\n%s, %d cores, kernel %s, %s, load %s\n\n", r.Scenario, r.Target, r.When.Format(time.RFC3339),
		r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Go, r.Machine.Load)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tloop\tc\toffered/s\tserved/s\tfailed\tp50\tp90\tp99\tp99.9\tmax\tserver CPU\tclient CPU\t")
	for _, x := range r.Results {
		fmt.Fprintf(t, "%s\t%s\t%d\t%.0f\t%.0f\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%.1f µs\t\n", x.Name, x.Loop, x.Concurrency, x.Offered, x.Served, x.Failed(),
			micros(x.Latency.P50), micros(x.Latency.P90), micros(x.Latency.P99), micros(x.Latency.P999), micros(x.Latency.Max), cpuWord(x.ServerCPU), x.ClientCPU)
	}
	t.Flush()
	for _, x := range r.Results {
		for _, k := range slices.Sorted(maps.Keys(x.Errors)) {
			fmt.Fprintf(&b, "%s: %d calls failed: %s\n", x.Name, x.Errors[k], k)
		}
		for _, k := range slices.Sorted(maps.Keys(x.Phases)) {
			p := x.Phases[k]
			fmt.Fprintf(&b, "%s: %s p50 %s, p99 %s, max %s (%d)\n", x.Name, k, micros(p.P50), micros(p.P99), micros(p.Max), p.Count)
		}
		if x.Late != nil && x.Late.P99 > x.Latency.P50 {
			fmt.Fprintf(&b, "%s: the generator itself was late by p99 %s: this machine is too busy for smaller figures\n", x.Name, micros(x.Late.P99))
		}
	}
	for _, q := range r.Ratios {
		fmt.Fprintf(&b, "%s against the floor: ", q.Name)
		if q.Rate > 0 {
			fmt.Fprintf(&b, "%.2f × its rate, ", q.Rate)
		}
		if q.ServerCPU > 0 {
			fmt.Fprintf(&b, "%.2f × its server CPU, ", q.ServerCPU)
		}
		fmt.Fprintf(&b, "p50 %+d µs, p99 %+d µs\n", q.P50Added, q.P99Added)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func micros(us int64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%d µs", us)
	case us < 1_000_000:
		return fmt.Sprintf("%.2f ms", float64(us)/1000)
	}
	return fmt.Sprintf("%.2f s", float64(us)/1e6)
}

func cpuWord(us float64) string {
	if us == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f µs", us)
}
