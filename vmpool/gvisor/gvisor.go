// Package gvisor makes sandboxes whose kernel is gVisor's, in user space: the system calls of a function reach a process of
// its own, the sentry, and not the kernel of the host. It needs runsc and no virtualization.
//
// The node's side is the process driver's (vmpool/process), whose warden protocol it speaks; the warden (package warden) runs
// runsc instead of forking, and inside each sandbox the guest's first process (package inside) prepares it.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process"
	"starling/vmpool/process/cgroup"
)

// Version is the release of gVisor this driver was written and tested against; internal/runsc.sh builds it.
const Version = "v0.0.0-20260701204157-69c2d17aea96"

// What a sandbox needs beyond its function: the sentry and the gofer, which serves its files, with their threads.
const (
	warmMiB      = 256
	sentryMiB    = 72
	processesMax = 1024
	tagMax       = 30
)

// Config returns the configuration of a driver that makes gVisor sandboxes with the runsc at that absolute path, of the
// configuration of the process driver that the same host has or would have.
func Config(base process.Config, runsc string) process.Config {
	c := base
	c.Kind = process.Kind{Name: string(starling.IsolationGVisor), Warden: "gvisor-warden", Runsc: runsc, OverheadMiB: overheadMiB}
	c.Dir = filepath.Join(filepath.Dir(base.Dir), filepath.Base(base.Dir)+"-gvisor")
	c.Tag = "g-" + strings.TrimLeft(base.Tag[max(0, len(base.Tag)-tagMax):], "-")
	c.UIDBase = 0 // by the tag
	c.WarmMiB, c.ProcessesMax = max(warmMiB, base.WarmMiB), max(processesMax, base.ProcessesMax)
	return c
}

func overheadMiB(r starling.Runtime) int {
	return sentryMiB + vmpool.OverheadMiB(r)
}

// Check looks whether this machine and user can make gVisor sandboxes with the runsc at that path.
func Check(ctx context.Context, runsc string) []process.Finding {
	return []process.Finding{
		finding("root", "run the node as root", func() (string, error) {
			if uid := os.Geteuid(); uid != 0 {
				return "", fmt.Errorf("user id %d", uid)
			}
			return "user id 0; runsc gives it up", nil
		}),
		finding("cgroups", "mount the controllers memory, cpu, cpuacct, pids and freezer (v1), or delegate memory, cpu and pids (v2)", func() (string, error) {
			t, err := cgroup.Find(process.DefaultConfig().CgroupRoot, "starling")
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("version %d", t.Version()), nil
		}),
		finding("runsc", "make runsc", func() (string, error) { return checkRunsc(ctx, runsc) }),
	}
}

func finding(name, fix string, look func() (string, error)) process.Finding {
	detail, err := look()
	if err != nil {
		return process.Finding{Name: name, Detail: err.Error(), Fix: fix}
	}
	return process.Finding{Name: name, OK: true, Detail: detail}
}

func checkRunsc(ctx context.Context, runsc string) (string, error) {
	if runsc == "" {
		return "", errors.New("not found")
	}
	out, err := exec.CommandContext(ctx, runsc, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s does not run: %w", runsc, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return fmt.Sprintf("%s, %s, platform systrap", runsc, first), nil
}
