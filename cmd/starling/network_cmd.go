package main

import (
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/protocol"
)

func networkCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "Create, list, show, test and delete the networks that functions reach", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(networkCreate(a), networkList(a), networkShow(a), networkTest(a), networkDelete(a))
	return c
}

func networkCreate(a *app) *cobra.Command {
	var s protocol.NetworkSpec
	c := &cobra.Command{
		Use: "create NAME", Short: "Create a network", Args: cobra.ExactArgs(1),
		Long: `Create says what the functions that name the network may reach: addresses within --cidr, of which --allow leaves less and
--deny takes some away. Private addresses need a range of private addresses; metadata, loopback, link-local and multicast addresses
and those of the cluster are never reached. The operator plugs the network into gateways: starling node --uplinks.`,
		Example: "  starling network create db --cidr 10.0.0.0/16 --dns 10.0.0.2\n  starling network create db --cidr 10.0.0.0/16 --allow 10.0.3.7:5432 --egress 10.0.0.9",
		RunE: func(cmd *cobra.Command, args []string) error {
			s.Name = starling.NetworkName(args[0])
			n, err := a.client().CreateNetwork(cmd.Context(), s)
			if err != nil {
				return err
			}
			return a.say(n, "Created network %s. Use it: starling deploy --network %s", n.Ref.Name, n.Ref.Name)
		}}
	f := c.Flags()
	f.StringSliceVar(&s.CIDRs, "cidr", nil, "addresses that are reached, as 10.0.0.0/16; repeat for more")
	f.StringSliceVar(&s.DNS, "dns", nil, "name server within --cidr; repeat for more")
	f.StringVar(&s.Egress, "egress", "", "fixed source address (default: the uplink's)")
	f.StringSliceVar(&s.Allow, "allow", nil, "only this of --cidr, as 10.0.3.0/24 or 10.0.3.7:5432; repeat for more")
	f.StringSliceVar(&s.Deny, "deny", nil, "never this; repeat for more")
	f.IntVar(&s.ConnMax, "connections", 0, "flows at once (default 10000)")
	f.IntVar(&s.RateMax, "rate", 0, "flows begun in a second (default 1000)")
	return c
}

func networkList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List networks", Args: cobra.NoArgs, Example: "  starling network list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Networks(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"network", "reaches", "names by", "created"})
				for _, n := range list {
					t.AppendRow(table.Row{n.Ref.Name, strings.Join(n.CIDRs, " "), orDash(strings.Join(n.DNS, " ")), ago(n.Created)})
				}
			})
		}}
}

func networkShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show a network", Args: cobra.ExactArgs(1), Example: "  starling network show db",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := a.client().Network(cmd.Context(), starling.NetworkName(args[0]))
			if err != nil {
				return err
			}
			return a.print(n, func(t table.Writer) {
				t.AppendRows([]table.Row{{"network", n.Ref}, {"reaches", strings.Join(n.CIDRs, " ")}, {"only", orDash(strings.Join(n.Allow, " "))},
					{"never", orDash(strings.Join(n.Deny, " "))}, {"names by", orDash(strings.Join(n.DNS, " "))}, {"comes from", orDash(n.Egress)},
					{"flows at once", n.ConnMax}, {"begun in a second", n.RateMax}, {"created", ago(n.Created)}})
			})
		}}
}

func networkDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a network that no version names", Args: cobra.ExactArgs(1), Example: "  starling network delete db",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.client().DeleteNetwork(cmd.Context(), starling.NetworkName(args[0])); err != nil {
				return err
			}
			return a.say(map[string]string{"deleted": args[0]}, "Deleted network %s.", args[0])
		}}
}

func networkTest(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "test NAME HOST:PORT", Short: "Tell what a function's connection to an address would meet", Args: cobra.ExactArgs(2),
		Long: `Test lets the gateway of a network (or of internet) resolve HOST there, judge the address as it would a function's, connect over TCP
and hang up. It counts as a flow of the network. The exit status says nothing of the outcome: -o json has "reached".`,
		Example: "  starling network test db db.internal:5432\n  starling network test db 10.0.3.7:5432 -o json\n  starling network test internet example.org:443",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.client().TestNetwork(cmd.Context(), starling.NetworkName(args[0]), args[1])
			if err != nil {
				return err
			}
			return a.print(r, func(t table.Writer) {
				took := "-"
				if r.ConnectMS > 0 {
					took = fmt.Sprintf("%.1f ms", r.ConnectMS)
				}
				t.AppendRows([]table.Row{{"from network", r.Network}, {"to", r.Target}, {"which is", orDash(strings.Join(r.Addresses, " "))}, {"outcome", r.Outcome},
					{"because", orDash(r.Reason)}, {"connecting took", took}, {"asked gateway", r.Gateway}})
			})
		}}
}
