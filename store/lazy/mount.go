package lazy

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const mountFlags = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// An option is one setting of a file system; with no value it is a flag.
type option struct{ key, value string }

// mount makes a file system that stands in no namespace: it lives as long as the file it returns, or something made of it, so
// nothing is left of it when this process is killed.
func mount(kind string, options ...option) (*os.File, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %s: %w%s", kind, o.key, err, said(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mount %s: %w%s", kind, err, said(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", kind, err)
	}
	return os.NewFile(uintptr(fd), kind), nil
}

// seal makes a mount read-only.
func seal(m *os.File) error {
	attr := unix.MountAttr{Attr_set: mountFlags}
	if err := unix.MountSetattr(int(m.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make mount read-only: %w", err)
	}
	return nil
}

// said is what the kernel says of a refused mount.
func said(fs int) string {
	b := make([]byte, 256)
	n, err := unix.Read(fs, b)
	if err != nil || n <= 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(b[:n]))
}

// within names something below a mount that has no place in the file tree.
func within(m *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(m.Fd())) + "/" + name
}

// Memory returns a new file system in memory of at most size bytes and files files. Fill it at the path, then Seal it: no other
// program sees it, and it is gone when the file, and every sandbox that was given it, is.
func Memory(size int64, files int) (m *os.File, path string, err error) {
	m, err = mount("tmpfs", option{"size", strconv.FormatInt(size, 10)}, option{"nr_inodes", strconv.Itoa(files)}, option{"mode", "755"})
	if err != nil {
		return nil, "", err
	}
	return m, within(m, ""), nil
}

// Seal makes a mount read-only for ever.
func Seal(m *os.File) error { return seal(m) }

// Supported says why this machine cannot show sandboxes a mount that stands in no namespace; nil when it can.
func Supported() error {
	m, _, err := Memory(1<<20, 16)
	if err != nil {
		return err
	}
	defer m.Close()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open overlay: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFd(fs, "lowerdir+", int(m.Fd())); err != nil {
		return fmt.Errorf("lay an overlay over a mount without a place: %w (Linux 6.15 can)", err)
	}
	return nil
}
