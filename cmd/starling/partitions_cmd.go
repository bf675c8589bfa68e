package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/protocol"
)

func partitionsCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "partitions", Short: "List, move, split and merge the partitions of the key space (admin)", Args: cobra.NoArgs,
		Example: "  starling partitions\n  starling partitions plan\n  starling partitions move p3 n2\n  starling partitions watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := a.client().Partitions(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"partition", "from key", "to key", "owner", "epoch", "state"})
				for _, p := range list {
					t.AppendRow(table.Row{p.ID, p.Lo, p.Hi, ownerWord(p.Owner), p.Epoch, p.State})
				}
			})
		}}
	c.AddCommand(partitionMove(a), partitionSplit(a), partitionMerge(a), partitionPlan(a), partitionWatch(a))
	return c
}

// parsePartition reads "p3" or "3".
func parsePartition(s string) (starling.PartitionID, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "p"), 10, 64)
	if err != nil || n == 0 {
		return 0, usagef("partition %q: use a name from 'starling partitions', like p3", s)
	}
	return starling.PartitionID(n), nil
}

func partitionMove(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "move PARTITION NODE", Short: "Move a partition to another node, without a pause that callers see", Args: cobra.ExactArgs(2),
		Long:    "Move waits until the partition's owner has handed it over. The balance plan may move it again when the load asks for it.",
		Example: "  starling partitions move p3 n2\n  starling partitions move 3 scheduler-b -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePartition(args[0])
			if err != nil {
				return err
			}
			n, err := a.findNode(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			change := protocol.PartitionChange{Change: "move", Node: n.ID}
			if err := a.client().ChangePartition(cmd.Context(), p, change); err != nil {
				return err
			}
			return a.say(change, "Moved %s to %s.", p, n.ID)
		}}
}

func partitionSplit(a *app) *cobra.Command {
	var at, function string
	c := &cobra.Command{
		Use: "split PARTITION", Short: "Cut a partition in two on its node", Args: cobra.ExactArgs(1),
		Long:    "Split cuts where it parts the load best, or at a key, or through the keys of one function, which two nodes can then serve.",
		Example: "  starling partitions split p3\n  starling partitions split p3 --at 5c00000000000000\n  starling partitions split p3 --function acme/resize",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePartition(args[0])
			if err != nil {
				return err
			}
			change := protocol.PartitionChange{Change: "split", At: at}
			if function != "" {
				account, name, ok := strings.Cut(function, "/")
				if !ok || at != "" {
					return usagef("--function %q: use ACCOUNT/NAME, and not together with --at", function)
				}
				change.Function = starling.FunctionRef{Account: starling.AccountID(account), Name: starling.FunctionName(name)}
			}
			if err := a.client().ChangePartition(cmd.Context(), p, change); err != nil {
				return err
			}
			return a.say(change, "Split %s.", p)
		}}
	c.Flags().StringVar(&at, "at", "", "first key of the upper part, in hex")
	c.Flags().StringVar(&function, "function", "", "cut this function's keys in half: ACCOUNT/NAME")
	return c
}

func partitionMerge(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "merge PARTITION NEIGHBOUR", Short: "Join two neighbours", Args: cobra.ExactArgs(2),
		Long:    "Merge joins two partitions that lie side by side. When they are on two nodes, the first one is moved to the other's node before.",
		Example: "  starling partitions merge p3 p4",
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := parsePartition(args[0])
			if err != nil {
				return err
			}
			q, err := parsePartition(args[1])
			if err != nil {
				return err
			}
			change := protocol.PartitionChange{Change: "merge", With: q}
			if err := a.client().ChangePartition(cmd.Context(), p, change); err != nil {
				return err
			}
			return a.say(change, "Merged %s and %s.", p, q)
		}}
}

func partitionPlan(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "plan", Short: "Show what the balance plan would change, and why", Args: cobra.NoArgs,
		Long:    "Plan is a dry run: it shows what the leading manager would order if all reasons had lasted long enough. It changes nothing.",
		Example: "  starling partitions plan\n  starling partitions plan -o yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := a.client().Plan(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(plan, func(t table.Writer) {
				t.SetCaption("The most loaded node has %.2f × the mean.", plan.Imbalance)
				if plan.Held != "" {
					t.SetCaption("Nothing of this will be done: %s.", printable(plan.Held))
				}
				t.AppendHeader(table.Row{"", "change", "partition", "owner", "to", "reason"})
				for _, c := range plan.InFlight {
					t.AppendRow(table.Row{"in flight", c.Change, c.Partition, ownerWord(c.Owner), target(c), printable(c.Reason)})
				}
				for _, c := range plan.Changes {
					t.AppendRow(table.Row{"planned", c.Change, c.Partition, ownerWord(c.Owner), target(c), printable(c.Reason)})
				}
			})
		}}
}

// target says where a change leads: a node, a key or a neighbour.
func target(c protocol.PlannedChange) string {
	switch {
	case c.Node != 0:
		return c.Node.String()
	case c.With != 0:
		return c.With.String()
	}
	return orDash(c.At)
}

func partitionWatch(a *app) *cobra.Command {
	var once bool
	c := &cobra.Command{
		Use: "watch", Short: "Follow what happens to the partitions", Args: cobra.NoArgs,
		Long:    "Watch shows each change with its time, epoch, owner and reason, beginning with what the leading manager remembers. It ends at Ctrl-C.",
		Example: "  starling partitions watch\n  starling partitions watch --once -o json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.watchPartitions(cmd.Context(), once) }}
	c.Flags().BoolVar(&once, "once", false, "show what is remembered and end")
	return c
}

func (a *app) watchPartitions(ctx context.Context, once bool) error {
	var reign, after uint64
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for first := true; ; first = false {
		h, err := a.client().PartitionHistory(ctx, reign, after)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Reign != reign {
			reign, after = h.Reign, 0
		}
		if n := len(h.Events); n > 0 {
			after = h.Events[n-1].Number
		}
		if err := a.showEvents(h.Events, first); err != nil || once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// showEvents writes one line for each event: as JSON or YAML for programs, in columns for people.
func (a *app) showEvents(events []protocol.PartitionEvent, header bool) error {
	const columns = "%-24s %-9s %-6s %6d  %-14s %s"
	if header && a.flags.output != "json" && a.flags.output != "yaml" {
		if err := a.say(nil, "%-24s %-9s %-6s %6s  %-14s %s", "time", "what", "part", "epoch", "owner", "reason"); err != nil {
			return err
		}
	}
	for _, e := range events {
		if a.flags.output == "json" {
			if err := writeJSONLine(a.out, e); err != nil {
				return err
			}
			continue
		}
		owner := ownerWord(e.Owner)
		if e.From != e.Owner && e.From != 0 {
			owner = e.From.String() + " → " + owner
		}
		if err := a.say([]protocol.PartitionEvent{e}, columns, e.Time.Format("2006-01-02T15:04:05.000Z"), e.What, e.Partition, e.Epoch, owner, printable(e.Reason)); err != nil {
			return err
		}
	}
	return nil
}
