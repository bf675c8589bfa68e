package cgroup

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func write(dir, file, value string) error {
	fd, err := unix.Open(dir+"/"+file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir + "/" + file, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write " + value, Path: dir + "/" + file, Err: err}
	}
	return nil
}

func readInt(dir, file string) (int64, error) {
	fd, err := unix.Open(dir+"/"+file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir + "/" + file, Err: err}
	}
	defer unix.Close(fd)
	var b [32]byte // a number is there as a whole at the first read
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return 0, &os.PathError{Op: "read", Path: dir + "/" + file, Err: err}
	}
	s := strings.TrimSpace(string(b[:n]))
	if s == "max" {
		return 1<<63 - 1, nil
	}
	return strconv.ParseInt(s, 10, 64)
}

// field returns the number after key in a file of "key number" lines, or 0.
func field(dir, file, key string) int64 {
	b, _ := os.ReadFile(dir + "/" + file)
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// killAll sends SIGKILL to what the file lists until nothing is listed. A process may fork meanwhile; its child is
// listed in the next round.
func killAll(dir string, between func()) error {
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		b, err := os.ReadFile(dir + "/cgroup.procs")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) { // removed before it was opened, or before it was read
			return nil
		}
		if err != nil {
			return err
		}
		pids := strings.Fields(string(b))
		if len(pids) == 0 {
			return nil
		}
		for _, p := range pids {
			if n, err := strconv.Atoi(p); err == nil && n > 0 {
				_ = unix.Kill(n, unix.SIGKILL) // it may have ended since it was listed
			}
		}
		between()
		if wait >= 20*time.Millisecond && allZombies(pids) {
			return nil // killed, only their parent has not collected them yet
		}
		time.Sleep(wait)
	}
}

// processes reads cgroup.procs of a folder.
func processes(dir string) (pids []int) {
	text, _ := os.ReadFile(dir + "/cgroup.procs")
	for _, f := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

func allZombies(pids []string) bool {
	for _, p := range pids {
		b, err := os.ReadFile("/proc/" + p + "/stat")
		if err != nil {
			continue
		}
		if i := strings.LastIndexByte(string(b), ')'); i < 0 || i+2 >= len(b) || b[i+2] != 'Z' {
			return false
		}
	}
	return true
}

// removeAll removes the folders. The kernel may call a group busy for a moment after its last process has gone.
func removeAll(dirs []string) error {
	deadline := time.Now().Add(5 * time.Second)
	for _, d := range dirs {
		for wait := 50 * time.Microsecond; ; wait = min(2*wait, 10*time.Millisecond) {
			err := unix.Rmdir(d)
			if err == nil || err == unix.ENOENT {
				break
			}
			if err != unix.EBUSY || time.Now().After(deadline) {
				return &os.PathError{Op: "remove cgroup", Path: d, Err: err}
			}
			time.Sleep(wait)
		}
	}
	return nil
}
