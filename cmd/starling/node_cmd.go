package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/lmittmann/tint"
	"github.com/spf13/cobra"

	"starling"
	"starling/cmd/starling/node"
	"starling/frontend/protocol"
)

func upCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "up", Short: "Run a whole cloud in one process", Args: cobra.NoArgs,
		Long: `Up makes a cluster of one node, when --data holds none yet, and runs it with all roles. It prints the account and
its key, remembers them as the profile "up", and stops cleanly at Ctrl-C.`,
		Example: "  sudo starling up\n  sudo starling up --data ./cloud --listen 127.0.0.1:7400 --pool 2",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.up(cmd.Context()) }}
	addSettingFlags(c.Flags(), nodeSettings)
	return c
}

func nodeCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "node", Short: "Run one node of a cluster; drain and remove nodes", Args: cobra.NoArgs,
		Long: `Node runs the node that --data holds. With --join and --token it first makes this machine a member; afterwards both are
ignored, so the same command line starts it again. SIGTERM drains: calls in flight finish, others go elsewhere. SIGHUP lets a gateway
read its file of uplinks again.`,
		Example: "  starling node --data /var/lib/starling --listen 10.0.0.1:7400\n  starling node --listen 10.0.0.2:7400 --join 10.0.0.1:7400 --token TOKEN\n  starling node --roles host --listen 10.0.0.3:7400 --join 10.0.0.1:7400 --token TOKEN",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.nodeConfig()
			if err != nil {
				return err
			}
			if join := a.set.list("node.join"); len(join) > 0 && !node.Exists(cfg.Dir) {
				if err := node.Join(cmd.Context(), cfg, join, a.set.text("node.token")); err != nil {
					return err
				}
				cfg.Log.Info("joined the cluster", slog.String("by", strings.Join(join, ",")))
			}
			return runNode(cmd.Context(), cfg, nil)
		}}
	addSettingFlags(c.Flags(), nodeSettings)
	c.AddCommand(nodeDrain(a), nodeUndrain(a), nodeRemove(a), nodeUplinks(a))
	return c
}

func clusterCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Make a cluster, let nodes in, back it up and restore it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(clusterInit(a), clusterToken(a), clusterBackup(a), clusterRestore(a), clusterIsolation(a))
	return c
}

func clusterInit(a *app) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "init", Short: "Make a cluster: its CA, its first node and its first keys", Args: cobra.NoArgs,
		Long:    "Init fills --data for the first node of a new cluster. The keys are shown once. Start the node with 'starling node' and the same flags.",
		Example: "  starling cluster init --name prod --listen 10.0.0.1:7400\n  starling node --listen 10.0.0.1:7400",
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.nodeConfig()
			if err != nil {
				return err
			}
			if a.set.text("node.name") == "" {
				cfg.Name = "" // the host name is for the node, --name here is the cluster's
			}
			made, err := node.Init(cfg, name, a.set.number("node.partitions"))
			if err != nil {
				return err
			}
			return a.say(made, "Made cluster %s in %s.\nAccount      %s\nKey          %s\nAdmin key    %s   (both are shown once)\nFingerprint  %s\nStart it: starling node --data %s --listen %s",
				made.Cluster, cfg.Dir, made.Account, made.Key, made.AdminKey, made.Fingerprint, cfg.Dir, cfg.Listen)
		}}
	addSettingFlags(c.Flags(), without(nodeSettings, "node.name", "node.join", "node.token"))
	c.Flags().StringVar(&name, "name", "starling", "name of the cluster")
	return c
}

func clusterToken(a *app) *cobra.Command {
	var roles string
	var life time.Duration
	c := &cobra.Command{
		Use: "token", Short: "Make a token that lets one node join (admin)", Args: cobra.NoArgs,
		Long:    "Token prints a join token. It lets one node in, once, with at most the given roles; it also names the cluster's CA, so that the joiner gives it to nobody else.",
		Example: "  starling cluster token\n  starling cluster token --roles host --life 10m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := a.client().CreateToken(cmd.Context(), protocol.TokenSpec{Roles: roles, LifeSeconds: int64(life / time.Second)})
			if err != nil {
				return err
			}
			return a.say(t, "%s", t.Token)
		}}
	c.Flags().StringVar(&roles, "roles", "all", "the most the node may be")
	c.Flags().DurationVar(&life, "life", time.Hour, "how long the token is good")
	return c
}

func without(list []setting, keys ...string) []setting {
	var out []setting
next:
	for _, s := range list {
		for _, k := range keys {
			if s.key == k {
				continue next
			}
		}
		out = append(out, s)
	}
	return out
}

// nodeConfig turns the loaded settings into a node's.
func (a *app) nodeConfig() (node.Config, error) {
	roles, err := starling.ParseRoles(a.set.text("node.roles"))
	if err != nil {
		return node.Config{}, err
	}
	log, err := a.logger()
	if err != nil {
		return node.Config{}, err
	}
	isolations, err := starling.ParseIsolations(a.set.text("node.isolation"))
	if err != nil {
		return node.Config{}, err
	}
	a.share(roles)
	s := a.set
	return node.Config{
		Dir: s.text("node.data"), Name: s.text("node.name"), Listen: s.text("node.listen"), Advertise: s.text("node.advertise"), HTTP: s.text("node.http"),
		TLSCert: s.text("node.tls-cert"), TLSKey: s.text("node.tls-key"), Admin: s.text("node.admin"), Roles: roles, Zone: starling.Zone(s.text("node.zone")),
		Bucket: s.text("node.bucket"), CodeCacheMiB: s.number("node.code-cache"), MemoryMiB: s.number("node.memory"), InstanceMax: s.number("node.instances"),
		Pool: s.number("node.pool"), Awake: s.duration("node.awake"), Python: s.text("node.python"), Node: s.text("node.node"), Drain: s.duration("node.drain"), Log: log,
		KataImages: s.text("node.kata-images"), KataMemory: s.number("node.kata-memory"),
		Record: s.text("node.record"), Scaling: s.text("node.scale-config"), Audit: s.text("node.audit"),
		Isolations: isolations, Runsc: s.text("node.runsc"), PoolStrong: s.number("node.pool-strong"), SharedKernel: s.flagged("node.allow-shared-kernel"),
		Uplinks: s.text("node.uplinks"), Handover: s.text("node.handover"), Capture: s.text("node.capture"),
	}, nil
}

// logger writes what nodes have to tell to standard error.
func (a *app) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.set.text("node.log-level"))); err != nil {
		return nil, usagef("--log-level %q: use debug, info, warn or error", a.set.text("node.log-level"))
	}
	switch format := a.set.text("node.log-format"); {
	case format == "json":
		return slog.New(slog.NewJSONHandler(a.err, &slog.HandlerOptions{Level: level})), nil
	case format == "text", format == "auto":
		return slog.New(tint.NewHandler(a.err, &tint.Options{Level: level, NoColor: !a.tty, TimeFormat: "2006-01-02 15:04:05.000"})), nil
	default:
		return nil, usagef("--log-format %q: use text, json or auto", format)
	}
}

// share leaves cores to the functions of a host: a node that may use all of them wakes threads on cores where
// functions run, and each such wake-up costs both (docs/decisions/0007-half-the-cores.md).
func (a *app) share(roles starling.Roles) {
	procs := a.set.number("node.procs")
	if procs == 0 && roles.Has(starling.RoleHost) && a.getenv("GOMAXPROCS") == "" {
		procs = max(1, runtime.GOMAXPROCS(0)/2)
	}
	if procs > 0 {
		runtime.GOMAXPROCS(procs)
	}
}

// runNode opens the node, tells systemd when it serves, and closes it when ctx ends.
func runNode(ctx context.Context, cfg node.Config, ready func(*node.Node) error) error {
	if cfg.Roles.Has(starling.RoleHost) {
		prefer()
	}
	again, deaf := hangups(cfg)
	defer deaf()
	n, err := node.Open(ctx, cfg)
	if err != nil {
		return err
	}
	err = awaitReady(ctx, n)
	if err == nil {
		err = n.Tenancy(ctx)
	}
	if err == nil && ready != nil {
		err = ready(n)
	}
	if err == nil {
		daemon.SdNotify(false, daemon.SdNotifyReady)
		serve(ctx, n, again)
	}
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	cfg.Log.Info("stopping: calls in flight finish", slog.Duration("at most", cfg.Drain))
	if closed := n.Close(); closed != nil {
		return closed
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// hangups returns where SIGHUP comes for a node that reads something again, and what ends that. It ends one that does not, as ever.
func hangups(cfg node.Config) (<-chan os.Signal, func()) {
	c := make(chan os.Signal, 1)
	if cfg.Reloads() {
		signal.Notify(c, syscall.SIGHUP)
	}
	return c, func() { signal.Stop(c) }
}

// serve waits for ctx, and lets the node read again what it reads again.
func serve(ctx context.Context, n *node.Node, again <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
			n.Reload(ctx)
		}
	}
}

// awaitReady waits until the node serves or ctx ends, and says now and then what is missing.
func awaitReady(ctx context.Context, n *node.Node) error {
	for i := 1; ; i++ {
		err := n.Ready()
		if err == nil {
			return nil
		}
		if i%1000 == 0 {
			slog.New(tint.NewHandler(os.Stderr, nil)).Warn("not ready yet", slog.Any("why", err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// up makes a cluster when there is none and runs it.
func (a *app) up(ctx context.Context) error {
	began := time.Now()
	if a.set.from("node.listen") == "default" {
		a.set.k.Set("node.listen", "127.0.0.1:7400") // one machine: nobody else needs to reach it
	}
	cfg, err := a.nodeConfig()
	if err != nil {
		return err
	}
	keys := filepath.Join(cfg.Dir, "keys.json")
	if !node.Exists(cfg.Dir) {
		made, err := node.Init(cfg, "starling", a.set.number("node.partitions"))
		if err != nil {
			return err
		}
		if err := writeKeys(keys, made); err != nil {
			return err
		}
	}
	return runNode(ctx, cfg, func(n *node.Node) error { return a.welcome(cfg, keys, n.Fingerprint(), time.Since(began)) })
}

// welcome tells how to use a cloud that is up, and remembers it as the profile "up".
func (a *app) welcome(cfg node.Config, keys, fingerprint string, took time.Duration) error {
	var made node.Made
	if err := readKeys(keys, &made); err != nil {
		a.tell("Ready in %v.", took.Round(time.Millisecond)) // the folder was made by "cluster init": its keys were shown there
		return nil
	}
	server, quic := "http://"+reachable(cfg.HTTP), reachable(cfg.Listen)
	path, err := a.saveProfile("up", map[string]string{"server": server, "key": made.Key, "quic-addr": quic, "pin": fingerprint})
	if err != nil {
		return err
	}
	a.tell("Ready in %v: cluster %s, %s.\n\n  account  %s\n  key      %s\n  admin    %s\n", took.Round(time.Millisecond), made.Cluster, isolationWord(cfg.Isolations), made.Account, made.Key, made.AdminKey)
	a.tell("In another terminal (profile \"up\" in %s), or with these anywhere:\n\n  export STARLING_SERVER=%s STARLING_KEY=%s\n  export STARLING_QUIC_ADDR=%s STARLING_PIN=%s\n  starling deploy ./my-function\n\nCtrl-C stops it.", path, server, made.Key, quic, fingerprint)
	return nil
}

// isolationWord says what functions are isolated with on a host.
func isolationWord(s starling.Isolations) string {
	if s == starling.OnlyProcess {
		return "isolation process (functions share this machine's kernel)"
	}
	return "isolation " + s.String()
}

// tell writes a sentence to standard output.
func (a *app) tell(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }

// reachable is an address as a client on this machine would use it.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}
