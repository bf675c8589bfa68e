package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"go.yaml.in/yaml/v3"

	"starling"
	"starling/frontend/protocol"
)

// manifestFile may lie in a deployed folder: the name and the configuration of its function.
const manifestFile = "starling.yaml"

// manifest is that file; flags win over it.
type manifest struct {
	Name            starling.FunctionName `yaml:"name"`
	starling.Config `yaml:",inline"`
}

type deployFlags struct {
	name, runtime, handler, description string
	isolation, network                  string
	memory, timeout, concurrency        int
	instanceMax, provisioned            int
	schedule                            []string
	env, layers                         []string
	publish, dryRun                     bool
}

type deployed struct {
	starling.Version
	Created   bool                   `json:"created"` // the function is new
	Published starling.VersionNumber `json:"published,omitempty"`
}

func deployCommand(a *app) *cobra.Command {
	var f deployFlags
	c := &cobra.Command{
		Use: "deploy [FOLDER|ZIP]", Short: "Create a function from a folder or a zip, or update it", Args: cobra.MaximumNArgs(1),
		Long: `Deploy packs a folder (the current one by default) or takes a zip, uploads it and creates the function, or
updates it when it exists. The runtime is guessed from the files: main.py or lambda_function.py is Python,
index.js or index.mjs is Node, an executable bootstrap is provided. A starling.yaml in the folder sets name and
configuration (runtime, handler, memoryMiB, timeoutMS, env, concurrency, instanceMax, provisioned, schedule,
isolation, network, layers, description); flags win. Layers (see 'starling layer') lie under /opt, a later one over an earlier one.
Packing the same files twice gives the same zip. Left out: .git, __pycache__, .venv, *.pyc, .DS_Store, starling.yaml.`,
		Example: "  starling deploy ./hello\n  starling deploy fn.zip --name resize --runtime python3.11 --handler main.handler --memory 512\n" +
			"  starling deploy . --env STAGE=prod --publish\n  starling deploy . --provisioned 2 --schedule 'Mon-Fri 08:00=10' --schedule 'Mon-Fri 20:00=2'\n" +
			"  starling deploy ./resize --layer pillow:3 --layer fonts:1",
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "."
			if len(args) == 1 {
				path = args[0]
			}
			return a.deploy(cmd, path, &f)
		}}
	fl := c.Flags()
	fl.StringVarP(&f.name, "name", "n", "", "name of the function (default: starling.yaml, then the folder's name)")
	fl.StringVar(&f.runtime, "runtime", "", "python3.11, nodejs20 or provided (default: guessed)")
	fl.StringVar(&f.handler, "handler", "", "module.function (default: guessed)")
	fl.IntVar(&f.memory, "memory", 0, "MiB of an instance, 128-10240")
	fl.IntVar(&f.timeout, "timeout", 0, "longest run in milliseconds, 1-900000")
	fl.IntVar(&f.concurrency, "concurrency", 0, "calls an instance serves at once (runtime provided only)")
	fl.IntVar(&f.instanceMax, "instance-max", 0, "most instances at once; 0 for the account's limit")
	fl.IntVar(&f.provisioned, "provisioned", 0, "instances kept ready at all times")
	fl.StringArrayVar(&f.schedule, "schedule", nil, "instances kept ready from an instant of the week on, UTC, as \"Mon-Fri 08:00=10\"; repeat for more")
	fl.StringVar(&f.isolation, "isolation", "", "process, gvisor or kata (default: what the account or the cluster says)")
	fl.StringVar(&f.network, "network", "", "what its instances reach: none, internet, or a network of the account (default: none)")
	fl.StringVar(&f.description, "description", "", "a line for people")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment variable NAME=value; repeat for more")
	fl.StringArrayVar(&f.layers, "layer", nil, "layer version NAME:VERSION to see under /opt; repeat for more, at most 5, a later one lies over an earlier one")
	fl.BoolVar(&f.publish, "publish", false, "also publish a numbered version")
	fl.BoolVar(&f.dryRun, "dry-run", false, "pack and check only: show what would be deployed")
	c.RegisterFlagCompletionFunc("layer", a.completeLayers)
	c.RegisterFlagCompletionFunc("isolation", cobra.FixedCompletions([]string{"process", "gvisor", "kata"}, cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{"python3.11", "nodejs20", "provided"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) deploy(cmd *cobra.Command, path string, f *deployFlags) error {
	ctx := cmd.Context()
	p, err := packPath(path)
	if err != nil {
		return err
	}
	m, err := f.manifest(cmd, path, p)
	if err != nil {
		return err
	}
	if f.dryRun {
		sum := sha256.Sum256(p.zip)
		v := starling.Version{Function: starling.FunctionRef{Account: starling.AccountID(a.set.text("account")), Name: m.Name}, Config: m.Config,
			Code: starling.CodeHash(hex.EncodeToString(sum[:])), CodeSize: int64(len(p.zip))}
		return a.say(v, "%s: %s, handler %s, %d files, %s packed, %s", m.Name, m.Runtime, m.Handler, len(p.names), size(v.CodeSize), v.Code[:12])
	}
	api := a.client()
	body, done := a.progress("upload", p.zip)
	code, err := api.PutCode(ctx, body, int64(len(p.zip)))
	done(err == nil)
	if err != nil {
		return err
	}
	spec := protocol.FunctionSpec{Name: m.Name, Config: &m.Config, Code: code.Hash}
	out := deployed{}
	out.Version, err = api.UpdateFunction(ctx, m.Name, spec)
	if starling.KindOf(err) == starling.NotFound {
		out.Created = true
		out.Version, err = api.CreateFunction(ctx, spec)
	}
	if err != nil {
		return err
	}
	verb := "Updated"
	if out.Created {
		verb = "Created"
	}
	tail := ""
	if f.publish {
		v, err := api.PublishVersion(ctx, m.Name)
		if err != nil {
			return err
		}
		out.Published = v.Number
		tail = fmt.Sprintf("; version %s", v.Number)
	}
	return a.say(out, "%s %s: %s, handler %s, %d MiB, isolation %s, %s of code%s. Call it: starling invoke %s", verb, m.Name, m.Runtime, out.Config.Handler,
		out.Config.MemoryMiB, out.Isolation(), size(int64(len(p.zip))), tail, m.Name)
}

// manifest joins the file, the flags and what the files tell, in that order of strength from the weakest up
// being: guess, file, flags.
func (f *deployFlags) manifest(cmd *cobra.Command, path string, p *packed) (manifest, error) {
	var m manifest
	if p.manifest != nil {
		d := yaml.NewDecoder(bytes.NewReader(p.manifest))
		d.KnownFields(true)
		if err := d.Decode(&m); err != nil && !errors.Is(err, io.EOF) {
			return m, usagef("%s: %v", manifestFile, err)
		}
	}
	for _, s := range []struct {
		to   *string
		from string
	}{{(*string)(&m.Name), f.name}, {(*string)(&m.Runtime), f.runtime}, {&m.Handler, f.handler}, {&m.Description, f.description}, {(*string)(&m.Isolation), f.isolation},
		{(*string)(&m.Network), f.network}} {
		if s.from != "" {
			*s.to = s.from
		}
	}
	for _, n := range []struct {
		to   *int
		from int
		flag string
	}{{&m.MemoryMiB, f.memory, "memory"}, {&m.TimeoutMS, f.timeout, "timeout"}, {&m.Concurrency, f.concurrency, "concurrency"}, {&m.InstanceMax, f.instanceMax, "instance-max"},
		{&m.Provisioned, f.provisioned, "provisioned"}} {
		if cmd.Flags().Changed(n.flag) {
			*n.to = n.from
		}
	}
	if err := f.provisions(&m); err != nil {
		return m, err
	}
	if err := f.stack(&m); err != nil {
		return m, err
	}
	for _, e := range f.env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			return m, usagef("--env %q: use NAME=value", e)
		}
		if m.Env == nil {
			m.Env = map[string]string{}
		}
		m.Env[name] = value
	}
	if m.Name == "" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return m, fmt.Errorf("find folder: %w", err)
		}
		m.Name = starling.FunctionName(strings.TrimSuffix(filepath.Base(abs), ".zip"))
	}
	runtime, handler := guess(p.names)
	if m.Runtime == "" {
		m.Runtime = runtime
	}
	if m.Runtime == "" {
		return m, usagef("cannot guess the runtime: no main.py, lambda_function.py, index.js, index.mjs or bootstrap at the top of %s; use --runtime and --handler", path)
	}
	if m.Handler == "" && m.Runtime == runtime {
		m.Handler = handler
	}
	m.Config = m.Config.WithDefaults()
	if err := m.Name.Validate(); err != nil {
		return m, err
	}
	return m, m.Config.Validate()
}

// stack reads --layer, which replaces the file's.
func (f *deployFlags) stack(m *manifest) error {
	if len(f.layers) > 0 {
		m.Layers = nil
	}
	for _, text := range f.layers {
		ref, err := starling.ParseLayerRef(text)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, ref)
	}
	return nil
}

// provisions reads --schedule, which replaces the file's.
func (f *deployFlags) provisions(m *manifest) error {
	if len(f.schedule) > 0 {
		m.Schedule = nil
	}
	for _, line := range f.schedule {
		at, count, ok := strings.Cut(line, "=")
		n, err := strconv.Atoi(count)
		if !ok || err != nil {
			return usagef("--schedule %q: use \"Mon-Fri 08:00=10\"", line)
		}
		m.Schedule = append(m.Schedule, starling.Provision{At: at, Count: n})
	}
	return nil
}

// guess tells runtime and handler from the names at the top of a package; empty when none is known.
func guess(names []string) (starling.Runtime, string) {
	known := []struct {
		file    string
		runtime starling.Runtime
		handler string
	}{
		{"bootstrap", starling.Provided, "bootstrap"},
		{"main.py", starling.Python311, "main.handler"},
		{"lambda_function.py", starling.Python311, "lambda_function.lambda_handler"},
		{"index.mjs", starling.NodeJS20, "index.handler"},
		{"index.js", starling.NodeJS20, "index.handler"},
		{"index.cjs", starling.NodeJS20, "index.handler"},
	}
	have := map[string]bool{}
	for _, n := range names {
		have[n] = true
	}
	for _, k := range known {
		if have[k.file] {
			return k.runtime, k.handler
		}
	}
	return "", ""
}

// progress returns a reader of b that draws a bar on a terminal and nothing elsewhere. done ends the bar.
func (a *app) progress(what string, b []byte) (io.Reader, func(ok bool)) {
	r := bytes.NewReader(b)
	if !a.tty || a.flags.output != "table" {
		return r, func(bool) {}
	}
	p := mpb.New(mpb.WithOutput(a.err), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	bar := p.AddBar(int64(len(b)), mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(what+" ")),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Name(" "), decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	return bar.ProxyReader(r), func(ok bool) {
		if !ok {
			bar.Abort(true)
		} else {
			bar.SetCurrent(int64(len(b)))
		}
		p.Wait()
	}
}

// packPath packs a folder or reads a zip.
func packPath(path string) (*packed, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, usagef("%v: give the folder or zip of the function", err)
	}
	if info.IsDir() {
		return packFolder(path)
	}
	return readZip(path, info.Size())
}
