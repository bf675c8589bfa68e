// Package inside is the first process of a gVisor sandbox. It runs in the sandbox's own kernel, prepares there what runsc
// cannot be told to prepare, and becomes the language runtime; for provided it stays, as the parent of the bootstrap and as
// the way of its connections to the node.
package inside

import (
	"encoding/json"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where things are in a sandbox.
const (
	Program   = "/var/starling-guest" // this program
	APISocket = "/var/api.sock"       // the node's listener for the Runtime API
	User      = 1000                  // whom the code of a function runs as
	CallsFD   = 3                     // of a shipped runtime calls, of provided the warden's word
	AnswersFD = 4                     // the same, outwards
)

// Orders say how a sandbox is to be. They are the argument of the first process.
type Orders struct {
	TmpBytes  int64    `json:"tmp"`
	TmpInodes int      `json:"inodes"`
	Argv      []string `json:"argv,omitempty"` // nil for provided
	Env       []string `json:"env,omitempty"`
	Listen    string   `json:"listen,omitempty"` // address of the Runtime API, for provided
}

// Main obeys. It returns only with a failure.
func Main(orders string) error {
	var o Orders
	if err := json.Unmarshal([]byte(orders), &o); err != nil {
		return fmt.Errorf("read orders: %w", err)
	}
	if err := mounts(&o); err != nil {
		return err
	}
	if len(o.Argv) == 0 {
		return serve(&o)
	}
	if err := syscall.Setresgid(User, User, User); err != nil {
		return fmt.Errorf("give up root's group: %w", err)
	}
	if err := syscall.Setresuid(User, User, User); err != nil { // and with it every capability
		return fmt.Errorf("give up root: %w", err)
	}
	if err := unix.CloseRange(AnswersFD+1, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors: %w", err)
	}
	return fmt.Errorf("execute %s: %w", o.Argv[0], syscall.Exec(o.Argv[0], o.Argv, o.Env))
}

// mounts bounds what can be written. runsc passes a size to a file system in memory but no number of files, and gives /dev
// and /dev/shm neither.
func mounts(o *Orders) error {
	for _, m := range []struct {
		at      string
		flags   uintptr
		options string
	}{
		{"/tmp", unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", o.TmpBytes, o.TmpInodes)},
		{"/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", o.TmpBytes, o.TmpInodes)},
	} {
		if err := unix.Mount("tmp", m.at, "tmpfs", m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return os.Chdir("/")
}
