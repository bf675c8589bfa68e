package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/protocol"
)

func accountCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "account", Short: "Create and list accounts and their keys (admin)", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(accountCreate(a), accountList(a), accountDelete(a), accountKey(a), accountIsolation(a))
	return c
}

func accountCreate(a *app) *cobra.Command {
	var concurrency int
	var noKey bool
	var p policyFlags
	c := &cobra.Command{
		Use: "create NAME", Short: "Create an account and a key for it", Args: cobra.ExactArgs(1),
		Long:    "Create makes an account and its first user key. The key is shown once and stored nowhere.",
		Example: "  starling account create acme\n  starling account create acme --concurrency 200 -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			id := starling.AccountID(args[0])
			if err := id.Validate(); err != nil {
				return err
			}
			acc, err := a.client().CreateAccount(cmd.Context(), protocol.AccountSpec{ID: id, ConcurrencyMax: concurrency, Isolation: p.policy().Default, IsolationLeast: p.policy().Least})
			if err != nil {
				return err
			}
			if noKey {
				return a.say(acc, "Created account %s: %d calls at once.", acc.ID, acc.ConcurrencyMax)
			}
			key, err := a.client().CreateKey(cmd.Context(), id, starling.KeyUser)
			if err != nil {
				return fmt.Errorf("the account is made, its key is not ('starling account key create %s' tries again): %w", id, err)
			}
			return a.say(map[string]any{"account": acc, "key": key}, "Created account %s: %d calls at once.\nKey (shown once): %s", acc.ID, acc.ConcurrencyMax, key.Secret)
		}}
	c.Flags().IntVar(&concurrency, "concurrency", 0, "calls in flight at once (default 1000)")
	p.add(c.Flags(), "isolation")
	c.Flags().BoolVar(&noKey, "no-key", false, "make no key")
	return c
}

func accountList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List accounts", Args: cobra.NoArgs, Example: "  starling account list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := all(func(after string) (protocol.Page[starling.Account], error) {
				return a.client().Accounts(cmd.Context(), after, 1000)
			})
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"account", "calls at once", "isolation", "at least", "created"})
				for _, acc := range list {
					t.AppendRow(table.Row{acc.ID, acc.ConcurrencyMax, orDash(string(acc.Isolation)), orDash(string(acc.IsolationLeast)), ago(acc.Created)})
				}
			})
		}}
}

func accountDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete an account that owns no function, with its keys", Args: cobra.ExactArgs(1),
		Example: "  starling account delete acme",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.client().DeleteAccount(cmd.Context(), starling.AccountID(args[0])); err != nil {
				return err
			}
			return a.say(map[string]string{"deleted": args[0]}, "Deleted account %s.", args[0])
		}}
}

func accountKey(a *app) *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Create, list and revoke keys of an account", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var role string
	create := &cobra.Command{
		Use: "create ACCOUNT", Short: "Create a key; it is shown once", Args: cobra.ExactArgs(1),
		Example: "  starling account key create acme\n  starling account key create acme --role admin",
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := a.client().CreateKey(cmd.Context(), starling.AccountID(args[0]), starling.KeyRole(role))
			if err != nil {
				return err
			}
			return a.say(key, "%s", key.Secret)
		}}
	create.Flags().StringVar(&role, "role", "user", "user or admin")
	list := &cobra.Command{
		Use: "list ACCOUNT", Aliases: []string{"ls"}, Short: "List the keys of an account, without their secrets", Args: cobra.ExactArgs(1),
		Example: "  starling account key list acme",
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := a.client().Keys(cmd.Context(), starling.AccountID(args[0]))
			if err != nil {
				return err
			}
			return a.print(keys, func(t table.Writer) {
				t.AppendHeader(table.Row{"key", "role", "created"})
				for _, k := range keys {
					t.AppendRow(table.Row{k.ID, k.Role, ago(k.Created)})
				}
			})
		}}
	revoke := &cobra.Command{
		Use: "delete ACCOUNT KEY", Aliases: []string{"rm", "revoke"}, Short: "Revoke a key by its name in the list", Args: cobra.ExactArgs(2),
		Example: "  starling account key delete acme 4fK2xQ9z",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.client().DeleteKey(cmd.Context(), starling.AccountID(args[0]), args[1]); err != nil {
				return err
			}
			return a.say(map[string]string{"deleted": args[1]}, "Revoked key %s of %s.", args[1], args[0])
		}}
	c.AddCommand(create, list, revoke)
	return c
}

func nodesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "nodes", Short: "List the nodes of the cluster (admin)", Args: cobra.NoArgs, Example: "  starling nodes\n  starling nodes -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Nodes(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) { nodeRows(t, list) })
		}}
}

func nodeRows(t table.Writer, list []protocol.Node) {
	t.AppendHeader(table.Row{"node", "name", "state", "roles", "isolation", "zone", "partitions", "instances", "quic", "http", "joined"})
	for _, n := range list {
		partitions, instances, isolation := "-", "-", ""
		if n.Load != nil {
			partitions, instances = strconv.Itoa(int(n.Load.Partitions)), strconv.Itoa(int(n.Load.Instances))
			isolation = n.Load.Isolations
		}
		t.AppendRow(table.Row{n.ID, printable(n.Name), n.State, n.Roles, orDash(isolation), orDash(string(n.Zone)), partitions, instances, n.Addr, orDash(n.HTTP), ago(n.Joined)})
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

func ownerWord(n starling.NodeID) string {
	if n == 0 {
		return "-"
	}
	return n.String()
}

// owned counts partitions for each node.
func owned(list []protocol.Partition) map[starling.NodeID]int {
	count := map[starling.NodeID]int{}
	for _, p := range list {
		count[p.Owner]++
	}
	return count
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this binary", Args: cobra.NoArgs, Example: "  starling version -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := buildInfo()
			return a.say(v, "starling %s, commit %s, %s", v.Version, v.Commit, v.Go)
		}}
}

func sortedNodes(list []protocol.Node) []protocol.Node {
	return slices.SortedFunc(slices.Values(list), func(x, y protocol.Node) int { return int(x.ID) - int(y.ID) })
}
