package vmpool

import (
	"slices"

	"golang.org/x/sys/unix"

	"starling"
)

// What a runtime finds inside a sandbox, whichever driver made it.

// RuntimeAPI is where the Lambda Runtime API listens inside a sandbox of provided.
const RuntimeAPI = "127.0.0.1:9001"

// WarmEnv is the environment in which a shipped runtime starts; the function's own comes with its code. The
// loader reads its path only then.
func WarmEnv() []string {
	return []string{"PATH=/usr/bin:/bin", "HOME=/tmp", "TMPDIR=/tmp", "LANG=C.UTF-8", "TZ=:UTC", "LD_LIBRARY_PATH=/opt/lib"}
}

// BootstrapEnv returns env as a bootstrap gets it: sorted, with the address of the Runtime API and a search path.
func BootstrapEnv(env map[string]string) []string {
	out := []string{"AWS_LAMBDA_RUNTIME_API=" + RuntimeAPI}
	if _, ok := env["PATH"]; !ok {
		out = append(out, "PATH=/usr/bin:/bin:/opt/bin")
	}
	for k, v := range env {
		if k != "AWS_LAMBDA_RUNTIME_API" {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return out
}

// OverheadMiB is added to a function's memory for its runtime, which is not the function's choice.
func OverheadMiB(r starling.Runtime) int {
	switch r {
	case starling.NodeJS20:
		return 32
	case starling.Python311:
		return 8
	}
	return 2
}

// Killed is how a sandbox ends that is ended from outside.
var Killed = Exit{Code: -1, Signal: "killed"}

// ExitOf says how a sandbox ended whose first process ended with status.
func ExitOf(status unix.WaitStatus, outOfMemory bool) Exit {
	e := Exit{Code: status.ExitStatus(), OutOfMemory: outOfMemory}
	if status.Signaled() {
		e.Code, e.Signal = -1, status.Signal().String()
	}
	return e
}
