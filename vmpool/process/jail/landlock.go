package jail

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access rights that exist from the given Landlock ABI on.
const (
	accessABI1 = 1<<13 - 1
	accessABI2 = accessABI1 | unix.LANDLOCK_ACCESS_FS_REFER
	accessABI3 = accessABI2 | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	accessABI5 = accessABI3 | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

	readAccess  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	deviceNodes = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
)

// LandlockABI returns the version of Landlock that the kernel offers; 0 is none.
func LandlockABI() int {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0
	}
	return int(v)
}

// A Rule says what may be done with everything at and below a path.
type Rule struct {
	Path  string
	Write bool // files may be written, made and removed there, too; device files never made
}

// landlock lets the calling thread read and execute everything it can see, write below /tmp and to the device files,
// and nothing else. It says again what read-only mounts say, by another mechanism: one mistake opens nothing.
func landlock(abi int) error {
	all, file := everything(abi)
	return restrict(abi, []access{{"/", readAccess}, {"/tmp", all &^ deviceNodes}, {"/dev/null", file}, {"/dev/zero", file},
		{"/dev/full", file}, {"/dev/random", file}, {"/dev/urandom", file},
		// A program may rename its threads and tune what the kernel lets it tune of itself.
		{"/proc", readAccess | file}})
}

// Restrict lets the calling thread, and what it becomes, read and write files by the rules and no others. A path that does not
// exist is left out. Without Landlock it does nothing.
func Restrict(rules []Rule) error {
	abi := LandlockABI()
	all, file := everything(abi)
	var list []access
	for _, r := range rules {
		info, err := os.Stat(r.Path)
		if err != nil {
			continue
		}
		a := uint64(readAccess)
		if r.Write {
			a = all &^ deviceNodes
		}
		if !info.IsDir() {
			a &= file | unix.LANDLOCK_ACCESS_FS_EXECUTE
		}
		list = append(list, access{r.Path, a})
	}
	return restrict(abi, list)
}

// access is what is permitted at and below a path.
type access struct {
	path   string
	rights uint64
}

// everything returns all rights that the kernel knows, and those of reading and writing one file.
func everything(abi int) (all, file uint64) {
	all = accessABI1
	switch {
	case abi >= 5:
		all = accessABI5
	case abi >= 3:
		all = accessABI3
	case abi >= 2:
		all = accessABI2
	}
	return all, all & (unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE)
}

// restrict leaves the calling thread what list permits. From ABI 6 on it also cuts off abstract sockets and signals of
// others. Network access is not restricted here: the network namespace does that. Without Landlock a sandbox rests on its
// other walls, and Check says so.
func restrict(abi int, list []access) error {
	if abi < 1 {
		return nil
	}
	all, _ := everything(abi)
	attr := unix.LandlockRulesetAttr{Access_fs: all}
	size := unsafe.Sizeof(attr.Access_fs)
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Sizeof(attr)
	}
	fd, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return fmt.Errorf("create ruleset: %w", e)
	}
	defer unix.Close(int(fd))
	for _, r := range list {
		if err := addRule(int(fd), r.path, r.rights); err != nil {
			return fmt.Errorf("allow %s: %w", r.path, err)
		}
	}
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return fmt.Errorf("restrict: %w", e)
	}
	return nil
}

func addRule(ruleset int, path string, access uint64) error {
	f, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(f)}
	if _, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}
