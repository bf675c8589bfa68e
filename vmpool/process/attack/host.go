package attack

import (
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// A witness is what a row could have changed on the host, seen from the host. Where a sandbox has a kernel of its own, that
// an act succeeds says nothing: the kernel that obeyed is the sandbox's. What counts is whether the host is as it was.
type witness struct {
	facts map[string]string
	clock time.Duration // of the wall, ahead of the monotonic
}

var began = time.Now()

func (a *arena) witness() witness {
	w := witness{facts: map[string]string{"code": treeHash(a.t, a.code)}}
	now := time.Now()
	w.clock = now.Round(0).Sub(began.Round(0)) - now.Sub(began)
	for _, path := range []string{"/usr/bin/id", "/etc/passwd", "/etc/ld.so.cache", "/etc/hostname", a.canary} {
		text, _ := os.ReadFile(path)
		w.facts[path] = fmt.Sprintf("%x", sha256.Sum256(text))
	}
	for _, path := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/modules",
		"/proc/swaps", "/proc/sysvipc/msg", "/proc/sysvipc/sem", "/proc/sys/kernel/yama/ptrace_scope"} {
		text, _ := os.ReadFile(path)
		w.facts[path] = string(text)
	}
	w.facts["complaints of the kernel"] = fmt.Sprint(Complaints())
	return w
}

// changed names what differs from before; empty when the host is as it was.
func (w witness) changed(before witness) string {
	for name, fact := range before.facts {
		if w.facts[name] != fact {
			return name + " changed on the host"
		}
	}
	if d := w.clock - before.clock; d.Abs() > time.Second {
		return fmt.Sprintf("the host's clock jumped by %v", d)
	}
	return ""
}

// powerless reports, in words, a process of the sandbox that has rights on the host, or "" when none has.
func (a *arena) powerless() string {
	for _, pid := range a.target.PIDs(a.Sandbox) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it ended
		}
		says := map[string]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			says[name] = strings.TrimSpace(value)
		}
		check := stranger
		if a.target.MachineMiB > 0 {
			check = confined
		}
		if what := check(pid, says); what != "" {
			return fmt.Sprintf("process %d %s", pid, what)
		}
	}
	return ""
}

// stranger says what a process is on the host that must be nobody there.
func stranger(pid int, says map[string]string) string {
	var uid, effective uint32
	if _, err := fmt.Sscan(says["Uid"], &uid, &effective); err != nil || effective < 1<<31 && effective != nobody {
		return fmt.Sprintf("is user %d of the host", effective)
	}
	return foreign(pid, "user")
}

// confined says what the emulator of a machine can do on the host. It may be root, whose files it reads, but without a right of root's.
func confined(pid int, says map[string]string) string {
	for name, want := range map[string]string{"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
		if says[name] != want {
			return fmt.Sprintf("has %s %s, not %s", name, says[name], want)
		}
	}
	for _, kind := range []string{"net", "mnt", "ipc"} {
		if what := foreign(pid, kind); what != "" {
			return what
		}
	}
	return ""
}

// foreign complains when a process is in a namespace of this one.
func foreign(pid int, kind string) string {
	own, _ := os.Readlink("/proc/self/ns/" + kind)
	if its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); its == own {
		return fmt.Sprintf("is in the host's %s namespace", kind)
	}
	return ""
}

const nobody = 65534

// obeyed judges attempts of which the sandbox's own kernel obeyed some: what came back must hold nothing of the host's, and
// the host must be as it was.
func (a *arena) obeyed(list []any, bad []string, before witness) result {
	for _, text := range bad {
		for _, secret := range append(slices.Clone(a.target.Secrets), "host secret") {
			if strings.Contains(text, secret) {
				return fail(len(list), "%q of the host came back: %s", secret, text)
			}
		}
	}
	if what := a.witness().changed(before); what != "" {
		return fail(len(list), "%s after: %s", what, strings.Join(bad, "; "))
	}
	if what := a.powerless(); what != "" {
		return fail(len(list), "%s", what)
	}
	return result{contained, len(list), fmt.Sprintf("%d attempts, %d obeyed by the sandbox's own kernel, the host as it was", len(list), len(bad))}
}
