// Package tree turns the files of a package into an EROFS image and back. It is the only importer of go-erofs.
//
// The description of the file system (names, sizes, places) and the content of the files are two streams, so that a host which
// fetches the first few blocks can mount, list and look up everything.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
)

// An Entry is one thing of a package. Names are clean and relative; who made the list has checked them.
type Entry struct {
	Name string
	Mode fs.FileMode                   // type and permission
	Link string                        // target of a link
	Open func() (io.ReadCloser, error) // of a file
}

// then is the time of change of everything in an image: two images of one package are equal, byte for byte.
var then = time.Unix(0, 0)

// Build writes the image of entries, description and content, each a multiple of 4096 bytes. Order does not matter; the same
// entries give the same bytes.
func Build(ctx context.Context, entries []Entry, meta, data *os.File) error {
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	w := erofs.Create(meta, erofs.WithBuildTime(1, 0), erofs.WithDataFile(data))
	if err := w.Mkdir("/", 0o755); err != nil {
		return fmt.Errorf("build image: %w", err)
	}
	seen := map[string]bool{".": true}
	for i := range entries {
		e := &entries[i]
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := folders(w, path.Dir(e.Name), seen); err != nil {
			return err
		}
		if e.Mode.IsDir() {
			if err := folders(w, e.Name, seen); err != nil {
				return err
			}
			continue
		}
		if err := add(w, e); err != nil {
			return fmt.Errorf("build image: %q: %w", e.Name, err)
		}
	}
	if err := stamp(w, "."); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("build image: %w", err)
	}
	return errors.Join(pad(meta), pad(data))
}

// folders makes dir and what lies above it, once.
func folders(w *erofs.Writer, dir string, seen map[string]bool) error {
	if seen[dir] {
		return nil
	}
	if err := folders(w, path.Dir(dir), seen); err != nil {
		return err
	}
	seen[dir] = true
	if err := w.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("build image: folder %q: %w", dir, err)
	}
	return stamp(w, dir)
}

func stamp(w *erofs.Writer, name string) error {
	if err := errors.Join(w.Chown(name, 0, 0), w.Chtimes(name, then, then)); err != nil {
		return fmt.Errorf("build image: %q: %w", name, err)
	}
	return nil
}

func add(w *erofs.Writer, e *Entry) error {
	if e.Mode&fs.ModeSymlink != 0 {
		return errors.Join(w.Symlink(e.Link, e.Name), stamp(w, e.Name))
	}
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := w.Create(e.Name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return errors.Join(f.Chmod(e.Mode.Perm()), f.Close(), stamp(w, e.Name))
}

// pad fills f to a whole page.
func pad(f *os.File) error {
	info, err := f.Stat()
	if err == nil {
		err = f.Truncate((info.Size() + 4095) &^ 4095)
	}
	if err != nil {
		return fmt.Errorf("pad image: %w", err)
	}
	return nil
}

// Unpack writes the files of an image below root, folders and files as Build was given them. It is for images whose seal was
// checked: the library follows what the description says. os.Root keeps every write inside all the same.
func Unpack(ctx context.Context, meta, data io.ReaderAt, root *os.Root) error {
	img, err := erofs.Open(meta, erofs.WithExtraDevices(data))
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	buf := make([]byte, 64<<10)
	var links []string // last, so that no file is ever written through one
	err = fs.WalkDir(img, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		switch {
		case err != nil:
			return err
		case name == ".":
			return nil
		case d.IsDir():
			return root.Mkdir(name, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			links = append(links, name)
			return nil
		case d.Type().IsRegular():
			return unpackFile(img, name, root, buf)
		}
		return fmt.Errorf("%q is neither file nor folder nor link", name)
	})
	for _, name := range links {
		var target string
		if err == nil {
			target, err = fs.ReadLink(img, name)
		}
		if err == nil {
			err = root.Symlink(target, name)
		}
	}
	if err != nil {
		return fmt.Errorf("unpack image: %w", err)
	}
	return nil
}

func unpackFile(img fs.FS, name string, root *os.Root, buf []byte) error {
	r, err := img.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, buf)
	// By hand, because the umask must not take the sandbox's right to read.
	return errors.Join(err, f.Chmod(info.Mode().Perm()), f.Close())
}
