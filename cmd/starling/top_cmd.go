package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/bench"
	"starling/frontend/protocol"
)

// sample is the cluster at one instant.
type sample struct {
	at         time.Time
	nodes      []protocol.Node
	partitions map[starling.NodeID]int
	ring       []protocol.Partition
	metrics    map[string]map[string]float64 // admin address → series → value
	functions  []protocol.FunctionLoad
	failed     map[string]string // admin address → why it did not answer
}

// rate is one series that changes.
type rate struct {
	Admin  string  `json:"admin"`
	Series string  `json:"series"`
	PerSec float64 `json:"perSecond"`
}

type process struct {
	Admin   string  `json:"admin"`
	CPU     float64 `json:"cpu"` // cores busy
	Memory  int64   `json:"memoryBytes"`
	Problem string  `json:"problem,omitempty"`
}

type topView struct {
	Nodes     []protocol.Node         `json:"nodes"`
	Processes []process               `json:"processes"`
	Functions []protocol.FunctionLoad `json:"functions"`
	Busiest   []rate                  `json:"busiest"`
	Ring      []slice                 `json:"ring"`
}

func topCommand(a *app) *cobra.Command {
	var every time.Duration
	var once bool
	var rows int
	c := &cobra.Command{
		Use: "top", Short: "Show nodes, their load, the busiest functions and counters, live (admin)", Args: cobra.NoArgs,
		Long:    "Top asks the cluster for its nodes and partitions and every admin address (--admin) for its metrics, and shows\nwhat changes. With --once, or -o json, it shows one interval and ends.",
		Example: "  starling top\n  starling top --admin http://10.0.0.1:8081,http://10.0.0.2:8081\n  starling top --once -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rows < 1 || rows > 1000 {
				return usagef("--rows %d: use 1-1000", rows)
			}
			if every < 100*time.Millisecond {
				return usagef("--every %s: use 100ms or more", every)
			}
			return a.top(cmd.Context(), every, once || a.flags.output != "table", rows)
		}}
	c.Flags().DurationVar(&every, "every", 2*time.Second, "time between two looks")
	c.Flags().BoolVar(&once, "once", false, "show one interval and end")
	c.Flags().IntVar(&rows, "rows", 15, "functions, and counters, to show")
	return c
}

func (a *app) top(ctx context.Context, every time.Duration, once bool, rows int) error {
	last, err := a.sample(ctx, rows)
	if err != nil {
		return err
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		next, err := a.sample(ctx, rows)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		view := compare(last, next, rows)
		if once {
			return a.print(view, func(t table.Writer) { drawTop(a.out, view, next) })
		}
		var screen strings.Builder
		drawTop(&screen, view, next)
		// Home, the new picture with every line cleared to its end, then clear below: no flicker.
		fmt.Fprintf(a.out, "\x1b[H%s\x1b[J", strings.ReplaceAll(screen.String(), "\n", "\x1b[K\n"))
		last = next
	}
}

func (a *app) sample(ctx context.Context, rows int) (*sample, error) {
	s := &sample{at: time.Now(), metrics: map[string]map[string]float64{}, failed: map[string]string{}}
	nodes, err := a.client().Nodes(ctx)
	if err != nil {
		return nil, err
	}
	s.nodes = sortedNodes(nodes)
	parts, err := a.client().Partitions(ctx)
	if err != nil {
		return nil, err
	}
	s.partitions, s.ring = owned(parts), parts
	for _, admin := range a.set.list("admin") {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		m, err := bench.Scrape(asking, admin)
		cancel()
		if err != nil {
			s.failed[admin] = err.Error()
			continue
		}
		s.metrics[admin] = m
		loads, err := functionLoads(ctx, admin, rows)
		if err != nil {
			s.failed[admin] = err.Error()
		}
		s.functions = append(s.functions, loads...)
	}
	return s, nil
}

// functionLoads asks one admin address for its busiest functions.
func functionLoads(ctx context.Context, admin string, rows int) ([]protocol.FunctionLoad, error) {
	var loads []protocol.FunctionLoad
	return loads, askAdmin(ctx, admin, fmt.Sprintf("functions?rows=%d", rows), time.Second, 4<<20, &loads)
}

// askAdmin reads a JSON answer of one admin address, of so many bytes at most.
func askAdmin(ctx context.Context, admin, path string, patience time.Duration, most int64, into any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(admin, "/")+"/"+path, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", admin, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", admin, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s for %s: %s", admin, path, res.Status)
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, most)).Decode(into); err != nil {
		return fmt.Errorf("read %s of %s: %w", path, admin, err)
	}
	return nil
}

// compare tells what changed between two looks.
func compare(last, next *sample, rows int) topView {
	view := topView{Nodes: next.nodes, Ring: slicesOf(last.ring, next.ring), Functions: protocol.Busiest(next.functions, rows)}
	seconds := next.at.Sub(last.at).Seconds()
	for _, admin := range slices.Sorted(maps.Keys(next.metrics)) {
		before, now := last.metrics[admin], next.metrics[admin]
		if before == nil {
			before = now
		}
		view.Processes = append(view.Processes, process{Admin: admin, Memory: int64(now["process_resident_memory_bytes"]),
			CPU: (now["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / seconds})
		for series, v := range now {
			name, _, _ := strings.Cut(series, "{")
			d := (v - before[series]) / seconds
			if strings.HasPrefix(name, "starling_") && (strings.HasSuffix(name, "_total") || strings.HasSuffix(name, "_count")) && d > 0 {
				view.Busiest = append(view.Busiest, rate{admin, series, d})
			}
		}
	}
	for _, admin := range slices.Sorted(maps.Keys(next.failed)) {
		view.Processes = append(view.Processes, process{Admin: admin, Problem: next.failed[admin]})
	}
	slices.SortFunc(view.Busiest, func(x, y rate) int {
		return cmp.Or(cmp.Compare(y.PerSec, x.PerSec), cmp.Compare(x.Series, y.Series))
	})
	view.Busiest = view.Busiest[:min(rows, len(view.Busiest))]
	return view
}

func drawTop(w io.Writer, v topView, s *sample) {
	t := newTable(w)
	t.AppendHeader(table.Row{"node", "name", "state", "roles", "partitions", "http"})
	for _, n := range v.Nodes {
		t.AppendRow(table.Row{n.ID, printable(n.Name), n.State, n.Roles, s.partitions[n.ID], orDash(n.HTTP)})
	}
	t.Render()
	fmt.Fprintln(w)
	drawRing(w, v.Ring)
	t = newTable(w)
	t.AppendHeader(table.Row{"process", "cpu", "memory", ""})
	for _, p := range v.Processes {
		t.AppendRow(table.Row{p.Admin, fmt.Sprintf("%.0f%%", 100*p.CPU), size(p.Memory), printable(p.Problem)})
	}
	t.Render()
	fmt.Fprintln(w)
	t = newTable(w)
	t.AppendHeader(table.Row{"function", "version", "isolation", "wanted", "ready", "starting", "floor", "leased", "queue", "calls", "refused", "cold", ""})
	for _, f := range v.Functions {
		t.AppendRow(table.Row{printable(f.Function.String()), f.Version, orDash(string(f.Isolation)), f.Wanted, f.Ready, f.Starting, f.Floor, f.Leased, f.Waiting, f.Calls, f.Refused,
			fmt.Sprintf("%.1f%%", 100*f.Cold), printable(f.Held)})
	}
	t.Render()
	fmt.Fprintln(w)
	t = newTable(w)
	t.AppendHeader(table.Row{"per second", "counter", "process"})
	for _, r := range v.Busiest {
		t.AppendRow(table.Row{fmt.Sprintf("%.1f", r.PerSec), printable(r.Series), r.Admin})
	}
	t.Render()
}
