package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"starling"
	"starling/cmd/starling/node"
	"starling/sched/scale"
	policy "starling/sim/compare" // compare is the name of a function here
	"starling/sim/load"
	"starling/store/trace"
)

type analyzeFlags struct {
	model      load.AzureConfig
	burst      bool
	seed       uint64
	sweep      []string
	config     string
	html, tune string
	budget     float64
	budgetOf   string
	callsMax   int
	workers    int
}

func analyzeCommand(a *app) *cobra.Command {
	f := analyzeFlags{model: load.DefaultAzure()}
	c := &cobra.Command{
		Use: "analyze [TRACE]", Short: "Replay recorded load under many scaling settings and tune the scheduler", Args: cobra.MaximumNArgs(1),
		Long: `Analyze replays a trace that 'starling node --record DIR' wrote (a folder or one file), or without one a day of load of
the shape published of Azure Functions. It runs the policies of other platforms and the built-in one on the same calls,
sweeps settings of the built-in one, and shows cold starts and p99 wait against instance-seconds. --tune writes the
settings with the fewest cold starts that cost no more than --budget times the instance-seconds of --budget-of;
'starling node --scale-config FILE' loads them.

Each function is replayed alone, so hosts never fill up and one function does not wait for another's starts.`,
		Example: "  starling up --record ./calls                      # records what it serves\n" +
			"  starling analyze ./calls --html front.html --tune scaling.yaml\n  starling up --scale-config scaling.yaml\n" +
			"  starling analyze --functions 2000 --seed 7 --sweep worth=5m,20m,80m --sweep idleMin=2s,30s\n  starling analyze --burst",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.analyze(cmd.Context(), &f, strings.Join(args, ""))
		}}
	fl := c.Flags()
	fl.IntVar(&f.model.Functions, "functions", f.model.Functions, "functions of the model load, 1-1000000")
	fl.DurationVar(&f.model.Length, "length", f.model.Length, "length of the model load")
	fl.Float64Var(&f.model.RateMax, "rate-max", f.model.RateMax, "calls a day of the busiest function of the model load")
	fl.DurationVar(&f.model.Start, "start", f.model.Start, "what a sandbox takes to start, where no trace says it")
	fl.DurationVar(&f.model.Init, "init", f.model.Init, "median of the functions' own initialisation, where no trace says it")
	fl.BoolVar(&f.burst, "burst", false, "replay one function and 1,000 calls of 50 ms in 100 ms instead")
	fl.Uint64Var(&f.seed, "seed", 1, "of the model load: the same seed is the same load")
	fl.StringArrayVar(&f.sweep, "sweep", nil, "setting=value,value,... to try; repeat for all combinations; 'none' for no sweep (default: worth, downAfter and idleMin)")
	fl.StringVar(&f.config, "scale-config", "", "file with the settings to start from (default: built in)")
	fl.StringVar(&f.html, "html", "", "also write the charts to this file")
	fl.StringVar(&f.tune, "tune", "", "write the best settings to this file")
	fl.Float64Var(&f.budget, "budget", 1, "instance-seconds that the best settings may cost, as a factor")
	fl.StringVar(&f.budgetOf, "budget-of", "starling", "policy that the factor is of, by its name in the table")
	fl.IntVar(&f.callsMax, "calls-max", policy.CallsMax, "calls to hold in memory at most, 16-24 bytes each")
	fl.IntVar(&f.workers, "workers", runtime.NumCPU(), "policies replayed at once")
	return c
}

var defaultSweep = []string{"worth=5m,10m,20m,30m,40m,60m,80m,160m,320m", "downAfter=10s,60s", "idleMin=2s,60s"}

func (a *app) analyze(ctx context.Context, f *analyzeFlags, path string) error {
	if f.model.Functions < 1 || f.model.Functions > 1_000_000 || f.model.Length <= 0 || f.model.RateMax <= 0 || f.workers < 1 || f.budget <= 0 {
		return usagef("--functions is 1-1000000; --length, --rate-max, --budget and --workers are above 0")
	}
	base, err := node.ReadScaling(f.config)
	if err != nil {
		return err
	}
	candidates, err := f.candidates(base)
	if err != nil {
		return err
	}
	t, what, err := f.trace(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.err, "replaying %s under %d policies\n", what, len(candidates))
	results, err := a.replay(ctx, t, candidates, f.workers)
	if err != nil {
		return err
	}
	report := policy.Report{Title: "Scaling policies side by side", Load: what}
	for i, c := range candidates {
		if c.Params == nil {
			report.Rivals = append(report.Rivals, results[i])
		} else {
			results[i].Params = c.Params
			report.Sweep = append(report.Sweep, results[i])
		}
	}
	report.Compare()
	if err := f.choose(&report, base); err != nil {
		return err
	}
	return a.showAnalysis(f, &report)
}

// candidates are the rivals, the policy as it is, and the sweep.
func (f *analyzeFlags) candidates(base *scale.Adaptive) ([]policy.Candidate, error) {
	cs := append(policy.Rivals(), policy.Candidate{Name: "starling", Policy: base})
	list := f.sweep
	if len(list) == 0 {
		list = defaultSweep
	}
	if len(list) == 1 && list[0] == "none" {
		return cs, nil
	}
	var knobs []policy.Knob
	for _, s := range list {
		name, values, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usagef("--sweep %q: use setting=value,value", s)
		}
		knobs = append(knobs, policy.Knob{Name: name, Values: splitList(values)})
	}
	swept, err := policy.Sweep(*base, knobs)
	return append(cs, swept...), err
}

// trace reads the recorded calls, or draws those of the model.
func (f *analyzeFlags) trace(path string) (*policy.Trace, string, error) {
	if path == "" {
		return f.drawn()
	}
	r, err := trace.OpenReader(path)
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	l, err := load.Recorded(load.RecordedConfig{CallsMax: f.callsMax, Start: f.model.Start, Init: f.model.Init}, r.Next)
	if err != nil {
		return nil, "", err
	}
	t, err := policy.Gather(l, f.callsMax)
	if err != nil {
		return nil, "", err
	}
	return t, fmt.Sprintf("%d calls (%.0f s of run time) of %d functions over %s recorded in %s", t.Count, t.Seconds, len(t.Functions), t.End.Round(time.Second), path), nil
}

func (f *analyzeFlags) drawn() (*policy.Trace, string, error) {
	if f.burst {
		fn := load.Function{Name: "burst", MemoryMiB: 128, Slots: 1, Start: 50 * time.Millisecond, Init: 100 * time.Millisecond}
		t, err := policy.Gather(load.Burst(fn, 10*time.Second, 1000, 100*time.Millisecond, 50*time.Millisecond), f.callsMax)
		if err == nil {
			t.End = 5 * time.Minute // the cost of what was started shows after the burst
		}
		return t, "1,000 calls of 50 ms in 100 ms, starts of 150 ms", err
	}
	t, err := policy.Gather(load.Azure(f.model, f.seed), f.callsMax)
	if err != nil {
		return nil, "", err
	}
	return t, fmt.Sprintf("%d calls (%.0f s of run time) of %d functions over %s, Azure-like, seed %d", t.Count, t.Seconds, f.model.Functions, f.model.Length, f.seed), nil
}

// replay runs the candidates, several at once, and returns their results in the same order.
func (a *app) replay(ctx context.Context, t *policy.Trace, cs []policy.Candidate, workers int) ([]*policy.Result, error) {
	results := make([]*policy.Result, len(cs))
	var next, done atomic.Int64
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(cs)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				results[i] = policy.Run(t, cs[i].Name, cs[i].Policy, policy.DefaultConfig(), func(int) bool { return ctx.Err() == nil })
				if n := done.Add(1); a.tty {
					fmt.Fprintf(a.err, "\r%d of %d", n, len(cs))
				}
			}
		})
	}
	group.Wait()
	if a.tty {
		fmt.Fprintln(a.err)
	}
	return results, ctx.Err()
}

// choose finds the best settings within the budget.
func (f *analyzeFlags) choose(r *policy.Report, base *scale.Adaptive) error {
	for _, x := range r.Rivals {
		if x.Policy != f.budgetOf {
			continue
		}
		if r.Tuned = policy.Best(r.Sweep, x.InstanceSeconds*f.budget, x.Refused); r.Tuned == nil {
			return nil
		}
		a := *base
		r.Setting = map[string]string{}
		for name, v := range r.Tuned.Params {
			if err := a.Set(name, v); err != nil {
				return err
			}
		}
		for _, name := range a.Names() {
			r.Setting[name] = a.Text(name)
		}
		return nil
	}
	return usagef("--budget-of %q: there is no such policy in the table", f.budgetOf)
}

func (a *app) showAnalysis(f *analyzeFlags, r *policy.Report) error {
	if f.html != "" {
		o, err := os.Create(f.html)
		if err != nil {
			return fmt.Errorf("write charts: %w", err)
		}
		defer o.Close()
		if err := policy.WriteHTML(o, *r); err != nil {
			return err
		}
		if err := o.Close(); err != nil {
			return fmt.Errorf("write charts: %w", err)
		}
	}
	if f.tune != "" {
		if err := writeTuned(f.tune, r); err != nil {
			return err
		}
	}
	switch a.flags.output {
	case "json":
		return writeJSON(a.out, r)
	case "yaml":
		return writeYAML(a.out, r)
	}
	if err := policy.WriteTable(a.out, r.Rivals); err != nil || len(r.Front) == 0 {
		return err
	}
	fmt.Fprintf(a.out, "\nThe front of %d settings:\n", len(r.Sweep))
	if err := policy.WriteTable(a.out, r.Front); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if err := r.WriteEqual(a.out); err != nil {
		return err
	}
	if r.Tuned == nil {
		a.tell("\nNone of the settings stays within the budget.")
		return nil
	}
	a.tell("\nBest within the budget: %s", r.Tuned.Policy)
	return nil
}

// writeTuned writes what 'starling node --scale-config' reads.
func writeTuned(path string, r *policy.Report) error {
	if r.Tuned == nil {
		return starling.Errorf(starling.Invalid, "tune", "none of the settings stays within the budget: sweep more of them, or raise --budget")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# starling analyze: %s\n# cold %.4f%%, p99 wait %s, %.0f instance-seconds\n", r.Load, 100*r.Tuned.ColdRatio(), r.Tuned.WaitP99, r.Tuned.InstanceSeconds)
	for _, name := range (&scale.Adaptive{}).Names() {
		fmt.Fprintf(&b, "%s: %s\n", name, r.Setting[name])
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}
