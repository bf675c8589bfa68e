package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// runscBinary returns the runsc that "make runsc" made.
func runscBinary(t testing.TB) string {
	t.Helper()
	path := filepath.Join(repo(t), "bin", "runsc")
	if _, err := os.Stat(path); err != nil {
		t.Skip("no bin/runsc: run \"make runsc\"")
	}
	return path
}

// TestIsolationIsChosenAndShown deploys one function in both isolations to a host that gives both, and asks for what nobody gives.
func TestIsolationIsChosenAndShown(t *testing.T) {
	if testing.Short() {
		t.Skip("real sandboxes take seconds")
	}
	t.Parallel()
	c := startNodes(t, testKind{mute: true, args: []string{"--isolation", "process,gvisor", "--runsc", runscBinary(t)}})
	n := c.nodes[0]
	env := []string{"STARLING_SERVER=" + n.url, "STARLING_KEY=" + c.key}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.py"), []byte("import os\ndef handler(event, context): return os.uname().release\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []starling.Isolation{starling.IsolationProcess, starling.IsolationGVisor} {
		name := "fn-" + string(i)
		if out := starlingCLI(t, env, "deploy", dir, "--name", name, "--isolation", string(i)); !strings.Contains(out, "isolation "+string(i)) {
			t.Errorf("deploy says %s", out)
		}
		var kernel string
		if err := json.Unmarshal([]byte(starlingCLI(t, env, "invoke", name, "{}")), &kernel); err != nil {
			t.Fatal(err)
		}
		if shared := kernel == strings.TrimSpace(string(host)); shared != (i == starling.IsolationProcess) {
			t.Errorf("isolation %s runs on kernel %s", i, kernel)
		}
		for _, list := range [][]string{{"functions"}, {"functions", name}, {"functions", name, "-o", "json"}} {
			if out := starlingCLI(t, env, list...); !strings.Contains(out, string(i)) {
				t.Errorf("%v does not show %s:\n%s", list, i, out)
			}
		}
	}
	refused := func(env []string, reason string, args ...string) {
		t.Helper()
		cmd := exec.Command(starlingBinary(t), append(args, "-o", "json")...)
		cmd.Env = append(os.Environ(), env...)
		var says bytes.Buffer
		cmd.Stderr = &says
		if err := cmd.Run(); err == nil || !strings.Contains(says.String(), reason) {
			t.Errorf("%v: %v, want %s: %s", args, err, reason, says.String())
		}
	}
	refused(env, "NoIsolation", "deploy", dir, "--name", "vm", "--isolation", "kata")
	admin := []string{"STARLING_SERVER=" + n.url, "STARLING_KEY=" + c.root}
	refused(admin, "SharedKernel", "account", "create", "other")
	if out := starlingCLI(t, admin, "nodes"); !strings.Contains(out, "process,gvisor") {
		t.Errorf("nodes does not show what the host gives:\n%s", out)
	}
	starlingCLI(t, admin, "cluster", "isolation", "--least", "gvisor")
	refused(env, "IsolationTooWeak", "deploy", dir, "--name", "fn-process", "--isolation", "process")
	if out := starlingCLI(t, env, "deploy", dir, "--name", "unsaid"); !strings.Contains(out, "isolation gvisor") {
		t.Errorf("a function that does not say: %s", out)
	}
}

// TestAHostThatSharesItsKernelStartsOnlyWhenToldSo makes a cluster of two accounts, as an older release did, and takes back the word that permits it.
func TestAHostThatSharesItsKernelStartsOnlyWhenToldSo(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	n := c.nodes[0]
	if _, err := n.admin.CreateAccount(t.Context(), protocol.AccountSpec{ID: "other"}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.admin.SetIsolation(t.Context(), protocol.Isolation{}); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.mute = true
	n.start(t)
	if code, says := n.gaveUp(30 * time.Second); code <= 0 || !strings.Contains(says, "--allow-shared-kernel") {
		t.Errorf("exit %d; it does not say what to do:\n%s", code, says)
	}
	n.args = append(n.args, "--allow-shared-kernel")
	n.start(t)
	n.ready(t, 20*time.Second)
}
