package gvisor_test

import (
	"context"
	"testing"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process/processtest"
)

// A sealed package comes as a mount that stands in no namespace, and the node may let go of it at once.
func TestSandboxRunsCodeOfAMountWithoutAPlace(t *testing.T) {
	b := clone(t, template(t, newDriver(t), starling.Python311))
	m := processtest.CodeMount(t)
	must(t, b.Attach(context.Background(), vmpool.Code{Mount: m, MemoryMiB: 128}))
	must(t, m.Close())
	if got := b.MustPython("import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
		t.Fatalf("the code says %v", got)
	}
}
