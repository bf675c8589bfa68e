package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"starling"
	"starling/cmd/starling/node"
	"starling/internal/awake"
	"starling/vmpool/gvisor"
	driver "starling/vmpool/process" // top has a type of that name
)

func checkRuntimes(ctx context.Context, a *app) []finding {
	return []finding{
		interpreter(ctx, "python3.11", a.set.text("node.python"), "Python 3.", 11, "apt-get install python3, or --python PATH"),
		interpreter(ctx, "nodejs20", a.set.text("node.node"), "v", 20, "install Node 20 or newer, or --node PATH"),
	}
}

// interpreter runs path --version and compares the number after prefix.
func interpreter(ctx context.Context, name, path, prefix string, least int, fix string) finding {
	name = "runtime " + name
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return noteworthy(name, fix, "%s does not run: functions of this runtime cannot", path)
	}
	var n int
	if _, err := fmt.Sscanf(strings.TrimPrefix(text, prefix), "%d", &n); err != nil || n < least {
		return noteworthy(name, fix, "%s is %s: too old", path, printable(text))
	}
	return healthy(name, "%s, %s", path, printable(text))
}

func checkImaging(ctx context.Context, a *app) []finding {
	if err := exec.CommandContext(ctx, a.set.text("node.python"), "-c", "import PIL").Run(); err != nil {
		return []finding{noteworthy("demo", "apt-get install python3-pil", "the thumbnail demo needs Pillow")}
	}
	return nil
}

func checkMemory(context.Context, *app) []finding {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return []finding{noteworthy("memory", "", "cannot be read: %v", err)}
	}
	total := int64(info.Totalram) * int64(info.Unit)
	if total < 1<<30 {
		return []finding{noteworthy("memory", "use a machine with 2 GiB or more", "%s holds few instances", size(total))}
	}
	return []finding{healthy("memory", "%s", size(total))}
}

func checkLimits(context.Context, *app) []finding {
	var out []finding
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		if files.Max < 65_536 {
			out = append(out, noteworthy("limits", "ulimit -n 1048576, or LimitNOFILE=1048576 in the unit", "%d open files: each instance needs several", files.Max))
		} else {
			out = append(out, healthy("limits", "%d open files", files.Max))
		}
	}
	for _, l := range []struct {
		path, name string
		least      int
	}{{"/proc/sys/kernel/pid_max", "kernel.pid_max", 65_536}, {"/proc/sys/kernel/threads-max", "kernel.threads-max", 65_536}, {"/proc/sys/net/core/rmem_max", "net.core.rmem_max", 7_500_000}, {"/proc/sys/net/core/wmem_max", "net.core.wmem_max", 7_500_000}} {
		var n int
		if _, err := fmt.Sscan(readTrim(l.path), &n); err == nil && n < l.least {
			out = append(out, noteworthy("limits", fmt.Sprintf("sysctl -w %s=%d", l.name, l.least), "%s is %d", l.name, n))
		}
	}
	return out
}

// checkDisk times small flushed writes, which bound how fast the manager can agree on anything.
func checkDisk(ctx context.Context, a *app) []finding {
	dir := a.set.text("node.data")
	for dir != "/" && dir != "." {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []finding{broken("disk", "choose another --data", "%s: %v", dir, err)}
	}
	out := []finding{}
	if free := int64(st.Bavail) * st.Bsize; free < 1<<30 {
		out = append(out, noteworthy("disk", "free space, or choose another --data", "%s has %s left", dir, size(free)))
	}
	f, err := os.CreateTemp(dir, ".starling-doctor-*")
	if err != nil {
		return append(out, broken("disk", "choose another --data, or run as its owner", "cannot write to %s: %v", dir, err))
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	var took []time.Duration
	began := time.Now()
	for time.Since(began) < time.Second && len(took) < 500 && ctx.Err() == nil {
		t := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil {
			return append(out, broken("disk", "check the disk", "write to %s: %v", dir, err))
		}
		if err := f.Sync(); err != nil {
			return append(out, broken("disk", "check the disk", "flush in %s: %v", dir, err))
		}
		took = append(took, time.Since(t))
	}
	if len(took) == 0 {
		return out
	}
	slices.Sort(took)
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	text := fmt.Sprintf("%s flushes 4 KiB in %s, p99 %s (%.0f/s)", dir, p50.Round(10*time.Microsecond), p99.Round(10*time.Microsecond), float64(time.Second)/float64(p50))
	if p50 > 20*time.Millisecond {
		return append(out, noteworthy("disk", "put --data of manager nodes on an SSD", "%s: deploys will be slow", text))
	}
	return append(out, healthy("disk", "%s", text))
}

// checkClock compares the wall clock with the monotonic one for a moment and asks the kernel whether
// something keeps it right. Starling's leases use the monotonic clock only; certificates use the wall clock.
func checkClock(context.Context, *app) []finding {
	var before, after [2]unix.Timespec
	read := func(to *[2]unix.Timespec) error {
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &to[0]); err != nil {
			return err
		}
		return unix.ClockGettime(unix.CLOCK_REALTIME, &to[1])
	}
	if err := read(&before); err != nil {
		return []finding{noteworthy("clock", "", "cannot be read: %v", err)}
	}
	time.Sleep(200 * time.Millisecond)
	if err := read(&after); err != nil {
		return []finding{noteworthy("clock", "", "cannot be read: %v", err)}
	}
	drift := time.Duration((after[1].Nano() - before[1].Nano()) - (after[0].Nano() - before[0].Nano()))
	if drift.Abs() > 20*time.Millisecond {
		return []finding{noteworthy("clock", "find out who sets the clock; let chrony or systemd-timesyncd slew it", "the wall clock jumped %s in 200 ms", drift)}
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil || state == unix.TIME_ERROR {
		return []finding{noteworthy("clock", "apt-get install chrony", "steady, but nothing is known to keep it right: certificates may look expired")}
	}
	return []finding{healthy("clock", "steady and synchronized")}
}

func checkPorts(ctx context.Context, a *app) []finding {
	var out, busy []finding
	var free []string
	for _, p := range []struct{ network, key, flag string }{{"udp", "node.listen", "--listen"}, {"tcp", "node.http", "--http"}, {"tcp", "node.admin", "--admin"}} {
		addr := a.set.text(p.key)
		var lc net.ListenConfig
		var err error
		if p.network == "udp" {
			var c net.PacketConn
			if c, err = lc.ListenPacket(ctx, "udp", addr); err == nil {
				c.Close()
			}
		} else {
			var l net.Listener
			if l, err = lc.Listen(ctx, "tcp", addr); err == nil {
				l.Close()
			}
		}
		if err != nil {
			busy = append(busy, noteworthy("ports", "stop what uses it (a node that runs already?), or choose another "+p.flag, "%s %s: %v", p.network, addr, err))
			continue
		}
		free = append(free, p.network+" "+addr)
	}
	if len(free) > 0 {
		out = append(out, healthy("ports", "free: %s", strings.Join(free, ", ")))
	}
	return append(out, busy...)
}

// checkAwake looks whether the kernel lets a node keep idle cores awake.
func checkAwake(_ context.Context, a *app) []finding {
	const name = "idle cores"
	stay := a.set.duration("node.awake")
	if stay == 0 {
		return []finding{healthy(name, "sleep during starts (--awake 0)")}
	}
	if err := unix.Access(awake.Device, unix.W_OK); err != nil {
		return []finding{noteworthy(name, "show the machine's "+awake.Device+" to the node, or say --awake 0", "sleep during starts, which take about a fifth longer: %s: %v", awake.Device, err)}
	}
	return []finding{healthy(name, "stay awake at full power for %v from a start on; --awake 0 saves that", stay)}
}

// checkDriver asks the drivers themselves: they try what a sandbox needs instead of looking whether it should work. What this
// node is not told to give is only noteworthy.
func checkDriver(ctx context.Context, a *app) []finding {
	wanted, err := starling.ParseIsolations(a.set.text("node.isolation"))
	if err != nil {
		return []finding{broken("isolation", "see starling node --help", "%v", err)}
	}
	out := []finding{healthy("isolation", "--isolation %s: functions of others are placed elsewhere", wanted)}
	out = append(out, driverFindings("process driver: ", driver.Check(ctx), wanted.Has(starling.IsolationProcess))...)
	runsc, err := node.FindRunsc(a.set.text("node.runsc"))
	if err != nil && !wanted.Has(starling.IsolationGVisor) {
		out = append(out, noteworthy("gvisor driver", "make runsc, and start the node with --isolation process,gvisor", "no runsc: this machine cannot give isolation gvisor"))
	} else {
		out = append(out, driverFindings("gvisor driver: ", gvisor.Check(ctx, runsc), wanted.Has(starling.IsolationGVisor))...)
	}
	return append(out, microVMFinding(a.set.text("node.kata-images"), wanted.Has(starling.IsolationKata)))
}

// microVMFinding says whether this machine has what microVMs are made of. Whether they run shows only when a node boots one.
func microVMFinding(images string, needed bool) finding {
	const name, fix = "kata driver", "make build guest-images, and start the node with --isolation process,kata"
	emulator, err := node.FindMicroVMs(images)
	switch {
	case err == nil:
		return healthy(name, "starling-vmd, guest images and %s are there; the node says whether the hardware helps", emulator)
	case needed:
		return broken(name, fix, "%v", err)
	}
	return noteworthy(name, fix, "this machine cannot give isolation kata: %v", err)
}

// driverFindings are one driver's; what fails is broken only when the driver is needed.
func driverFindings(prefix string, found []driver.Finding, needed bool) []finding {
	var out []finding
	for _, f := range found {
		name := prefix + f.Name
		switch {
		case starling.Runtime(f.Name).Validate() == nil: // checkRuntimes looks at the interpreters that are set
		case f.OK:
			out = append(out, healthy(name, "%s", f.Detail))
		case f.Optional || !needed:
			out = append(out, noteworthy(name, f.Fix, "%s", f.Detail))
		default:
			out = append(out, broken(name, f.Fix, "%s", f.Detail))
		}
	}
	return out
}
