package jail

import (
	"fmt"
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

// landlock lets the calling thread read and execute everything it can see, write below /tmp and to the device files,
// and nothing else. It says again what read-only mounts say, by another mechanism: one mistake opens nothing. From
// ABI 6 on it also cuts off abstract sockets and signals of other sandboxes. Network access is not restricted here:
// the network namespace does that. Without Landlock the sandbox rests on its other walls, and Check says so.
func landlock(abi int) error {
	if abi < 1 {
		return nil
	}
	attr := unix.LandlockRulesetAttr{Access_fs: accessABI1}
	size := unsafe.Sizeof(attr.Access_fs)
	switch {
	case abi >= 5:
		attr.Access_fs = accessABI5
	case abi >= 3:
		attr.Access_fs = accessABI3
	case abi >= 2:
		attr.Access_fs = accessABI2
	}
	if abi >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Sizeof(attr)
	}
	fd, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return fmt.Errorf("create ruleset: %w", e)
	}
	defer unix.Close(int(fd))
	writeFile := attr.Access_fs & (unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE)
	rules := []struct {
		path   string
		access uint64
	}{{"/", readAccess}, {"/tmp", attr.Access_fs &^ deviceNodes}, {"/dev/null", writeFile}, {"/dev/zero", writeFile},
		{"/dev/full", writeFile}, {"/dev/random", writeFile}, {"/dev/urandom", writeFile},
		// A program may rename its threads and tune what the kernel lets it tune of itself.
		{"/proc", readAccess | writeFile}}
	for _, r := range rules {
		if err := addRule(int(fd), r.path, r.access); err != nil {
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
