// Package durable puts small files in place whole or not at all, so that a loss of power leaves the old text or
// the new one.
package durable

import (
	"errors"
	"os"
	"path/filepath"

	"starling/internal/crash"
)

// WriteFile replaces the file at path by data, readable as perm says. When it returns nil the disk holds the new
// text under that name; after an error the old text is still there, or the new one. Its folder must exist.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return err
	}
	crash.Here(crash.BeforeReplace)
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	crash.Here(crash.AfterReplace)
	return SyncDir(dir)
}

// SyncDir makes the names in a folder durable: a rename is not before.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
