// Package agent is the first process of a microVM. It boots the guest, starts the language runtime, and from then on serves
// Kata's agent protocol to starling-vmd on one port and the streams of the sandbox to the node on another. It is not a wall:
// the wall is the virtual machine. It keeps honest code from breaking its own guest, and answers to nobody inside.
//
// The template is saved while it waits on both ports, so each clone begins in the middle of this program.
package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of the guest, by the names that starling-vmd gives them.
const (
	AgentPort  = "agent.0"  // Kata's agent protocol
	StreamPort = "stream.0" // package relay
)

// Devices of the guest, by the serial numbers that starling-vmd gives them.
const (
	RootDisk = "root"
	CodeDisk = "code"
)

// LayerPoint is where a function sees its layers. A caller that has them mounted there has put an image of two folders into the slot:
// CodeFolder with the package and LayerFolder with the layers.
const (
	LayerPoint  = "/opt"
	CodeFolder  = "task"
	LayerFolder = "opt"
)

// ConfigPath is where the initial file system holds the Config, as JSON.
const ConfigPath = "/starling.json"

// ProbeDone is what a guest prints to its first serial port when it was started only to see whether guests run here.
const ProbeDone = "starling: the probe booted"

// ProbeParam on the kernel's command line makes the guest say so and power off.
const ProbeParam = "starling.probe"

// Config is what one template is made for.
type Config struct {
	Argv     []string // of the shipped runtime; empty for provided
	Env      []string // of the shipped runtime before it has code
	Listen   string   // address of the Runtime API, for provided
	TmpBytes int64    // largest /tmp
	TmpFiles int
	Files    uint64 // open descriptors of one process
	Tasks    int    // processes and threads of the function
}

// User is the only user of the guest beside the agent's root.
const User = 1000

// Main runs the agent. It never returns while the guest is of use: its end is the end of the kernel.
func Main() error {
	if err := mountBasics(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.Contains(string(line), ProbeParam) {
		return probe()
	}
	var cfg Config
	text, err := os.ReadFile(ConfigPath)
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := buildRoot(cfg); err != nil {
		return err
	}
	g, err := newGuest(cfg)
	if err != nil {
		return err
	}
	if len(cfg.Argv) > 0 {
		if err := g.startRuntime(); err != nil {
			return err
		}
	}
	streams, err := openPort(StreamPort)
	if err != nil {
		return err
	}
	go g.serveStreams(streams)
	control, err := openPort(AgentPort)
	if err != nil {
		return err
	}
	for {
		if err := control.waitConnected(); err != nil {
			return err
		}
		serve(control, g)
	}
}

// Halt says why on the console and ends the guest.
func Halt(err error) {
	fmt.Println("starling-guest:", err)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	time.Sleep(time.Second) // the power goes off in the meantime
}

func probe() error {
	f, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	fmt.Fprintln(f, ProbeDone)
	f.Close()
	return fmt.Errorf("the probe is over")
}
