package runtimes

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// compile is what the interpreter does: the result is taken without a look at the source's time, which a copy changes,
// and names the source as a sandbox sees it.
const compile = `import sys, py_compile as c
c.compile(sys.argv[1], dfile=sys.argv[2], doraise=True, invalidation_mode=c.PycInvalidationMode.UNCHECKED_HASH)`

// Compile lets the interpreter at python compile the Python runtime below dir once, after Write. Without it the runtime
// runs as well, but each start compiles it: 10 ms of CPU and a megabyte that the process keeps.
func Compile(ctx context.Context, dir, python string) error {
	const program = "python/runtime.py"
	cmd := exec.CommandContext(ctx, python, "-I", "-S", "-c", compile, filepath.Join(dir, program), filepath.Join(Dir, program))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the Python runtime: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
