// Command starling-guest is the program around and inside process sandboxes. It is started by the node and by itself,
// never by a person.
package main

import (
	"fmt"
	"os"
	"runtime"

	"starling/vmpool/process/jail"
	"starling/vmpool/process/warden"
)

// The first process of a sandbox must do everything on the main thread.
func init() { runtime.LockOSThread() }

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "starling-guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 {
		switch args[1] {
		case "init":
			return jail.Main()
		case "warden":
			return warden.Main()
		}
	}
	return fmt.Errorf("usage: starling-guest init|warden, started by starling itself")
}
