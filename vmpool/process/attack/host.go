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
	w.facts["complaints of the kernel"] = fmt.Sprint(kernelComplaints())
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

// powerless reports, in words, a process of the sandbox that is anybody on the host, or "" when none is.
func (a *arena) powerless() string {
	for _, pid := range a.target.PIDs(a.Sandbox) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if f[0] != "Uid:" {
				continue
			}
			var uid uint32
			if _, err := fmt.Sscan(f[2], &uid); err != nil || uid < 1<<31 && uid != nobody {
				return fmt.Sprintf("process %d is user %s of the host", pid, f[2])
			}
		}
		if own, _ := os.Readlink("/proc/self/ns/user"); own == first(os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))) {
			return fmt.Sprintf("process %d is in the host's user namespace", pid)
		}
	}
	return ""
}

const nobody = 65534

func first(s string, _ error) string { return s }

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
