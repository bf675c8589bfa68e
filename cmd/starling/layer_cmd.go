package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"starling"
	"starling/frontend/protocol"
)

const layerLong = `A layer is a set of files that several functions of an account share: libraries, tools, data. Its versions are numbered
and never change. A function sees its layers, at most 5, read-only under /opt, a later one over an earlier one; code and
layers of a function have at most 250 MiB unpacked. What lies in these folders is found without a path:

  python/, python/lib/python3.11/site-packages/   Python's import
  nodejs/node_modules/, nodejs/node20/node_modules/  Node's require
  bin/   PATH        lib/   LD_LIBRARY_PATH        bootstrap   runtime provided, where the package has none`

func layerCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "layer", Aliases: []string{"layers"}, Short: "Publish, list, show and delete layers: files that functions share under /opt", Long: layerLong, Args: cobra.NoArgs,
		Example: "  starling layer publish deps --dir ./deps --runtime python3.11\n  starling deploy ./hello --layer deps:1\n  starling layer list",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(layerPublish(a), layerList(a), layerShow(a), layerDelete(a))
	return c
}

type layerFlags struct {
	dir, zip, description string
	runtimes              []string
}

func layerPublish(a *app) *cobra.Command {
	var f layerFlags
	c := &cobra.Command{
		Use: "publish NAME", Short: "Publish a version of a layer from a folder or a zip", Args: cobra.ExactArgs(1),
		Long: "Publish packs a folder or takes a zip, uploads it and numbers it as the next version of the layer. Publishing the same\n" +
			"again answers the version that there is.\n\n" + layerLong,
		Example: "  pip install --target deps/python requests && starling layer publish deps --dir deps --runtime python3.11\n" +
			"  starling layer publish fonts --zip fonts.zip --description \"the house's fonts\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.publishLayer(cmd.Context(), starling.LayerName(args[0]), &f)
		}}
	fl := c.Flags()
	fl.StringVar(&f.dir, "dir", "", "folder that becomes /opt")
	fl.StringVar(&f.zip, "zip", "", "zip of it")
	fl.StringArrayVar(&f.runtimes, "runtime", nil, "runtime of functions that may use it; repeat for more (default: all)")
	fl.StringVar(&f.description, "description", "", "a line for people")
	c.MarkFlagsOneRequired("dir", "zip")
	c.MarkFlagsMutuallyExclusive("dir", "zip")
	c.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{"python3.11", "nodejs20", "provided"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (a *app) publishLayer(ctx context.Context, name starling.LayerName, f *layerFlags) error {
	if err := name.Validate(); err != nil {
		return err
	}
	spec := protocol.LayerSpec{Description: f.description}
	for _, r := range f.runtimes {
		if err := starling.Runtime(r).Validate(); err != nil {
			return err
		}
		spec.Runtimes = append(spec.Runtimes, starling.Runtime(r))
	}
	p, err := packPath(f.dir + f.zip)
	if err != nil {
		return err
	}
	if !lookedUp(p.names) {
		fmt.Fprintf(a.err, "note: nothing lies under python/, nodejs/, bin/ or lib/, nor is it a bootstrap: functions find it by its path below /opt only\n")
	}
	body, done := a.progress("upload", p.zip)
	code, err := a.client().PutCode(ctx, body, int64(len(p.zip)))
	done(err == nil)
	if err != nil {
		return err
	}
	spec.Code = code.Hash
	l, err := a.client().PublishLayer(ctx, name, spec)
	if err != nil {
		return err
	}
	return a.say(l, "Published %s: %s packed, %s unpacked. Use it: starling deploy FOLDER --layer %[1]s", l.Ref(), size(l.CodeSize), size(l.Unpacked))
}

// lookedUp reports whether something lies where runtimes look for it.
func lookedUp(names []string) bool {
	for _, n := range names {
		for _, dir := range []string{"python/", "nodejs/", "bin/", "lib/", "bootstrap"} {
			if strings.HasPrefix(n, dir) {
				return true
			}
		}
	}
	return false
}

func layerList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list [NAME]", Aliases: []string{"ls"}, Short: "List layers with their newest version, or the versions of one", Args: cobra.MaximumNArgs(1),
		Example: "  starling layer list\n  starling layer list deps -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []starling.Layer
			var err error
			if len(args) == 1 {
				list, err = a.client().LayerVersions(cmd.Context(), starling.LayerName(args[0]))
			} else {
				list, err = all(func(after string) (protocol.Page[starling.Layer], error) {
					return a.client().Layers(cmd.Context(), after, 1000)
				})
			}
			if err != nil {
				return err
			}
			return a.print(list, func(t table.Writer) {
				t.AppendHeader(table.Row{"layer", "runtimes", "packed", "unpacked", "published", "description"})
				for _, l := range list {
					t.AppendRow(table.Row{l.Ref(), runtimeWords(&l), size(l.CodeSize), size(l.Unpacked), ago(l.Created), printable(l.Description)})
				}
			})
		}}
}

func runtimeWords(l *starling.Layer) string {
	if len(l.Runtimes) == 0 {
		return "all"
	}
	words := make([]string, len(l.Runtimes))
	for i, r := range l.Runtimes {
		words[i] = string(r)
	}
	return strings.Join(words, ", ")
}

func layerShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME:VERSION", Short: "Show one version of a layer", Args: cobra.ExactArgs(1), Example: "  starling layer show deps:3 -o yaml",
		ValidArgsFunction: a.completeLayers,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := starling.ParseLayerRef(args[0])
			if err != nil {
				return err
			}
			l, err := a.client().Layer(cmd.Context(), ref)
			if err != nil {
				return err
			}
			return a.print(l, func(t table.Writer) {
				t.AppendRows([]table.Row{{"layer", l.Ref()}, {"account", l.Account}, {"runtimes", runtimeWords(&l)}, {"packed", size(l.CodeSize)}, {"unpacked", size(l.Unpacked)},
					{"code", l.Code}, {"published", ago(l.Created)}})
				if l.Description != "" {
					t.AppendRow(table.Row{"description", printable(l.Description)})
				}
			})
		}}
}

func layerDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME:VERSION...", Aliases: []string{"rm"}, Short: "Delete versions of layers that no function uses", Args: cobra.MinimumNArgs(1),
		Long: "Delete removes versions of layers. One that the latest or a published version of a function uses is refused (conflict):\n" +
			"deploy the function without it, or delete the function, first. With its last version the layer is gone.",
		Example: "  starling layer delete deps:1 deps:2", ValidArgsFunction: a.completeLayers,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, text := range args {
				ref, err := starling.ParseLayerRef(text)
				if err != nil {
					return err
				}
				if err := a.client().DeleteLayer(cmd.Context(), ref); err != nil {
					return err
				}
				if err := a.say(map[string]string{"deleted": text}, "Deleted %s.", text); err != nil {
					return err
				}
			}
			return nil
		}}
}

// completeLayers offers the newest version of each layer to the shell.
func (a *app) completeLayers(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	if a.load(cmd.Flags()) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	p, err := a.client().Layers(ctx, "", 0)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, l := range p.Items {
		names = append(names, l.Ref().String()+"\t"+l.Description)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
