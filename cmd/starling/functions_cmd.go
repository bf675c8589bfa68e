package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/protocol"
)

// completeFunctions offers function names to the shell.
func (a *app) completeFunctions(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.load(cmd.Flags()) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	p, err := a.client().Functions(ctx, "", 0)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, v := range p.Items {
		names = append(names, string(v.Function.Name)+"\t"+v.Config.Description)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func functionsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "functions [NAME]", Aliases: []string{"function", "ls"}, Short: "List functions, or show one", Args: cobra.MaximumNArgs(1),
		Example: "  starling functions\n  starling functions hello -o yaml", ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.showFunction(cmd.Context(), starling.FunctionName(args[0]))
			}
			list, err := all(func(after string) (protocol.Page[starling.Version], error) {
				return a.client().Functions(cmd.Context(), after, 1000)
			})
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"name", "runtime", "handler", "memory", "timeout", "isolation", "code", "changed"})
				for _, v := range list {
					t.AppendRow(table.Row{v.Function.Name, v.Config.Runtime, v.Config.Handler, fmt.Sprintf("%d MiB", v.Config.MemoryMiB), v.Timeout(), v.Isolation(), size(v.CodeSize), ago(v.Created)})
				}
			})
		}}
}

// all reads every page of a list.
func all[T any](read func(after string) (protocol.Page[T], error)) ([]T, error) {
	list := []T{}
	after := ""
	for {
		p, err := read(after)
		if err != nil {
			return nil, err
		}
		list = append(list, p.Items...)
		if p.Next == "" || p.Next == after {
			return list, nil
		}
		after = p.Next
	}
}

func (a *app) showFunction(ctx context.Context, name starling.FunctionName) error {
	f, err := a.client().Function(ctx, name)
	if err != nil {
		return err
	}
	return a.print(f, func(t table.Writer) {
		v, c := f.Snapshot, f.Snapshot.Config
		t.AppendRows([]table.Row{{"name", f.Ref}, {"runtime", c.Runtime}, {"handler", c.Handler}, {"memory", fmt.Sprintf("%d MiB", c.MemoryMiB)},
			{"timeout", v.Timeout()}, {"isolation", v.Isolation()}, {"network", c.Network.Spoken()}, {"concurrency", c.Concurrency}, {"instances", limitWord(c.InstanceMax)}, {"provisioned", provisionWord(&c)}, {"code", fmt.Sprintf("%s, %s", size(v.CodeSize), v.Code)},
			{"snapshot", v.ID}, {"created", ago(f.Created)}, {"changed", ago(v.Created)}})
		if c.Description != "" {
			t.AppendRow(table.Row{"description", printable(c.Description)})
		}
		for i, l := range c.Layers {
			t.AppendRow(table.Row{fmt.Sprintf("layer %d", i+1), l})
		}
		for k, value := range c.Env {
			t.AppendRow(table.Row{"env " + k, printable(value)})
		}
		for _, n := range f.Numbered {
			t.AppendRow(table.Row{"version " + n.Number.String(), fmt.Sprintf("code %s, published %s", n.Code[:min(12, len(n.Code))], ago(n.Created))})
		}
	})
}

func limitWord(n int) string {
	if n == 0 {
		return "as the account allows"
	}
	return fmt.Sprintf("at most %d", n)
}

func publishCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "publish NAME", Short: "Number the latest snapshot of a function as a version", Args: cobra.ExactArgs(1),
		Example: "  starling publish hello && starling invoke hello --version 1", ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := a.client().PublishVersion(cmd.Context(), starling.FunctionName(args[0]))
			if err != nil {
				return err
			}
			return a.say(v, "%s is version %s.", args[0], v.Number)
		}}
}

func versionsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "versions NAME", Short: "List the published versions of a function", Args: cobra.ExactArgs(1),
		Example: "  starling versions hello", ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := a.client().Versions(cmd.Context(), starling.FunctionName(args[0]))
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"version", "runtime", "memory", "isolation", "code", "published"})
				for _, v := range list {
					t.AppendRow(table.Row{v.Number, v.Config.Runtime, fmt.Sprintf("%d MiB", v.Config.MemoryMiB), v.Isolation(), v.Code[:min(12, len(v.Code))], ago(v.Created)})
				}
			})
		}}
}

func deleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete functions with all their versions", Args: cobra.MinimumNArgs(1),
		Example: "  starling delete hello", ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := a.client().DeleteFunction(cmd.Context(), starling.FunctionName(name)); err != nil {
					return err
				}
				if err := a.say(map[string]string{"deleted": name}, "Deleted %s.", name); err != nil {
					return err
				}
			}
			return nil
		}}
}

type logFlags struct {
	follow, bare            bool
	version, request, since string
	limit                   int
}

func logsCommand(a *app) *cobra.Command {
	var f logFlags
	c := &cobra.Command{
		Use: "logs NAME", Short: "Show what a function printed", Args: cobra.ExactArgs(1),
		Long: "Logs prints the newest lines of a function from all hosts, oldest first, and with -f goes on as lines come.\nControl characters that functions print are shown, not sent to the terminal.",
		Example: "  starling logs hello -f\n  starling logs hello --request 0b1946ac-92d2-4cd5-9b5e-3a6f6d3f4a51\n" +
			"  starling logs hello --since 15m --limit 1000 -o json",
		ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := f.query(time.Now())
			if err != nil {
				return err
			}
			return a.logs(cmd.Context(), starling.FunctionName(args[0]), q, f.bare)
		}}
	fl := c.Flags()
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on as lines come")
	fl.StringVar(&f.version, "version", "", "only this version: latest or a number (default: all)")
	fl.StringVar(&f.request, "request", "", "only the call with this request id")
	fl.StringVar(&f.since, "since", "", "only newer than this: 15m, 2h or 2026-01-02T15:04:05Z")
	fl.IntVar(&f.limit, "limit", 100, "newest lines to begin with, 1-10000")
	fl.BoolVar(&f.bare, "bare", false, "print the lines alone, without time and request id")
	return c
}

func (f *logFlags) query(now time.Time) (protocol.LogQuery, error) {
	q := protocol.LogQuery{All: f.version == "", Limit: f.limit, Follow: f.follow}
	if f.limit < 1 || f.limit > 10_000 {
		return q, usagef("--limit %d: use 1-10000", f.limit)
	}
	var err error
	if f.version != "" {
		if q.Version, err = starling.ParseVersionNumber(f.version); err != nil {
			return q, err
		}
	}
	if f.request != "" {
		id, ok := starling.ParseRequestID(f.request)
		if !ok {
			return q, usagef("--request %q is no request id", f.request)
		}
		q.Request = id
	}
	if f.since != "" {
		if d, err := time.ParseDuration(f.since); err == nil {
			q.Since = now.Add(-d)
		} else if q.Since, err = time.Parse(time.RFC3339, f.since); err != nil {
			return q, usagef("--since %q: use a duration such as 15m or a time such as 2026-01-02T15:04:05Z", f.since)
		}
	}
	return q, nil
}

func (a *app) logs(ctx context.Context, name starling.FunctionName, q protocol.LogQuery, bare bool) error {
	for r, err := range a.client().Logs(ctx, name, q) {
		if err != nil {
			if errors.Is(err, context.Canceled) {
				return nil // ^C ends -f
			}
			return err
		}
		switch {
		case a.flags.output == "json":
			err = writeJSONLine(a.out, r)
		case a.flags.output == "yaml":
			err = writeYAML(a.out, []protocol.LogRecord{r})
		case bare:
			_, err = fmt.Fprintln(a.out, printable(r.Line))
		default:
			_, err = fmt.Fprintf(a.out, "%s  %-8s  %-8.8s  %s\n", r.Time.Local().Format("01-02 15:04:05.000"), r.Stream, r.Request, printable(r.Line))
		}
		if err != nil {
			return fmt.Errorf("write logs: %w", err)
		}
	}
	return nil
}

// provisionWord tells what is kept ready.
func provisionWord(c *starling.Config) string {
	if len(c.Schedule) == 0 {
		return strconv.Itoa(c.Provisioned)
	}
	var lines []string
	for _, p := range c.Schedule {
		lines = append(lines, fmt.Sprintf("%s=%d", p.At, p.Count))
	}
	return strings.Join(lines, ", ")
}
