package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
)

// A finding is what the doctor says about one thing. Level is "ok", "note" (works, slower or weaker) or
// "fail" (functions cannot run here).
type finding struct {
	Name   string `json:"name"`
	Level  string `json:"level"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // one line to run or do
}

const (
	levelOK   = "ok"
	levelNote = "note"
	levelFail = "fail"
)

func healthy(name, format string, args ...any) finding {
	return finding{Name: name, Level: levelOK, Detail: fmt.Sprintf(format, args...)}
}

func noteworthy(name, fix, format string, args ...any) finding {
	return finding{Name: name, Level: levelNote, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

func broken(name, fix, format string, args ...any) finding {
	return finding{Name: name, Level: levelFail, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

// checks are what the doctor looks at, in the order it tells. Each is bounded by its context.
var checks = []func(ctx context.Context, a *app) []finding{
	checkKernel, checkUser, checkNamespaces, checkCgroups, checkSeccomp, checkLandlock, checkMounts, checkRuntimes, checkImaging,
	checkMemory, checkAwake, checkLimits, checkDisk, checkClock, checkPorts, checkVirtualization, checkNetworks, checkUplinks, checkDriver,
}

const checkMax = 10 * time.Second

func doctorCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Check whether this machine can run functions, and how to fix what cannot", Args: cobra.NoArgs,
		Long: `Doctor looks at the kernel, cgroups, namespaces, runtimes, disk, clock and ports of this machine. It changes
nothing; it writes one temporary file into the node's folder to time the disk. The exit code is 0 when functions
can run here and 8 when they cannot.`,
		Example: "  starling doctor\n  starling doctor -o json\n  starling doctor --data /srv/starling\n  starling doctor --uplinks /etc/starling/uplinks.json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context()) }}
	addSettingFlags(c.Flags(), nodeSettingsNamed("node.data", "node.listen", "node.http", "node.admin", "node.awake", "node.python", "node.node", "node.isolation", "node.runsc", "node.kata-images", "node.capture", "node.uplinks"))
	return c
}

// nodeSettingsNamed picks settings for a command that needs only some.
func nodeSettingsNamed(keys ...string) []setting {
	var out []setting
	for _, k := range keys {
		for _, s := range nodeSettings {
			if s.key == k {
				out = append(out, s)
			}
		}
	}
	return out
}

func (a *app) doctor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkMax)
	defer cancel()
	found := make([][]finding, len(checks))
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() { found[i] = check(ctx, a) })
	}
	wg.Wait()
	list := []finding{}
	failed := 0
	for _, f := range found {
		for _, one := range f {
			if one.Level == levelFail {
				failed++
			}
			list = append(list, one)
		}
	}
	err := a.print(list, func(t table.Writer) {
		t.AppendHeader(table.Row{"", "check", "found", "fix"})
		for _, f := range list {
			t.AppendRow(table.Row{map[string]string{levelOK: "ok", levelNote: "note", levelFail: "FAIL"}[f.Level], f.Name, f.Detail, f.Fix})
		}
	})
	if err != nil || failed == 0 {
		return err
	}
	return unavailable("%d of %d checks failed: functions cannot run on this machine yet", failed, len(list))
}
