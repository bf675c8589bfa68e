package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestE2ENodeJoinsAClusterThatIsNotThereYet: machines of a rack start in any order, so a node whose cluster does not answer asks again.
func TestE2ENodeJoinsAClusterThatIsNotThereYet(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: real nodes take seconds")
	}
	t.Parallel()
	c := startNodes(t, testKind{})
	first := c.nodes[0]
	token := strings.TrimSpace(starlingCLI(t, []string{"STARLING_SERVER=" + first.url, "STARLING_KEY=" + c.root}, "cluster", "token"))
	first.kill(t)
	second := newTestNode(t, "second", filepath.Join(t.TempDir(), "second"))
	second.args = append(second.args, "--join", first.quic, "--token", token)
	second.start(t)
	t.Cleanup(second.stop)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text, _ := os.ReadFile(second.dir + ".log")
		if strings.Contains(string(text), "asking again") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not say that it waits:\n%s", text)
		}
	}
	first.start(t)
	second.ready(t, 30*time.Second)
}
