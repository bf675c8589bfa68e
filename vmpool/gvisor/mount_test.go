package gvisor_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"starling"
	"starling/vmpool"
	"starling/vmpool/process/attack"
)

// A sealed package comes as a mount that stands in no namespace, and the node may let go of it at once.
func TestSandboxRunsCodeOfAMountWithoutAPlace(t *testing.T) {
	b := attack.NewBox(t, template(t, newDriver(t), starling.Python311))
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigCreate(fs))
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	m := os.NewFile(uintptr(fd), "code")
	must(t, os.WriteFile(filepath.Join(fmt.Sprintf("/proc/self/fd/%d", fd), "main.py"), []byte("answer = 42\n"), 0o644))
	must(t, b.Attach(context.Background(), vmpool.Code{Mount: m, MemoryMiB: 128}))
	must(t, m.Close())
	if got := mustPython(t, b, "import sys; sys.path.insert(0, '/var/task'); import main; out = main.answer"); got != 42.0 {
		t.Fatalf("the code says %v", got)
	}
}
