package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// previousRelease is the commit of the release before this one: the last without hand-overs, orders and draining.
const previousRelease = "de49937"

// previousBinary builds the previous release from the repository's history.
func previousBinary(t *testing.T) string {
	t.Helper()
	if err := exec.Command("git", "-C", repo(t), "cat-file", "-e", previousRelease+"^{commit}").Run(); err != nil {
		t.Skipf("the previous release is commit %s, and this tree has no history that holds it: %v", previousRelease, err)
	}
	dir := t.TempDir()
	archive := exec.Command("git", "-C", repo(t), "archive", "--format=tar", previousRelease)
	unpack := exec.Command("tar", "-x", "-C", dir)
	r, w := io.Pipe()
	archive.Stdout, archive.Stderr, unpack.Stdin, unpack.Stderr = w, os.Stderr, r, os.Stderr
	if err := unpack.Start(); err != nil {
		t.Fatal(err)
	}
	err := archive.Run()
	w.Close()
	if wait := unpack.Wait(); err != nil || wait != nil {
		t.Fatalf("the sources of %s: %v, %v", previousRelease, err, wait)
	}
	for _, program := range []string{"starling", "starling-guest"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "bin", program), "./cmd/"+program)
		build.Dir = dir
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building %s of %s: %v\n%s", program, previousRelease, err, out)
		}
	}
	return filepath.Join(dir, "bin", "starling")
}

// TestE2ERollingUpgrade upgrades a cluster of the previous release node by node, under calls and writes, and lets it run
// half upgraded: each release leads and serves beside the other one. Calls through nodes that are not being restarted
// must not fail, and no acknowledged write may be lost.
func TestE2ERollingUpgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it builds another release and runs real nodes for half a minute")
	}
	rounds := roundsOf(0, 5)
	if rounds == 0 {
		t.Skip("it builds another release: run it with -args -e2e, or -rounds 1")
	}
	old := previousBinary(t)
	for round := range rounds {
		c := startNodes(t, testKind{bin: old}, testKind{bin: old}, testKind{bin: old})
		functions := c.deployEchoes(t)
		c.everyFunctionAnswers(t, functions, nil, time.Now())
		load, writes := startLoad(c, functions), startWrites(c)
		for i := range c.nodes {
			c.upgrade(t, load, c.nodes[(round+i)%len(c.nodes)])
		}
		if failed := load.answered(t, 100); failed != 0 {
			t.Errorf("round %d: %d calls failed", round+1, failed)
		}
		writes.kept(t)
		c.ordered(t)
		c.stop()
	}
}

// upgrade restarts one node with the binary of this commit.
func (c *testCluster) upgrade(t *testing.T, load *testLoad, n *testNode) {
	t.Helper()
	load.avoid(n)
	n.stop()
	n.bin = ""
	began := time.Now()
	n.start(t)
	n.ready(t, 20*time.Second)
	t.Logf("%s runs this release, ready after %v", n.name, time.Since(began).Round(time.Millisecond))
	load.avoid(nil)
	load.reaches(t, load.calls.Load()+200) // it works beside the others for a second
}

// ordered waits until the upgraded cluster does what only this release can: an operator's drain is obeyed.
func (c *testCluster) ordered(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var err error
	for id, name := range c.names(t) {
		if name != c.nodes[1].name {
			continue
		}
		for ctx.Err() == nil {
			if err = c.nodes[0].admin.DrainNode(ctx, id, true); err == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	for ctx.Err() == nil && err == nil {
		if len(c.partitionsOf(t, c.nodes[0], c.nodes[1])) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("after the upgrade a drained node keeps its partitions: %v, %v", err, ctx.Err())
}
