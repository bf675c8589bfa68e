// Command starling-guest is the program around and inside sandboxes: warden and first process of process and gVisor sandboxes, first
// process of microVMs, and what stands before QEMU. It is started by the node, by starling-vmd, by kernels and by itself, never
// by a person.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"starling/vmpool/gvisor/inside"
	gvisor "starling/vmpool/gvisor/warden"
	"starling/vmpool/kata/agent"
	"starling/vmpool/kata/shim"
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
	switch {
	case filepath.Base(args[0]) == shim.Name:
		return shim.Main(args)
	case args[0] == "/init" && os.Getpid() == 1:
		runtime.UnlockOSThread()
		agent.Halt(agent.Main())
		return nil
	}
	if len(args) == 2 {
		switch args[1] {
		case "init":
			return jail.Main()
		case "warden":
			return warden.Main()
		case "gvisor-warden":
			return gvisor.Main()
		}
	}
	if len(args) > 2 {
		switch args[1] {
		case "gvisor-enter":
			return gvisor.Enter(args[2:])
		case "gvisor-init":
			return inside.Main(args[2])
		}
	}
	return fmt.Errorf("usage: starling-guest init|warden|gvisor-warden|gvisor-enter|gvisor-init, started by starling itself")
}
