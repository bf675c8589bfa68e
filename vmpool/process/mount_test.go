package process_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process/processtest"
)

func TestSandboxRunsCodeOfAMountWithoutAPlace(t *testing.T) {
	d := newDriver(t, nil)
	tpl := template(t, d, starling.Python311)
	m := processtest.CodeMount(t)
	var boxes []*box
	for range 2 { // one mount serves many
		b := clone(t, tpl)
		if err := b.Attach(context.Background(), vmpool.Code{Mount: m, MemoryMiB: 128}); err != nil {
			if strings.Contains(err.Error(), "invalid argument") {
				t.Skip("this kernel lays no overlay over such a mount")
			}
			t.Fatal(err)
		}
		boxes = append(boxes, b)
	}
	must(t, m.Close()) // the sandboxes keep what they were given
	for _, b := range boxes {
		if got := b.MustPython("import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
			t.Fatalf("the code says %v", got)
		}
		if _, err := b.Python("open('/var/task/x', 'w')"); err == nil {
			t.Error("the code can be written")
		}
		info := fmt.Sprint(b.MustPython("out = [l for l in open('/proc/self/mountinfo') if '/var/task' in l]"))
		if !strings.Contains(info, "/ /var/task ro,nosuid,nodev") || strings.Contains(info, "/proc") || strings.Contains(info, "tmpfs") {
			t.Errorf("the sandbox sees its code as %s", info)
		}
	}
}
