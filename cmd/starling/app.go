package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/client"
)

// app is what all commands share. A test makes one with its own streams and environment.
type app struct {
	in         io.Reader
	out, err   io.Writer
	env        []string // NAME=value
	tty        bool     // err is a terminal: progress may be drawn there
	set        settings // loaded before a command runs
	flags      globalFlags
	newProfile bool // the profile need not be there yet
}

type globalFlags struct {
	output  string
	config  string
	profile string
}

func newApp(in io.Reader, out, err io.Writer, env []string) *app {
	return &app{in: in, out: out, err: err, env: env, tty: isTerminal(err)}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && f.Name() != os.DevNull
}

// getenv reads the environment the app was made with.
func (a *app) getenv(name string) string {
	for _, e := range a.env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

// Exit codes are stable: scripts depend on them. The help of the root command lists them.
const (
	exitOK          = 0
	exitInternal    = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitOverloaded  = 5
	exitFailed      = 6
	exitTimeout     = 7
	exitUnavailable = 8
	exitConflict    = 9
	exitTooLarge    = 10
)

var exitCodes = map[starling.Kind]int{
	starling.Internal: exitInternal, starling.Invalid: exitUsage, starling.NotFound: exitNotFound, starling.Denied: exitDenied,
	starling.Overloaded: exitOverloaded, starling.Failed: exitFailed, starling.Timeout: exitTimeout,
	starling.Unavailable: exitUnavailable, starling.Moved: exitUnavailable, starling.Conflict: exitConflict, starling.TooLarge: exitTooLarge,
}

// usageError is a mistake in the command line itself.
type usageError struct{ error }

// Unwrap returns the mistake.
func (u usageError) Unwrap() error { return u.error }

// quiet is a failure that was told already; only its exit code is left.
type quiet struct{ error }

// Unwrap returns the failure.
func (q quiet) Unwrap() error { return q.error }

// finish tells an error, once, and returns the exit code. With -o json the error is JSON too.
func (a *app) finish(err error) int {
	if err == nil {
		return exitOK
	}
	code := exitCodes[starling.KindOf(err)]
	var usage usageError
	if errors.As(err, &usage) {
		code = exitUsage
	}
	var told quiet
	if errors.As(err, &told) {
		return code
	}
	kind := starling.KindOf(err)
	if code == exitUsage {
		kind = starling.Invalid
	}
	if a.flags.output == "json" {
		writeJSON(a.err, map[string]any{"error": map[string]any{"kind": kind.String(), "reason": starling.ReasonOf(err), "message": err.Error(), "exit": code}})
		return code
	}
	fmt.Fprintf(a.err, "starling: %s\n", printable(err.Error()))
	var typed *starling.Error
	if errors.As(err, &typed) && typed.After > 0 {
		fmt.Fprintf(a.err, "Retry after %s.\n", typed.After.Round(time.Second))
	}
	if hint := a.hint(kind, code, typed); hint != "" {
		fmt.Fprintln(a.err, hint)
	}
	return code
}

// hint says what to do where the error's own words cannot know it.
func (a *app) hint(kind starling.Kind, code int, typed *starling.Error) string {
	switch {
	case code == exitUsage:
		return "See 'starling --help'."
	case kind == starling.Denied && a.set.text("key") == "":
		return "No key is set: run 'starling login', or set STARLING_KEY or --key."
	case kind == starling.Denied:
		return fmt.Sprintf("The key came from the %s ('starling config show').", a.set.from("key"))
	case kind == starling.Unavailable && typed != nil && typed.Op == "call frontend": // nobody answered; a refusal has no verb of ours
		return fmt.Sprintf("The server is %s, from the %s; 'starling up' starts one here.", a.set.text("server"), a.set.from("server"))
	}
	return ""
}

// client returns the control client that the settings name.
func (a *app) client() *client.HTTP {
	var opts []client.Option
	if account := a.set.text("account"); account != "" {
		opts = append(opts, client.WithAccount(starling.AccountID(account)))
	}
	return client.NewHTTP(a.set.text("server"), a.set.text("key"), opts...)
}

const rootLong = `Starling runs functions on machines you own.

Exit codes: 0 ok · 1 internal error · 2 wrong usage · 3 not found · 4 denied · 5 overloaded, retry later ·
6 the function failed · 7 timed out · 8 no server can answer · 9 conflict · 10 too large.

Settings come from flags, then the environment (STARLING_SERVER, STARLING_KEY, ...), then the profile and the
configuration file; 'starling config show' says where each came from.`

const rootExample = `  starling deploy ./hello            # a folder or a zip
  starling invoke hello '{"name":"you"}'
  starling logs hello -f
  starling doctor                    # can this machine run functions?`

// newRootCommand returns the command tree over a.
func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use: "starling", Short: "Run functions on machines you own", Long: rootLong, Example: rootExample,
		SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.newProfile = cmd.Name() == "login" // it makes the profile it names
			return a.load(cmd.Flags())
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{err} })
	f := root.PersistentFlags()
	f.StringVarP(&a.flags.output, "output", "o", "table", "output: table, json or yaml")
	f.StringVar(&a.flags.config, "config", "", "configuration file (default ~/.config/starling/config.yaml)")
	f.StringVar(&a.flags.profile, "profile", "", "profile of the configuration file to use")
	addSettingFlags(f, clientSettings)
	root.AddGroup(&cobra.Group{ID: "functions", Title: "Functions:"}, &cobra.Group{ID: "cluster", Title: "Cluster:"},
		&cobra.Group{ID: "tools", Title: "Tools:"})
	group(root, "functions", deployCommand(a), invokeCommand(a), functionsCommand(a), publishCommand(a), versionsCommand(a), layerCommand(a), networkCommand(a), logsCommand(a), deleteCommand(a))
	group(root, "cluster", upCommand(a), nodeCommand(a), clusterCommand(a), accountCommand(a), nodesCommand(a), partitionsCommand(a), topCommand(a), adviseCommand(a))
	group(root, "tools", loginCommand(a), whoamiCommand(a), configCommand(a), doctorCommand(a), benchCommand(a), simCommand(a), analyzeCommand(a), versionCommand(a))
	root.SetHelpCommandGroupID("tools")
	root.SetCompletionCommandGroupID("tools")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	wrapArgs(root)
	return root
}

func group(root *cobra.Command, id string, commands ...*cobra.Command) {
	for _, c := range commands {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// wrapArgs makes every wrong number of arguments a usage error that shows how the command is used.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w; use: %s", err, cmd.UseLine())}
			}
			return nil
		}
	}
	for _, child := range c.Commands() {
		wrapArgs(child)
	}
}

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }
