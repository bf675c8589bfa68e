//go:build crashpoints

package dragonboat

import (
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/vfs"

	"starling/internal/crash"
)

// crashing returns disk, the machine's own for nil, with the crash points of the log on it.
func crashing(disk config.IFS) config.IFS {
	if disk == nil {
		disk = vfs.Default
	}
	return crashDisk{disk}
}

type crashDisk struct{ vfs.FS }

func (d crashDisk) Create(name string) (vfs.File, error) { return crashFileOf(d.FS.Create(name)) }

func (d crashDisk) OpenForAppend(name string) (vfs.File, error) {
	return crashFileOf(d.FS.OpenForAppend(name))
}

func (d crashDisk) ReuseForWrite(old, name string) (vfs.File, error) {
	return crashFileOf(d.FS.ReuseForWrite(old, name))
}

func (d crashDisk) Rename(old, name string) error {
	crash.Here(crash.BeforeRename)
	err := d.FS.Rename(old, name)
	crash.Here(crash.AfterRename)
	return err
}

type crashFile struct{ vfs.File }

func crashFileOf(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return crashFile{f}, nil
}

func (f crashFile) Write(b []byte) (int, error) {
	crash.Here(crash.BeforeAppend)
	n, err := f.File.Write(b)
	crash.Here(crash.AfterAppend)
	return n, err
}

func (f crashFile) Sync() error {
	crash.Here(crash.BeforeSync)
	err := f.File.Sync()
	crash.Here(crash.AfterSync)
	return err
}
