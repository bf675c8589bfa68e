package kata_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/kata/katatest"
)

var figures = flag.String("figures", "", "how many clones to hold at once, such as 1,10,50, and to measure")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func template(t testing.TB, change func(*kata.Config)) (*kata.Driver, vmpool.Template) {
	t.Helper()
	cfg := katatest.Config(t)
	if change != nil {
		change(&cfg)
	}
	d := kata.New(cfg)
	t.Cleanup(func() { must(t, d.Close()) })
	tpl, err := d.BuildTemplate(context.Background(), vmpool.TemplateSpec{Runtime: starling.Python311})
	must(t, err)
	return d, tpl
}

// TestEndOfStarlingVMDEndsItsVMs kills starling-vmd: its VMs are gone, their sandboxes say so, and the next clone comes from a
// new one.
func TestEndOfStarlingVMDEndsItsVMs(t *testing.T) {
	if testing.Short() {
		t.Skip("microVMs are slow without hardware; run it without -short")
	}
	d, tpl := template(t, nil)
	ctx := context.Background()
	s, err := tpl.Clone(ctx)
	must(t, err)
	pid := kata.PIDOf(s)
	must(t, kata.KillVMD(d))
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the sandbox does not end")
	}
	if e := s.Exit(); e.Signal != "killed" {
		t.Errorf("it ended with %+v", e)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("QEMU lives on")
		}
	}
	must(t, s.Close())
	again, err := tpl.Clone(ctx)
	must(t, err)
	must(t, again.Close())
}

// TestVMHasTheCPUOfItsFunction: a VM starts its function on a whole CPU of the host and serves calls with what the function's
// memory buys; the host counts what it uses, and nothing of its group is left.
func TestVMHasTheCPUOfItsFunction(t *testing.T) {
	if testing.Short() {
		t.Skip("microVMs are slow without hardware; run it without -short")
	}
	_, tpl := template(t, nil)
	ctx := context.Background()
	s, err := tpl.Clone(ctx)
	must(t, err)
	group := groupOf(t, kata.PIDOf(s))
	if got := quota(t, group); got != 1 {
		t.Errorf("a VM without code has %v CPUs", got)
	}
	must(t, s.Attach(ctx, vmpool.Code{Dir: t.TempDir(), MemoryMiB: 128}))
	if got := quota(t, group); got != 1 {
		t.Errorf("a VM whose function starts has %v CPUs", got)
	}
	must(t, s.(vmpool.Settler).Settle())
	if got := quota(t, group); got != starling.CPUMin {
		t.Errorf("a VM of 128 MiB has %v CPUs, want %v", got, starling.CPUMin)
	}
	used, err := s.Stats()
	must(t, err)
	if used.CPU <= 0 || used.CPU > time.Minute {
		t.Errorf("it used %v of processors", used.CPU)
	}
	must(t, s.Close())
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("its group is left: %v", err)
	}
}

// groupOf returns the folder of a process's group that limits CPU.
func groupOf(t *testing.T, pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case part[1] == "":
			if _, err := os.Stat("/sys/fs/cgroup" + part[2] + "/cpu.max"); err == nil {
				return "/sys/fs/cgroup" + part[2]
			}
		case slices.Contains(strings.Split(part[1], ","), "cpu"):
			return "/sys/fs/cgroup/cpu" + part[2]
		}
	}
	t.Fatalf("process %d is in no group: %s", pid, text)
	return ""
}

// quota returns the CPUs that a group may use.
func quota(t *testing.T, group string) float64 {
	var most, period float64
	if text, err := os.ReadFile(group + "/cpu.max"); err == nil {
		fmt.Sscan(string(text), &most, &period)
		return most / period
	}
	for file, n := range map[string]*float64{"cpu.cfs_quota_us": &most, "cpu.cfs_period_us": &period} {
		text, err := os.ReadFile(group + "/" + file)
		must(t, err)
		fmt.Sscan(string(text), n)
	}
	return most / period
}

// TestFigures prints template, clone and memory figures; it asserts no speed.
func TestFigures(t *testing.T) {
	if *figures == "" {
		t.Skip("for measuring: -args -figures 1,10,50")
	}
	cache := t.TempDir()
	begun := time.Now()
	d, _ := template(t, func(c *kata.Config) { c.Cache, c.Paused = cache, 0 })
	t.Logf("template of python3.11 under %s, with the start of starling-vmd: %v", d.Accel(), time.Since(begun).Round(time.Millisecond))
	_, tpl := template(t, func(c *kata.Config) { c.Cache, c.Paused = cache, 0 })
	var held []vmpool.Sandbox
	var took []time.Duration
	for _, word := range strings.Split(*figures, ",") {
		var want int
		fmt.Sscan(word, &want)
		began, first := time.Now(), len(held)
		for len(held) < want {
			begun := time.Now()
			s, err := tpl.Clone(context.Background())
			must(t, err)
			took = append(took, time.Since(begun))
			held = append(held, s)
		}
		made := len(held) - first
		spent := time.Since(began)
		time.Sleep(time.Second)
		total := 0
		for _, s := range held {
			total += pss(t, kata.PIDOf(s))
		}
		t.Logf("%d clones: PSS %.1f MiB each; %d made at %.1f a second, one after another", len(held), float64(total)/float64(len(held))/1024, made, float64(made)/spent.Seconds())
	}
	slices.Sort(took)
	t.Logf("clone to agent ready, reseeded, with clock and name: n %d, p50 %v, p90 %v, max %v", len(took), took[len(took)/2].Round(time.Millisecond),
		took[len(took)*9/10].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	for _, s := range held {
		must(t, s.Close())
	}
}

// pss returns the proportional set size of a process in KiB.
func pss(t *testing.T, pid int) (kib int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Pss:") {
			fmt.Sscan(strings.Fields(line)[1], &kib)
		}
	}
	return kib
}
