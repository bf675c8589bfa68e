package main

import (
	"context"
	"fmt"
	"math"
	"net/url"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/metrics/profile"
	"starling/sched/advise"
)

const (
	profilesPatience = 5 * time.Second
	profilesMax      = 64 << 20 // bytes of one node's answer
)

// adviceLine is what is said of one version.
type adviceLine struct {
	Function    starling.FunctionRef   `json:"function"`
	Number      starling.VersionNumber `json:"number"`
	Version     starling.VersionID     `json:"version"`
	Calls       uint64                 `json:"calls"`
	First       time.Time              `json:"first"`
	Last        time.Time              `json:"last"`
	PeakP99MiB  float64                `json:"peakP99MiB"`
	RunP50MS    float64                `json:"runP50MS"`
	RunP99MS    float64                `json:"runP99MS"`
	CPUMS       float64                `json:"cpuMS"` // mean of a call
	Advice      advise.Advice          `json:"advice"`
	observation advise.Observation
}

type adviseView struct {
	Functions []adviceLine      `json:"functions"`
	Problems  map[string]string `json:"problems,omitempty"` // admin address → why it did not answer: its calls are not in it
}

const adviseLong = `Advise asks every admin address (--admin) what the calls of each function used since its node began, and says which
memory size would fit: one that holds every peak seen, leaves headroom over their p99, and brings enough CPU (1769 MiB
are one CPU, the smallest size has a quarter) that calls take about as long as now. Among those it names the one with
the fewest GiB-seconds. Of functions with several versions it tells the one that is newest.

Run times at other sizes are predicted: waiting stays, computing follows the CPU. Bursts finer than half a second are
not seen. With few calls nothing is advised; confidence is low below 1,000 calls and good from 10,000. With a
FUNCTION the other sizes are shown, too. Nothing is changed: 'starling deploy --memory' does that.`

func adviseCommand(a *app) *cobra.Command {
	cfg := advise.DefaultConfig()
	c := &cobra.Command{
		Use: "advise [FUNCTION]", Short: "Say which memory size would fit functions, and what it saves (admin)", Args: cobra.MaximumNArgs(1), Long: adviseLong,
		Example: "  starling advise\n  starling advise resize --slower 0.5      # half again as slow is fine\n  starling advise acme/resize -o json\n  starling advise --admin http://10.0.0.1:8081,http://10.0.0.2:8081",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cfg.Validate(); err != nil {
				return usageError{err}
			}
			return a.advise(cmd.Context(), strings.Join(args, ""), cfg)
		}}
	c.Flags().Uint64Var(&cfg.CallMin, "calls-min", cfg.CallMin, "calls below which nothing is advised")
	c.Flags().Float64Var(&cfg.Headroom, "headroom", cfg.Headroom, "share of memory to leave free over the p99 of the peaks")
	c.Flags().Float64Var(&cfg.Slower, "slower", cfg.Slower, "share by which a call may take longer")
	return c
}

func (a *app) advise(ctx context.Context, name string, cfg advise.Config) error {
	account, function, full := strings.Cut(name, "/")
	if !full {
		account, function = "", name
	}
	view := adviseView{Functions: []adviceLine{}, Problems: map[string]string{}}
	var lists [][]profile.Profile
	for _, admin := range a.set.list("admin") {
		var list []profile.Profile
		if err := askAdmin(ctx, admin, "profiles?function="+url.QueryEscape(function), profilesPatience, profilesMax, &list); err != nil {
			view.Problems[admin] = err.Error()
			continue
		}
		lists = append(lists, list)
	}
	if len(lists) == 0 {
		return starling.Errorf(starling.Unavailable, "advise", "no admin address answered: %v", view.Problems)
	}
	for _, p := range profile.Merge(lists...) {
		n := len(view.Functions)
		if newest := n == 0 || view.Functions[n-1].Function != p.Function; newest && (account == "" || string(p.Function.Account) == account) {
			view.Functions = append(view.Functions, adviseOn(&p, cfg))
		}
	}
	if name != "" && len(view.Functions) == 0 {
		return starling.Errorf(starling.NotFound, "advise", "no call of %s was seen: its nodes may have started since, or are not among --admin", printable(name))
	}
	if a.flags.output == "table" {
		for admin, why := range view.Problems {
			fmt.Fprintf(a.err, "Without the calls of %s: %s\n", admin, printable(why))
		}
	}
	if err := a.print(view, func(t table.Writer) { drawAdvice(t, view.Functions) }); err != nil {
		return err
	}
	if a.flags.output == "table" && name != "" {
		for _, l := range view.Functions {
			a.drawSizes(l)
		}
	}
	return nil
}

// adviseOn turns a profile into means and quantiles, and those into advice.
func adviseOn(p *profile.Profile, cfg advise.Config) adviceLine {
	o := advise.Observation{MemoryMiB: p.MemoryMiB, Timeout: time.Duration(p.TimeoutMS) * time.Millisecond, Calls: p.Calls, OutOfMemory: p.OutOfMemory,
		Run: mean(p.RunSeconds, p.Calls), RunP99: inSeconds(p.Runs.Quantile(.99)), CPU: mean(p.CPUSeconds, p.CPUCalls), CPUCalls: p.CPUCalls,
		PeakP99: int64(p.Peaks.Quantile(.99)), PeakMax: p.MemoryMax}
	if p.ActiveSeconds > 0 {
		o.Demand = o.CPU.Seconds() * float64(p.Calls) / p.ActiveSeconds
	}
	ms := func(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e3 }
	return adviceLine{Function: p.Function, Number: p.Number, Version: p.Version, Calls: p.Calls, First: p.First, Last: p.Last,
		PeakP99MiB: math.Round(p.Peaks.Quantile(.99)/(1<<20)*10) / 10, RunP50MS: ms(inSeconds(p.Runs.Quantile(.5))), RunP99MS: ms(o.RunP99), CPUMS: ms(o.CPU),
		Advice: advise.For(o, cfg), observation: o}
}

func mean(sum float64, n uint64) time.Duration { return inSeconds(sum / float64(max(n, 1))) }

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func drawAdvice(t table.Writer, lines []adviceLine) {
	t.AppendHeader(table.Row{"function", "version", "calls", "memory", "peak p99", "cpu/call", "mean", "advice", "memory", "mean", "saves", "confidence", "because"})
	for _, l := range lines {
		o, a := l.observation, l.Advice
		row := table.Row{printable(l.Function.String()), l.Number, l.Calls, mibs(o.MemoryMiB), fmt.Sprintf("%.0f MiB", l.PeakP99MiB), short(o.CPU), short(o.Run), a.Verdict}
		if a.Verdict == advise.Unknown || a.Verdict == advise.Keep {
			row = append(row, "-", "-", "-")
		} else {
			row = append(row, mibs(a.Best.MemoryMiB), short(a.Best.Run), fmt.Sprintf("%.3g GiB-s (%.0f%%)", a.Saves, 100*a.SavesShare))
		}
		t.AppendRow(append(row, a.Confidence, a.Reason))
	}
}

// drawSizes shows what calls would take and cost at other sizes.
func (a *app) drawSizes(l adviceLine) {
	if len(l.Advice.Sizes) == 0 {
		return
	}
	fmt.Fprintf(a.out, "\n%s, predicted for its %d calls:\n", printable(l.Function.String()), l.Calls)
	t := newTable(a.out)
	t.AppendHeader(table.Row{"memory", "cpu", "mean", "p99", "GiB-s", ""})
	for _, s := range l.Advice.Sizes {
		note := ""
		switch {
		case s.MemoryMiB == l.observation.MemoryMiB:
			note = "now"
		case s.MemoryMiB == l.Advice.Best.MemoryMiB:
			note = "advised"
		case !s.Fits:
			note = "too small"
		}
		t.AppendRow(table.Row{mibs(s.MemoryMiB), fmt.Sprintf("%.2f", s.CPU), short(s.Run), short(s.RunP99), fmt.Sprintf("%.3g", s.GiBSeconds), note})
	}
	t.Render()
}

func mibs(n int) string { return fmt.Sprintf("%d MiB", n) }

// short rounds a duration to three digits.
func short(d time.Duration) string {
	if d <= 0 {
		return "0"
	}
	unit := time.Duration(math.Pow10(max(int(math.Log10(float64(d)))-2, 0)))
	return d.Round(unit).String()
}
