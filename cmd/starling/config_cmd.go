package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling/frontend/client"
)

type shownSetting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	From  string `json:"from"`
	Env   string `json:"env"`
}

func configCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show the settings and where they come from", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	show := &cobra.Command{
		Use: "show", Short: "Show every setting, its value and who set it", Args: cobra.NoArgs,
		Example: "  starling config show\n  STARLING_SERVER=http://10.0.0.1:8080 starling config show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []shownSetting
			for _, s := range allSettings() {
				v := a.set.text(s.key)
				if s.secret && v != "" {
					v = v[:min(len(v), 6)] + "..."
				}
				list = append(list, shownSetting{s.key, v, a.set.from(s.key), s.env()})
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"setting", "value", "from", "environment"})
				for _, s := range list {
					t.AppendRow(table.Row{s.Key, printable(s.Value), s.From, s.Env})
				}
			})
		}}
	path := &cobra.Command{
		Use: "path", Short: "Print where the configuration file is", Args: cobra.NoArgs, Example: "  $EDITOR $(starling config path)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.say(map[string]string{"path": a.set.file}, "%s", a.set.file)
		}}
	c.AddCommand(show, path)
	return c
}

func loginCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "login", Short: "Check a server and a key and remember them as a profile", Args: cobra.NoArgs,
		Long: "Login asks the server whom the key stands for and, when it answers, writes both to the configuration file.\nWithout --key or STARLING_KEY the key is read from standard input.",
		Example: "  starling login --server https://starling.example --key stk_...\n" +
			"  pass starling/key | starling login --server https://starling.example --profile work",
		RunE: func(cmd *cobra.Command, _ []string) error {
			key := a.set.text("key")
			if from := a.set.from("key"); !strings.HasPrefix(from, "flag") && !strings.HasPrefix(from, "environment") {
				fmt.Fprint(a.err, "API key: ")
				line, err := bufio.NewReader(a.in).ReadString('\n')
				if key = strings.TrimSpace(line); key == "" {
					return usagef("no key given: %v; use --key, STARLING_KEY or standard input", err)
				}
			}
			id, err := client.NewHTTP(a.set.text("server"), key).Whoami(cmd.Context())
			if err != nil {
				return err
			}
			name := a.flags.profile
			if name == "" {
				name = "default"
			}
			values := map[string]string{"key": key}
			for _, k := range []string{"server", "quic-addr", "ca", "pin", "admin", "account"} {
				if a.set.from(k) != "default" {
					values[k] = a.set.text(k)
				}
			}
			path, err := a.saveProfile(name, values)
			if err != nil {
				return err
			}
			return a.say(id, "Logged in to cluster %s as %s of account %s; profile %s in %s.", id.Cluster, id.Role, id.Account, name, path)
		}}
	return c
}

func whoamiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show whom the key stands for", Args: cobra.NoArgs, Example: "  starling whoami -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := a.client().Whoami(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(id, func(t table.Writer) {
				t.AppendHeader(table.Row{"cluster", "account", "role", "key"})
				t.AppendRow(table.Row{id.Cluster, id.Account, id.Role, id.KeyID})
			})
		}}
}
