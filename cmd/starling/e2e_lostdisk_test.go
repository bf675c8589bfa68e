package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"starling"
	"starling/frontend/protocol"
)

// votes waits until a leader has let the replica of a node in.
func (c *testCluster) votes(t *testing.T, victim *testNode, replica int) {
	t.Helper()
	line := fmt.Sprintf("adding a replica of the state part=manager replica=%d", replica)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, n := range c.nodes {
			text, err := os.ReadFile(n.dir + ".log")
			if err == nil && strings.Contains(string(text), line) {
				c.voters(t, 3)
				return
			}
		}
	}
	t.Fatalf("nobody let replica %d of %s in", replica, victim.name)
}

// counts waits until a majority is made with the replica that came back: the node that never lost anything stands still for
// a moment, again and again, until a write succeeds meanwhile. Before that, a second lost disk would be one more than
// three replicas bear; and who stands still too early keeps the news of the new member from the others.
func (c *testCluster) counts(t *testing.T, victim *testNode, round int) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		c.nodes[1].signal(t, syscall.SIGSTOP)
		err = c.writes(t, victim, fmt.Sprintf("counts%d", round), 3*time.Second)
		c.nodes[1].signal(t, syscall.SIGCONT)
		if err == nil {
			return
		}
	}
	t.Fatalf("no write without %s: %v", c.nodes[1].name, err)
}

// writes makes accounts at a node until one is acknowledged. The first may be on its way to a leader that stands still: it is made
// once, and its maker hears that nobody knows.
func (c *testCluster) writes(t *testing.T, at *testNode, prefix string, limit time.Duration) (err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		id := starling.AccountID(fmt.Sprintf("%s-%d", prefix, time.Now().UnixMilli()))
		if _, err = at.admin.CreateAccount(ctx, protocol.AccountSpec{ID: id}); err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// voters waits until the node that leads counts so many voting replicas.
func (c *testCluster) voters(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if c.leader(t).metric(t, "starling_manager_voters") == float64(want) {
			return
		}
	}
	t.Fatalf("no leader counts %d voters", want)
}

// TestE2ELostDisk takes a manager's copy of the replicated state away while writes go on. It must come back as a new
// replica, vote, and let the cluster survive the next death; nothing that was acknowledged may be lost.
func TestE2ELostDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes")
	}
	c := startCluster(t, 3)
	writes := startWrites(c)
	for round, victim := range []*testNode{c.nodes[2], c.nodes[0]} { // a replica that joined, and the first one
		victim.kill(t)
		if err := os.RemoveAll(filepath.Join(victim.dir, "manager")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		victim.start(t)
		victim.ready(t, 20*time.Second)
		text, err := os.ReadFile(filepath.Join(victim.dir, "member.json"))
		if want := fmt.Sprintf(`"replica": %d,`, 4+round); err != nil || !strings.Contains(string(text), want) {
			t.Fatalf("%s lost its disk and says %s, want %s: %v", victim.name, text, want, err)
		}
		c.votes(t, victim, 4+round)
		c.counts(t, victim, round)
		t.Logf("%s lost its disk and votes again as a new replica %v after its start", victim.name, time.Since(began).Round(time.Millisecond))
	}
	c.nodes[1].kill(t) // only the two that came back are left
	if err := c.writes(t, c.nodes[0], "after", 20*time.Second); err != nil {
		t.Errorf("the two that came back do not make a majority: %v", err)
	}
	acked, missing := writes.stop(t)
	t.Logf("%d writes acknowledged, %d lost", acked, missing)
	if missing > 0 || acked < 10 {
		t.Errorf("%d of %d acknowledged writes are lost", missing, acked)
	}
	c.nodes[1].start(t)
	c.nodes[1].ready(t, 20*time.Second)
	c.voters(t, 3)
}
