// Command starling-vmd makes microVMs for one node: it builds a template of each runtime with Kata's virtcontainers, clones it
// copy-on-write through Kata's factory, and tells the node about each clone over a unix socket. It is the only program that
// links Kata. The node starts it; it ends with the node, and every VM ends with it.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"starling/vmpool/kata/link"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "starling-vmd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 || args[1] != "serve" {
		return fmt.Errorf("usage: starling-vmd serve, started by starling itself")
	}
	conn, err := link.New(os.NewFile(link.FD, "link"))
	if err != nil {
		return err
	}
	if err := ownRun(); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		conn.Close()
	}()
	return newService(conn).run()
}

// runMiB bounds the files of all VMs below /run: sockets and state of Kata.
const runMiB = 256

// ownRun gives this process a /run of its own, which nobody else sees and which is gone with it, however it ends. The node
// started it in a mount namespace of its own.
func ownRun() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := syscall.Mount("starling-vmd", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, fmt.Sprintf("size=%dm,mode=700", runMiB)); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	return nil
}
