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
	"starling/cluster/backup"
	"starling/cmd/starling/node"
	"starling/frontend/client"
	"starling/frontend/protocol"
)

// refusedCLI runs the binary once, which must fail, and returns what it says.
func refusedCLI(t *testing.T, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command(starlingBinary(t), args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("starling %s was not refused:\n%s", strings.Join(args, " "), out)
	}
	return string(out)
}

// TestE2EBackupAndRestore backs up a cluster with functions, kills it whole, restores it elsewhere with the bucket kept,
// and calls the functions again.
func TestE2EBackupAndRestore(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes")
	}
	t.Parallel()
	c := startCluster(t, 1)
	functions := c.deployEchoes(t)
	old := c.nodes[0]
	dir := t.TempDir()
	file := filepath.Join(dir, "test.backup")
	env := []string{"STARLING_SERVER=" + old.url, "STARLING_KEY=" + c.root}

	var taken, again backup.Report
	out := starlingCLI(t, env, "cluster", "backup", file, "--with-ca-key", "--data", old.dir, "-o", "json")
	if err := json.Unmarshal([]byte(out), &taken); err != nil || !taken.HasKey || taken.Summary.Functions != len(functions) {
		t.Fatalf("the backup says %s: %v", out, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	if text := refusedCLI(t, []string{"STARLING_SERVER=" + old.url, "STARLING_KEY=" + c.key}, "cluster", "backup", filepath.Join(dir, "no")); !strings.Contains(text, "admin") {
		t.Errorf("a user's key: %s", text)
	}
	if text := refusedCLI(t, env, "cluster", "backup", file); !strings.Contains(text, "exists") {
		t.Errorf("a file that exists: %s", text)
	}
	plain := filepath.Join(dir, "plain.backup")
	if text := starlingCLI(t, env, "cluster", "backup", plain); !strings.Contains(text, "keep the bucket") {
		t.Errorf("it does not say what to keep: %s", text)
	}

	next := newTestNode(t, "restored", filepath.Join(dir, "restored"))
	restore := func(file string, more ...string) []string {
		return append([]string{"cluster", "restore", file, "--data", next.dir, "--listen", next.quic, "-o", "json"}, more...)
	}
	if text := refusedCLI(t, nil, restore(file)...); !strings.Contains(text, "still answers") {
		t.Errorf("beside the old cluster: %s", text)
	}
	old.kill(t)
	if text := refusedCLI(t, nil, restore(plain)...); !strings.Contains(text, "--ca") {
		t.Errorf("without the CA's key: %s", text)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(whole)
	bad[len(bad)/2] ^= 4
	damaged := filepath.Join(dir, "damaged.backup")
	if err := os.WriteFile(damaged, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{restore(damaged), {"cluster", "backup", "--verify", damaged}} {
		if text := refusedCLI(t, nil, args...); !strings.Contains(text, "damaged") && !strings.Contains(text, "cannot be read") {
			t.Errorf("a damaged file: %s", text)
		}
	}
	var made node.Revived
	out = starlingCLI(t, nil, restore(file)...)
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.StateHash != taken.End.StateHash {
		t.Fatalf("restore says %s: %v", out, err)
	}
	next.args = append(next.args, "--bucket", "file://"+filepath.Join(old.dir, "bucket"))
	next.http, next.admin = client.NewHTTP(next.url, c.key), client.NewHTTP(next.url, c.root)
	c.nodes = []*testNode{next}
	began := time.Now()
	next.start(t)
	t.Cleanup(next.stop)
	next.ready(t, 30*time.Second)
	t.Logf("restored and ready after %v", time.Since(began).Round(time.Millisecond))
	c.everyFunctionAnswers(t, functions, nil, began)

	file = filepath.Join(dir, "restored.backup")
	env[0] = "STARLING_SERVER=" + next.url
	starlingCLI(t, env, "cluster", "backup", file)
	out = starlingCLI(t, nil, "cluster", "backup", "--verify", file, "-o", "json")
	if err := json.Unmarshal([]byte(out), &again); err != nil {
		t.Fatal(err)
	}
	if again.End.CatalogHash != taken.End.CatalogHash || again.Summary.Epoch <= taken.Summary.Epoch || again.Summary.Nodes != 1 {
		t.Errorf("the restored cluster has %+v, the old one had %+v", again, taken)
	}
	next.restart(t) // and it goes on from its own log
	c.everyFunctionAnswers(t, functions, nil, time.Now())
	if *e2e {
		c.outlives(t, functions, env)
	}
}

// outlives lets two nodes join and kills the first: the state that they were sent must be the restored one.
func (c *testCluster) outlives(t *testing.T, functions []starling.FunctionName, env []string) {
	t.Helper()
	first := c.nodes[0]
	for _, name := range []string{"second", "third"} {
		n := newTestNode(t, name, filepath.Join(t.TempDir(), name))
		n.args = append(n.args, first.args[len(first.args)-2:]...) // the same bucket
		n.args = append(n.args, "--join", first.quic, "--token", strings.TrimSpace(starlingCLI(t, env, "cluster", "token")))
		n.http, n.admin = client.NewHTTP(n.url, c.key), client.NewHTTP(n.url, c.root)
		n.start(t)
		t.Cleanup(n.stop)
		n.ready(t, 30*time.Second)
		c.nodes = append(c.nodes, n)
	}
	c.voters(t, 3)
	first.kill(t)
	c.everyFunctionAnswers(t, functions, first, time.Now())
	if _, err := c.nodes[1].admin.CreateAccount(t.Context(), protocol.AccountSpec{ID: "after"}); err != nil {
		t.Error(err)
	}
}
