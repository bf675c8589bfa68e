package main

import (
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"starling"
	"starling/frontend/protocol"
)

// policyFlags are what an operator says of isolation.
type policyFlags struct{ usual, least string }

func (p *policyFlags) add(fl *pflag.FlagSet, usual string) {
	fl.StringVar(&p.usual, usual, "", "of functions that do not say: process, gvisor or kata")
	fl.StringVar(&p.least, "least", "", "no function may have less: process, gvisor or kata")
}

func (p *policyFlags) policy() starling.IsolationPolicy {
	return starling.IsolationPolicy{Default: starling.Isolation(p.usual), Least: starling.Isolation(p.least)}
}

// over returns what is said now with what the flags change.
func (p *policyFlags) over(fl *pflag.FlagSet, usual string, now starling.IsolationPolicy) starling.IsolationPolicy {
	if fl.Changed(usual) {
		now.Default = starling.Isolation(p.usual)
	}
	if fl.Changed("least") {
		now.Least = starling.Isolation(p.least)
	}
	return now
}

func (a *app) showIsolation(i protocol.Isolation, cluster bool) error {
	return a.print(i, func(t table.Writer) {
		t.AppendRows([]table.Row{{"default", i.Default.Or(i.Least).Or(starling.IsolationProcess)}, {"at least", i.Least.Or(starling.IsolationProcess)}})
		if cluster {
			t.AppendRow(table.Row{"accounts may share a kernel", i.SharedKernel})
		}
	})
}

func clusterIsolation(a *app) *cobra.Command {
	var p policyFlags
	var shared bool
	c := &cobra.Command{
		Use: "isolation", Short: "Show or change what isolates functions (admin)", Args: cobra.NoArgs,
		Long: `Isolation shows, and with flags changes, what functions of all accounts are isolated with when they do not say, and what
none may have less of: process (namespaces and filters; the kernel is the host's), gvisor (a kernel of its own in
user space) or kata (a virtual machine). Functions that are deployed keep what they have.
A second account is refused while functions could share a kernel and nobody said that they may: demand more, or say it
with --allow-shared-kernel.`,
		Example: "  starling cluster isolation\n  starling cluster isolation --default gvisor\n  starling cluster isolation --least gvisor\n  starling cluster isolation --allow-shared-kernel",
		RunE: func(cmd *cobra.Command, _ []string) error {
			now, err := a.client().Isolation(cmd.Context())
			if err != nil {
				return err
			}
			to := protocol.Isolation{IsolationPolicy: p.over(cmd.Flags(), "default", now.IsolationPolicy), SharedKernel: now.SharedKernel}
			if cmd.Flags().Changed("allow-shared-kernel") {
				to.SharedKernel = shared
			}
			if to != now {
				if now, err = a.client().SetIsolation(cmd.Context(), to); err != nil {
					return err
				}
			}
			return a.showIsolation(now, true)
		}}
	p.add(c.Flags(), "default")
	c.Flags().BoolVar(&shared, "allow-shared-kernel", false, "functions of several accounts may share the kernel of a host")
	return c
}

func accountIsolation(a *app) *cobra.Command {
	var p policyFlags
	c := &cobra.Command{
		Use: "isolation NAME", Short: "Show or change what isolates an account's functions", Args: cobra.ExactArgs(1),
		Long:    "Isolation shows what counts for an account's functions: its own word under the cluster's. With flags it changes its own.\nFunctions that are deployed keep what they have.",
		Example: "  starling account isolation acme\n  starling account isolation acme --default gvisor --least gvisor",
		RunE: func(cmd *cobra.Command, args []string) error {
			id := starling.AccountID(args[0])
			if !cmd.Flags().Changed("default") && !cmd.Flags().Changed("least") {
				now, err := a.client().AccountIsolation(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.showIsolation(now, false)
			}
			acc, err := a.client().Account(cmd.Context(), id)
			if err != nil {
				return err
			}
			own := starling.IsolationPolicy{Default: acc.Isolation, Least: acc.IsolationLeast}
			now, err := a.client().SetAccountIsolation(cmd.Context(), id, p.over(cmd.Flags(), "default", own))
			if err != nil {
				return err
			}
			return a.showIsolation(now, false)
		}}
	p.add(c.Flags(), "default")
	return c
}
