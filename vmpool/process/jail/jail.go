// Package jail is the first process of a sandbox. It starts with every privilege of its own namespaces and none
// outside, waits until the warden has put it into its cgroup, builds its view of the file system, gives up everything
// that can be given up, and only then becomes the program of the sandbox. No code of a tenant runs before the last step.
//
// It starts once for every sandbox, so what it links it pays for each time: the module's root package alone would double
// the time until main.
package jail

import (
	"fmt"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/link"
)

// Descriptors that the warden hands to the first process, besides the standard three.
const (
	ChannelFD = 3 // from the node, framed calls: kept by shipped runtimes, of no use to provided
	AnswersFD = 4 // to the node, framed answers: the same
	ControlFD = 5 // to the warden; closed when the program starts
	WaiterFD  = 6 // of provided: the program that waits for code
)

// User is the only user of a sandbox, as the code inside sees it.
const User = 1000

// Bootstrap is the program of the provided runtime; LayerBootstrap is it where the package has none and its layers have one.
const (
	Bootstrap      = taskRoot + "/bootstrap"
	LayerBootstrap = "/opt/bootstrap"
)

// Main runs the first process. It must be called on the main thread, locked, because privileges are a thread's and
// only the thread that executes the program counts. It returns only with a failure, which the warden has been told.
func Main() error {
	control := link.NewLine(ControlFD)
	m, _, err := control.Receive()
	if err != nil {
		return fmt.Errorf("wait for the warden: %w", err)
	}
	if m.Op != link.Enter || m.Jail == nil {
		return fmt.Errorf("wait for the warden: message %d", m.Op)
	}
	err = run(m.Jail, control)
	_ = control.Send(&link.Message{Op: link.Ready, Error: err.Error()}) // the warden may be gone; then so are we
	return err
}

func run(j *link.Jail, control *link.Line) error {
	steps := []struct {
		name string
		do   func() error
	}{
		{"enter cgroup namespace", func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) }},
		{"raise loopback", RaiseLoopback},
		{"listen", func() error { return listen(j.Listen, control) }},
		{"build root", func() error { return enterRoot(j) }},
		{"limit resources", func() error { return limit(j) }},
		{"restrict with Landlock", func() error { return landlockAfterPromise() }},
		{"drop privileges", drop},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if len(j.Argv) == 0 {
		return provided(control)
	}
	if err := seal(); err != nil {
		return err
	}
	if err := control.Send(&link.Message{Op: link.Ready}); err != nil {
		return fmt.Errorf("tell the warden: %w", err)
	}
	return execute(j.Argv[0], j.Argv, j.Env, AnswersFD)
}

// RaiseLoopback raises the interface lo of the network namespace that the caller is in.
func RaiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// listen opens the Runtime API's listener inside the network namespace and hands it out.
func listen(addr string, control *link.Line) error {
	if addr == "" {
		return nil
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	port, err := strconv.Atoi(addr[len("127.0.0.1:"):])
	if err != nil {
		return err
	}
	if err := unix.Bind(s, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(s, 256); err != nil {
		return err
	}
	return control.Send(&link.Message{Op: link.Listener}, s)
}

// enterRoot makes a copy of the shared root the root of this mount namespace, adds what must be a sandbox's own, and
// lets go of the host's file systems.
func enterRoot(j *link.Jail) error {
	// The shared root, which is the working folder, came as a locked mount; only a mount of this namespace can become
	// its root.
	tree, err := unix.OpenTree(unix.AT_FDCWD, ".", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("copy root: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, ".", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if err := unix.Fchdir(tree); err != nil {
		return err
	}
	if err := unix.Mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=invisible,subset=pid"); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	options := fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", j.TmpBytes, j.TmpInodes)
	if err := unix.Mount("tmp", "tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmp: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Sethostname([]byte("starling"))
}

// limit sets what a cgroup does not count.
func limit(j *link.Jail) error {
	for _, l := range []struct {
		resource int
		value    uint64
	}{
		{unix.RLIMIT_NOFILE, j.Files},
		// One byte, not none: the kernel ignores a limit of zero when dumps go to a program's pipe, and takes one as never.
		{unix.RLIMIT_CORE, 1},
		{unix.RLIMIT_MEMLOCK, 64 << 10},
		{unix.RLIMIT_MSGQUEUE, 0},
		{unix.RLIMIT_SIGPENDING, 1024},
		{unix.RLIMIT_RTPRIO, 0},
		{unix.RLIMIT_NICE, 0},
	} {
		if err := unix.Prlimit(0, l.resource, &unix.Rlimit{Cur: l.value, Max: l.value}, nil); err != nil {
			return fmt.Errorf("resource %d: %w", l.resource, err)
		}
	}
	return nil
}

// landlockAfterPromise first gives up gaining privileges, which Landlock and the filter ask for.
func landlockAfterPromise() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	return landlock(LandlockABI())
}

// drop leaves the thread with no capability in any set, no way back to one, the user of the sandbox and no group
// beside. Raw calls, because the library's would change all threads, and only this one lives on.
func drop() error {
	if err := sealCapabilities(); err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return fmt.Errorf("groups: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, User, User, User); e != 0 {
		return fmt.Errorf("group: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, User, User, User); e != 0 {
		return fmt.Errorf("user: %w", e)
	}
	if err := noCapabilities(); err != nil {
		return err
	}
	// The change of user took the promise to die with the warden away.
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}

// DropCapabilities leaves the calling thread its user and no capability, and no way back to one for it or what it becomes.
func DropCapabilities() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("promise: %w", err)
	}
	if err := sealCapabilities(); err != nil {
		return err
	}
	return noCapabilities()
}

// sealCapabilities takes every capability out of reach of programs that the thread executes.
func sealCapabilities() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // EINVAL for one the kernel does not know
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient: %w", err)
	}
	const noRootNoFixupLocked = 0x2f // NOROOT, NO_SETUID_FIXUP, both locked; KEEP_CAPS locked off
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noRootNoFixupLocked, 0, 0, 0); err != nil {
		return fmt.Errorf("secure bits: %w", err)
	}
	return nil
}

func noCapabilities() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// seal turns the system-call filter on for this thread, after everything that it refuses has been done.
func seal() error {
	if err := install(Filter()); err != nil {
		return fmt.Errorf("install filter: %w", err)
	}
	return nil
}

// execute becomes the program. Every descriptor above last closes.
func execute(path string, argv, env []string, last uint) error {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	a, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	e, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	if err := unix.CloseRange(last+1, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors: %w", err)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&e[0])))
	return fmt.Errorf("execute %s: %w", path, errno)
}

// provided becomes the waiter, which executes the bootstrap when the warden says so.
func provided(control *link.Line) error {
	if err := seal(); err != nil { // now, because the time between the warden's word and the bootstrap is a caller's
		return err
	}
	if err := control.Send(&link.Message{Op: link.Ready}); err != nil {
		return fmt.Errorf("tell the warden: %w", err)
	}
	if _, err := unix.FcntlInt(ControlFD, unix.F_SETFD, 0); err != nil {
		return err
	}
	name, argv := [1]byte{}, []*byte{nil}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, WaiterFD, uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&argv[0])),
		uintptr(unsafe.Pointer(&argv[0])), unix.AT_EMPTY_PATH, 0)
	return fmt.Errorf("wait for code: %w", errno)
}
