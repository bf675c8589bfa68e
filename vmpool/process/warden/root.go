package warden

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"starling/vmpool/process/link"
)

// rootSize bounds the shared root: certificates, the loader's cache and the runtime programs fit many times.
const rootSize = "size=64m,nr_inodes=16384,mode=755"

// The whole /etc of a sandbox that is not taken from the host.
var etc = map[string]string{
	"passwd":        "root:x:0:0:root:/:/usr/sbin/nologin\nfunction:x:1000:1000:function:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
	"group":         "root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n",
	"hosts":         "127.0.0.1 localhost starling\n::1 localhost\n",
	"hostname":      "starling\n",
	"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}

// fromHost is what a sandbox needs of the host's /etc and what holds nothing about the host. /etc/ssl as a whole does.
var fromHost = []string{"ld.so.cache", "localtime", "services", "protocols", "mime.types", "ssl/certs", "ssl/openssl.cnf", "alternatives"}

// emptyDir is a folder of the root in which nothing lies.
const emptyDir = "var/empty"

// BuildRoot makes at dir, an empty folder, the read-only root that sandboxes of every driver see, for a warden of another kind: /opt is
// a link to opt, where that warden shows layers.
func BuildRoot(s link.Setup, dir, opt string) error {
	w := warden{setup: s, root: dir}
	return w.buildRoot(func() error { return os.Symlink(opt, w.at("opt")) })
}

// EmptyDir returns a folder of such a root in which nothing lies.
func EmptyDir(root string) string { return filepath.Join(root, emptyDir) }

// ownOpt makes the folder over which layers are mounted. The folder in it is for the loader, which looks for libraries only where there
// was a folder when the runtime started.
func (w *warden) ownOpt() error { return os.MkdirAll(w.at("opt/lib"), 0o755) }

// buildRoot makes the root of all sandboxes once, at w.root, in this process's own mount namespace: a read-only tmpfs with device
// nodes, a small /etc and the runtime programs, and the host's /usr below it. A sandbox copies these two or three
// mounts instead of making fifteen of its own. opt makes /opt.
func (w *warden) buildRoot(opt func() error) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leave mount propagation: %w", err)
	}
	// Not nodev: the device nodes live here, and the file system is read-only before anybody else sees it.
	if err := unix.Mount("starling", w.root, "tmpfs", unix.MS_NOSUID, rootSize); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", w.root, err)
	}
	old := unix.Umask(0) // the modes below are meant as written
	defer unix.Umask(old)
	for _, d := range []string{"usr", "etc/ssl", "dev", "proc", "tmp", emptyDir, "var/task", "var/runtime"} {
		if err := os.MkdirAll(w.at(d), 0o755); err != nil {
			return err
		}
	}
	for _, step := range []func() error{opt, w.devices, w.files, w.hostFolders} {
		if err := step(); err != nil {
			return err
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, w.root, 0, &attr); err != nil {
		return fmt.Errorf("make read-only: %w", err)
	}
	return nil
}

func (w *warden) at(name string) string { return filepath.Join(w.root, name) }

func (w *warden) devices() error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknod(w.at("dev/"+name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, w.at("dev/"+name)); err != nil {
			return err
		}
	}
	return nil
}

func (w *warden) files() error {
	for name, text := range etc {
		if err := os.WriteFile(w.at("etc/"+name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(w.at("etc/resolv.conf"), []byte(w.setup.ResolvConf), 0o644); err != nil {
		return err
	}
	for _, name := range fromHost {
		if err := copyTree(filepath.Join("/etc", name), w.at("etc/"+name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy /etc/%s: %w", name, err)
		}
	}
	if w.setup.RuntimeDir == "" {
		return nil
	}
	return copyTree(w.setup.RuntimeDir, w.at("var/runtime"))
}

// hostFolders shows the host's programs and libraries, as links where the host has links.
func (w *warden) hostFolders() error {
	for _, name := range []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		target, err := os.Readlink("/" + name)
		if err == nil {
			if err := os.Symlink(target, w.at(name)); err != nil {
				return err
			}
			continue
		}
		if _, err := os.Stat("/" + name); err != nil {
			continue // not every distribution has each
		}
		if err := os.MkdirAll(w.at(name), 0o755); err != nil {
			return err
		}
		if err := bindReadOnly("/"+name, w.at(name)); err != nil {
			return err
		}
	}
	if w.setup.KeepLocal {
		return nil
	}
	// What an operator installed by hand is no function's business.
	for _, name := range []string{"usr/local", "usr/src"} {
		if _, err := os.Stat(w.at(name)); err != nil {
			continue
		}
		if err := bindReadOnly(w.at(emptyDir), w.at(name)); err != nil {
			return err
		}
	}
	return nil
}

// bindReadOnly mounts only the one mount at from: what is mounted below it on the host stays outside.
func bindReadOnly(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	attr := unix.MountAttr{Attr_set: codeFlags}
	if err := unix.MountSetattr(unix.AT_FDCWD, to, 0, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", to, err)
	}
	return nil
}

// copyTree copies files, folders and links, readable for everybody.
func copyTree(from, to string) error {
	if st, err := os.Stat(from); err != nil {
		return err
	} else if !st.IsDir() {
		return copyFile(from, to)
	}
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(dst, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(target, dst)
		case d.Type().IsRegular():
			return copyFile(p, dst)
		}
		return nil
	})
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}
