// Command starling is the whole platform in one binary: a node of a cluster, the command line that talks to
// one, the doctor and the load generator. This package is flags and wiring, nothing else.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"starling/cmd/starling/node"
	"starling/store/lazy"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == node.ShowImages {
		if err := lazy.Main(); err != nil {
			fmt.Fprintln(os.Stderr, "starling: show images:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, newApp(os.Stdin, os.Stdout, os.Stderr, os.Environ()), os.Args[1:])
	stop()
	os.Exit(code)
}

// run is what main and the end-to-end tests call. It returns the exit code.
func run(ctx context.Context, a *app, args []string) int {
	root := newRootCommand(a)
	root.SetArgs(args)
	return a.finish(root.ExecuteContext(ctx))
}
