package code

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
)

// unpack writes a checked package below root. os.Root keeps every write inside even if a check above had a
// hole. Folders come first, links last, so that no file is ever written through a link. Nothing is
// flushed: an unpacked package is a cache that can be made again (see Store.sweep).
//
// Files are root's, 0644 or 0755, folders 0755: the sandbox's user may read and cannot write.
func (p *plan) unpack(ctx context.Context, root *os.Root) error {
	buf := make([]byte, 64<<10)
	for name := range p.byName {
		if i := p.byName[name]; i >= 0 && p.entries[i].kind != kindFolder {
			continue
		}
		if err := root.MkdirAll(name, 0o755); err != nil {
			return fmt.Errorf("unpack folder: %w", err)
		}
	}
	for i := range p.entries {
		e := &p.entries[i]
		if e.kind != kindFile {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := unpackFile(root, e, buf); err != nil {
			return fmt.Errorf("unpack %q: %w", e.name, err)
		}
	}
	for i := range p.entries {
		if e := &p.entries[i]; e.kind == kindLink {
			if err := root.Symlink(e.target, path.Clean(e.name)); err != nil {
				return fmt.Errorf("unpack link: %w", err)
			}
		}
	}
	return nil
}

func unpackFile(root *os.Root, e *entry, buf []byte) error {
	r, err := e.file.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, e.mode)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, r, buf); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(e.mode); err != nil { // the umask must not take the sandbox's right to read
		f.Close()
		return err
	}
	return f.Close()
}
