package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"starling"
	"starling/bench"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

type benchFlags struct {
	load                           bench.Load
	url, function, payload, method string
	payloadBytes                   int
	headers                        []string
	quic, noFloor, admin           bool
	pids                           string
	out, commit                    string
	distinct                       int
	pack                           string
	phases                         bool
	hold                           time.Duration
}

func benchCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Measure a function, here or on any other platform", Args: cobra.NoArgs,
		Long: `Bench puts load on a function of this cluster (--function) or on any HTTP address (--url) and shows the latency
distribution, served rate, errors by kind and the server's CPU for each call, beside a bare net/http echo that is
measured in the same run. Closed loop: --concurrency callers, each waiting for its answer. Open loop: --rate
arrivals a second whatever the answers do; latency counts from the instant an arrival was due.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(benchWarm(a), benchCold(a), benchBurst(a), benchFloor(a), floorServer(a))
	return c
}

func (f *benchFlags) add(c *cobra.Command, concurrency int, rate float64, duration time.Duration) {
	fl := c.Flags()
	fl.StringVar(&f.function, "function", "", "function of this cluster to call")
	fl.StringVar(&f.url, "url", "", "any HTTP address to call instead")
	fl.StringVar(&f.method, "method", "POST", "HTTP method for --url")
	fl.StringArrayVarP(&f.headers, "header", "H", nil, "HTTP header 'Name: value' for --url; repeat for more")
	fl.StringVar(&f.payload, "payload", "", "payload, or @file (default: JSON of --payload-bytes)")
	fl.IntVar(&f.payloadBytes, "payload-bytes", 1024, "size of the payload that is made up")
	fl.BoolVar(&f.quic, "quic", false, "call over QUIC instead of HTTP")
	fl.BoolVar(&f.phases, "phases", false, "gather the phases the server tells (a heavier client; HTTP)")
	fl.IntVarP(&f.load.Concurrency, "concurrency", "c", concurrency, "callers; in open loop the most calls in flight")
	fl.Float64VarP(&f.load.Rate, "rate", "r", rate, "arrivals a second (open loop); 0 for closed loop")
	fl.DurationVarP(&f.load.Duration, "duration", "d", duration, "time measured")
	fl.DurationVar(&f.load.Warmup, "warmup", 2*time.Second, "same load before, not measured")
	fl.DurationVar(&f.load.Timeout, "timeout", 10*time.Second, "of one call")
	fl.BoolVar(&f.noFloor, "no-floor", false, "do not measure the bare net/http server beside it")
	fl.StringVar(&f.pids, "pids", "", "processes whose CPU is charged to the calls, comma-separated")
	fl.BoolVar(&f.admin, "meter-admin", false, "charge the CPU that the nodes at --admin tell")
	fl.StringVar(&f.commit, "commit", buildInfo().Commit, "commit to note in the report")
	fl.StringVar(&f.out, "out", "", "also write FILE.json and FILE.html")
}

func benchWarm(a *app) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use: "warm", Short: "One function, its instances warm", Args: cobra.NoArgs,
		Example: "  starling bench warm --function echo -c 16 -d 10s --pids $(pgrep -x starling)\n" +
			"  starling bench warm --function echo --rate 2000 --out bench/results/warm\n  starling bench warm --url http://127.0.0.1:9000/fn",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.benchOne(cmd.Context(), "warm", &f) }}
	f.add(c, 16, 0, 10*time.Second)
	return c
}

func benchBurst(a *app) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use: "burst", Short: "Many calls at the same instant, again and again", Args: cobra.NoArgs,
		Example: "  starling bench burst --function echo --burst 200 --rate 200 -d 10s   # 200 at once, every second",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.benchOne(cmd.Context(), "burst", &f) }}
	f.add(c, 256, 100, 10*time.Second)
	c.Flags().IntVar(&f.load.Burst, "burst", 100, "arrivals at the same instant")
	return c
}

func benchFloor(a *app) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use: "floor", Short: "The bare net/http echo alone: what this machine can do at most", Args: cobra.NoArgs,
		Example: "  starling bench floor -c 16 -d 5s",
		RunE: func(cmd *cobra.Command, _ []string) error {
			report := a.newReport("floor", "net/http echo in a process of its own")
			if err := a.measureFloor(cmd.Context(), report, &f); err != nil {
				return err
			}
			return a.finishBench(report, &f)
		}}
	f.add(c, 16, 0, 5*time.Second)
	return c
}

func floorServer(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "floor-server", Short: "Serve the floor until standard input ends", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return bench.ServeFloor(a.in, a.out) }}
}

func (a *app) newReport(scenario, target string) *bench.Report {
	return &bench.Report{Scenario: scenario, When: time.Now().UTC(), Command: redact("starling "+strings.Join(os.Args[1:], " "), a.set.text("key")),
		Target: target, Machine: bench.ThisMachine()}
}

func redact(s, secret string) string {
	if secret == "" {
		return s
	}
	return strings.ReplaceAll(s, secret, "stk_...")
}

// benchOne measures one address under one load.
func (a *app) benchOne(ctx context.Context, scenario string, f *benchFlags) error {
	target, name, end, err := a.benchTarget(f)
	if err != nil {
		return err
	}
	defer end()
	report := a.newReport(scenario, name)
	meter, err := a.meter(f)
	if err != nil {
		return err
	}
	if !f.noFloor {
		if err := a.measureFloor(ctx, report, f); err != nil {
			return err
		}
	}
	load := f.load
	load.Name = scenario
	fmt.Fprintf(a.err, "measuring %s for %s\n", name, load.Duration)
	r, err := bench.Run(ctx, target, load, meter)
	if err != nil {
		return err
	}
	report.Results = append(report.Results, r)
	return a.finishBench(report, f)
}

// benchTarget turns the flags into what is called and its name without keys.
func (a *app) benchTarget(f *benchFlags) (bench.Target, string, func(), error) {
	body, err := f.body()
	if err != nil {
		return nil, "", nil, err
	}
	nothing := func() {}
	if (f.url == "") == (f.function == "") {
		return nil, "", nil, usagef("give --function NAME of this cluster, or --url of anything")
	}
	if f.url != "" {
		h := &bench.HTTP{URL: f.url, Method: f.method, Header: map[string]string{"Content-Type": "application/json"}, Body: body}
		for _, line := range f.headers {
			k, v, ok := strings.Cut(line, ":")
			if !ok {
				return nil, "", nil, usagef("--header %q: use 'Name: value'", line)
			}
			h.Header[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
		return h, f.method + " " + f.url, nothing, nil
	}
	call := client.Call{Function: starling.FunctionName(f.function), Payload: body}
	if f.quic {
		q, err := a.quicClient()
		if err != nil {
			return nil, "", nil, err
		}
		return &bench.Calls{Invoke: func(ctx context.Context) (*client.Result, error) { return q.Invoke(ctx, call) }},
			"function " + f.function + " over QUIC", func() { q.Close() }, nil
	}
	if f.phases {
		api := a.client()
		return &bench.Calls{Invoke: func(ctx context.Context) (*client.Result, error) { return api.Invoke(ctx, call) }}, "function " + f.function + " over HTTP", nothing, nil
	}
	h := &bench.HTTP{URL: strings.TrimRight(a.set.text("server"), "/") + "/v1/functions/" + f.function + "/invocations", Body: body,
		Header: map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + a.set.text("key")}}
	if account := a.set.text("account"); account != "" {
		h.Header[protocol.HeaderAccount] = account
	}
	return h, "function " + f.function + " over HTTP", nothing, nil
}

func (f *benchFlags) body() ([]byte, error) {
	if name, ok := strings.CutPrefix(f.payload, "@"); ok {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, usagef("read payload: %v", err)
		}
		return b, nil
	}
	if f.payload != "" {
		return []byte(f.payload), nil
	}
	if f.payloadBytes < 2 || f.payloadBytes > starling.PayloadMax {
		return nil, usagef("--payload-bytes %d: use 2-%d", f.payloadBytes, starling.PayloadMax)
	}
	return []byte(`"` + strings.Repeat("x", f.payloadBytes-2) + `"`), nil
}

func (a *app) meter(f *benchFlags) (bench.Meter, error) {
	switch {
	case f.pids != "":
		var pids bench.Pids
		for _, w := range strings.FieldsFunc(f.pids, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' }) {
			pid, err := strconv.Atoi(w)
			if err != nil {
				return nil, usagef("--pids: %q is no process id", w)
			}
			pids = append(pids, pid)
		}
		return pids, nil
	case f.admin:
		return bench.Admin(a.set.list("admin")), nil
	}
	return nil, nil
}

// measureFloor runs the same load on the bare server.
func (a *app) measureFloor(ctx context.Context, report *bench.Report, f *benchFlags) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	floor, err := bench.StartFloor(ctx, exe, "bench", "floor-server")
	if err != nil {
		return err
	}
	defer floor.Close()
	body, err := f.body()
	if err != nil {
		return err
	}
	load := f.load
	load.Name = "floor"
	load.Calls = 0
	load.Duration = min(max(load.Duration, time.Second), 10*time.Second)
	fmt.Fprintf(a.err, "measuring the floor for %s\n", load.Duration)
	r, err := bench.Run(ctx, &bench.HTTP{URL: floor.URL, Body: body, Header: map[string]string{"Content-Type": "application/json"}}, load, bench.Pids{floor.Pid})
	if err != nil {
		return err
	}
	report.Results = append(report.Results, r)
	return nil
}

func (a *app) finishBench(report *bench.Report, f *benchFlags) error {
	report.Commit = f.commit
	report.Compare()
	if f.out != "" {
		if err := os.MkdirAll(filepath.Dir(f.out), 0o755); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		for _, w := range []struct {
			suffix string
			write  func(*os.File) error
		}{{".json", func(o *os.File) error { return report.WriteJSON(o) }}, {".html", func(o *os.File) error { return report.WriteHTML(o) }}} {
			o, err := os.Create(f.out + w.suffix)
			if err != nil {
				return fmt.Errorf("write report: %w", err)
			}
			if err := w.write(o); err != nil {
				o.Close()
				return err
			}
			if err := o.Close(); err != nil {
				return fmt.Errorf("write report: %w", err)
			}
		}
	}
	switch a.flags.output {
	case "json":
		return report.WriteJSON(a.out)
	case "yaml":
		return writeYAML(a.out, report)
	}
	return report.WriteTable(a.out)
}

func benchCold(a *app) *cobra.Command {
	var f benchFlags
	c := &cobra.Command{
		Use: "cold", Short: "First calls of functions that were never called", Args: cobra.NoArgs,
		Long: `Cold deploys --functions distinct functions from one package, calls each exactly once at --rate arrivals a second
and deletes them. Every call starts an instance; the phases (place, start, init) come from the server.`,
		Example: "  starling bench cold --package ./bench/functions/echo-python --functions 200 --rate 20",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.benchCold(cmd, &f) }}
	f.add(c, 64, 10, 10*time.Second)
	c.Flags().IntVarP(&f.distinct, "functions", "n", 100, "functions to deploy, each called once")
	c.Flags().DurationVar(&f.hold, "hold", 0, "time the functions stay afterwards, so that what their idle instances cost can be looked at")
	c.Flags().StringVar(&f.pack, "package", "", "folder or zip to make them of")
	return c
}

func (a *app) benchCold(cmd *cobra.Command, f *benchFlags) error {
	ctx := cmd.Context()
	if f.distinct < 1 || f.distinct > 100_000 {
		return usagef("--functions %d: use 1-100000", f.distinct)
	}
	if f.pack == "" {
		return usagef("give --package, the folder or zip to make the functions of")
	}
	body, err := f.body()
	if err != nil {
		return err
	}
	meter, err := a.meter(f)
	if err != nil {
		return err
	}
	names, remove, err := a.deployMany(cmd, f)
	defer remove()
	if err != nil {
		return err
	}
	api := a.client()
	var next atomic.Int64
	target := &bench.Calls{Invoke: func(ctx context.Context) (*client.Result, error) {
		i := next.Add(1) - 1
		return api.Invoke(ctx, client.Call{Function: names[int(i)%len(names)], Payload: body})
	}}
	report := a.newReport("cold", fmt.Sprintf("%d distinct functions of %s over HTTP, each called once", len(names), filepath.Base(f.pack)))
	if !f.noFloor {
		if err := a.measureFloor(ctx, report, f); err != nil {
			return err
		}
	}
	load := f.load
	load.Name, load.Warmup, load.Calls = "cold", 0, len(names)
	r, err := bench.Run(ctx, target, load, meter)
	if err != nil {
		return err
	}
	if f.hold > 0 {
		fmt.Fprintf(a.err, "holding %d functions for %s\n", len(names), f.hold)
		select {
		case <-ctx.Done():
		case <-time.After(f.hold):
		}
	}
	report.Results = append(report.Results, r)
	return a.finishBench(report, f)
}

// deployMany makes the functions; remove deletes those that were made, whatever happened.
func (a *app) deployMany(cmd *cobra.Command, f *benchFlags) (names []starling.FunctionName, remove func(), err error) {
	api := a.client()
	remove = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), time.Minute)
		defer cancel()
		for _, n := range names {
			if err := api.DeleteFunction(ctx, n); err != nil {
				fmt.Fprintf(a.err, "delete %s: %v\n", n, err)
			}
		}
	}
	p, err := packPath(f.pack)
	if err != nil {
		return nil, remove, err
	}
	m, err := (&deployFlags{}).manifest(cmd, f.pack, p)
	if err != nil {
		return nil, remove, err
	}
	var id [4]byte
	rand.Read(id[:])
	body, done := a.progress("upload", p.zip)
	code, err := api.PutCode(cmd.Context(), body, int64(len(p.zip)))
	done(err == nil)
	if err != nil {
		return nil, remove, err
	}
	fmt.Fprintf(a.err, "deploying %d functions\n", f.distinct)
	for i := range f.distinct {
		name := starling.FunctionName(fmt.Sprintf("cold-%s-%d", hex.EncodeToString(id[:]), i))
		if _, err := api.CreateFunction(cmd.Context(), protocol.FunctionSpec{Name: name, Config: &m.Config, Code: code.Hash}); err != nil {
			return names, remove, err
		}
		names = append(names, name)
	}
	return names, remove, nil
}
