package main

import (
	"fmt"
	"io"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/sim"
)

// simView is what sim prints. Seed is the one whose numbers follow.
type simView struct {
	Seed      uint64      `json:"seed"`
	Seeds     uint64      `json:"seeds"`
	Violation string      `json:"violation,omitempty"`
	Shortest  int         `json:"shortestEvents,omitempty"` // events with faults that suffice
	Result    *sim.Result `json:"result"`
}

func simCommand(a *app) *cobra.Command {
	var seed, seeds uint64
	var events int
	var trace bool
	var scenario string
	var fair sim.Fair
	c := &cobra.Command{
		Use: "sim", Short: "Run a whole cluster in virtual time, decided by a seed, and check its invariants", Args: cobra.NoArgs,
		Long: "Sim runs the production schedulers, partition map, leader's ledger and lease cache in one process, without network and\nclock: " +
			"nodes crash, stop and are cut off, messages are lost, and after every step checkers look whether an invariant is broken.\n" +
			"The same seed tells the same story on every machine. A violation ends in exit code 1 and the shortest beginning that shows it.",
		Example: "  starling sim --seed 7 --events 2000\n  starling sim --seed 7 --trace | less\n  starling sim --seed 1 --seeds 1000\n  starling sim --seed 7 -o json\n  starling sim --scenario fair --seed 1 -o json",
		RunE: func(*cobra.Command, []string) error {
			if events < 1 || seeds < 1 {
				return usagef("--events %d, --seeds %d: use 1 or more", events, seeds)
			}
			if trace && seeds > 1 {
				return usagef("--trace tells the story of one seed: leave out --seeds")
			}
			switch scenario {
			case "chaos":
				return a.simulate(seed, seeds, events, trace)
			case "fair":
				return a.simulateFair(fair, seed, seeds)
			}
			return usagef("--scenario %q: use chaos or fair", scenario)
		}}
	c.Flags().Uint64Var(&seed, "seed", 1, "the world to run, or the first one")
	c.Flags().Uint64Var(&seeds, "seeds", 1, "how many worlds to run, one after the other")
	c.Flags().IntVar(&events, "events", 2000, "events with faults in each world; then it settles")
	c.Flags().BoolVar(&trace, "trace", false, "tell everything that happens, on standard error")
	c.Flags().StringVar(&scenario, "scenario", "chaos", "chaos: whatever a seed decides; fair: one loud tenant beside quiet ones on machines that cannot serve them all")
	c.Flags().IntVar(&fair.Machines, "machines", 1, "of fair: machines of two processors, each with a frontend and a host")
	c.Flags().Float64Var(&fair.Times, "times", 50, "of fair: the loud tenant calls so many times as often as a quiet one")
	c.Flags().BoolVar(&fair.OneDoor, "one-door", false, "of fair: each tenant calls through one frontend only")
	c.Flags().Float64Var(&fair.Rate, "rate", 100, "of fair: calls a second of a quiet tenant")
	c.Flags().BoolVar(&fair.Open, "no-shedding", false, "of fair: frontends refuse nobody, to see what refusing is worth")
	return c
}

// simulateFair runs the worlds of the scenario and prints one report for each.
func (a *app) simulateFair(f sim.Fair, seed, seeds uint64) error {
	for n := seed; n < seed+seeds; n++ {
		r, err := sim.RunFair(f, n)
		if err != nil {
			return err
		}
		if err := a.print(r, func(t table.Writer) { fairRows(t, r) }); err != nil {
			return err
		}
	}
	return nil
}

func fairRows(t table.Writer, r *sim.FairReport) {
	t.AppendHeader(table.Row{"tenant", "p50 alone", "p50 beside", "p99 alone", "p99 beside", "times", "served", "refused", "share"})
	for _, x := range r.Tenants {
		t.AppendRow(table.Row{x.Name, x.Alone.LatencyP50, x.Beside.LatencyP50, x.Alone.LatencyP99, x.Beside.LatencyP99, fmt.Sprintf("%.2f", x.Ratio),
			fmt.Sprintf("%d of %d", x.Beside.Answered, x.Beside.Calls), x.Beside.Reasons, fmt.Sprintf("%.3f", x.Share)})
	}
	t.AppendFooter(table.Row{fmt.Sprintf("seed %d, %.1f of %.0f cores asked, worst %.2f times (%.2f with the first seconds), %d quiet refusals, Jain %.4f",
		r.Seed, r.Offered, r.Cores, r.Worst, r.Whole, r.Refusals, r.Jain)})
}

func (a *app) simulate(seed, seeds uint64, events int, trace bool) error {
	var to io.Writer
	if trace {
		to = a.err
	}
	view := simView{Seeds: seeds}
	var violation error
	for n := seed; n < seed+seeds && violation == nil; n++ {
		var w *sim.World
		w, violation = sim.RunSeed(n, events, to)
		view.Seed, view.Result = n, w.Result()
	}
	if violation != nil {
		view.Violation = violation.Error()
		view.Shortest, _ = sim.Shrink(view.Seed, events)
	}
	if err := a.print(view, func(t table.Writer) { simRows(t, view) }); err != nil {
		return err
	}
	if violation != nil {
		return starling.Errorf(starling.Internal, "simulate", "%v; replay with: starling sim --seed %d --events %d --trace", violation, view.Seed, view.Shortest)
	}
	return nil
}

func simRows(t table.Writer, v simView) {
	r := v.Result
	t.AppendRow(table.Row{"seed", v.Seed})
	t.AppendRow(table.Row{"virtual time", r.Virtual.Round(time.Millisecond)})
	t.AppendRow(table.Row{"events", r.Events})
	t.AppendRow(table.Row{"calls", fmt.Sprintf("%d, %d answered, %d of them cold", r.Calls, r.Answered, r.Cold)})
	t.AppendRow(table.Row{"refused", r.Refused})
	t.AppendRow(table.Row{"wait p50, p99, max", fmt.Sprint(r.WaitP50, " ", r.WaitP99, " ", r.WaitMax)})
	t.AppendRow(table.Row{"instances", fmt.Sprintf("%d started, %.1f instance-seconds", r.Starts, r.Instances)})
	if v.Violation != "" {
		t.AppendRow(table.Row{"VIOLATION", v.Violation})
		t.AppendRow(table.Row{"shortest", fmt.Sprintf("%d events", v.Shortest)})
		return
	}
	t.AppendRow(table.Row{"invariants", fmt.Sprintf("none broken in %d worlds", v.Seeds)})
}
