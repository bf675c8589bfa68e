package main

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"starling"
)

// packed is a package ready to upload.
type packed struct {
	zip      []byte
	names    []string // of its files, sorted
	manifest []byte   // the folder's starling.yaml; nil without one
}

// leftOut are names that never belong to a function.
var leftOut = map[string]bool{".git": true, ".hg": true, ".svn": true, "__pycache__": true, ".venv": true, ".DS_Store": true,
	".pytest_cache": true, ".mypy_cache": true, ".idea": true, ".vscode": true}

// packTime is the time of every entry, so that the same files give the same zip and the same hash.
var packTime = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// packFolder zips a folder: names in order, times and owners left out, links kept as links.
func packFolder(dir string) (*packed, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	defer root.Close()
	p := &packed{}
	var total int64
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		switch {
		case leftOut[d.Name()] && d.IsDir():
			return fs.SkipDir
		case d.IsDir(), leftOut[d.Name()], strings.HasSuffix(name, ".pyc"):
			return nil
		case name == manifestFile:
			p.manifest, err = root.ReadFile(name)
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if total += info.Size(); total > starling.CodeUnpackedMax {
			return starling.Errorf(starling.TooLarge, "pack folder", "%s has more than %s: leave out what the function does not need", dir, size(starling.CodeUnpackedMax))
		}
		p.names = append(p.names, name)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(p.names) == 0 {
		return nil, usagef("%s is empty: give the folder of the function", dir)
	}
	slices.Sort(p.names)
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, name := range p.names {
		if err := packFile(w, root, name); err != nil {
			return nil, fmt.Errorf("pack %s: %w", filepath.Join(dir, name), err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack folder: %w", err)
	}
	p.zip = buf.Bytes()
	return p, checkZipSize(int64(len(p.zip)))
}

func packFile(w *zip.Writer, root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	h := &zip.FileHeader{Name: path.Clean(name), Method: zip.Deflate, Modified: packTime}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	var body io.Reader
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		if err != nil {
			return err
		}
		mode, body = fs.ModeSymlink|0o777, strings.NewReader(target)
	case info.Mode().IsRegular():
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		body = f
	default:
		return usagef("it is a device, pipe or socket: remove it")
	}
	h.SetMode(mode)
	out, err := w.CreateHeader(h)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, body)
	return err
}

// readZip takes a zip as it is; the server checks it.
func readZip(name string, n int64) (*packed, error) {
	if err := checkZipSize(n); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read zip: %w", err)
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, usagef("%s is no zip: %v", name, err)
	}
	p := &packed{zip: b}
	for _, f := range z.File {
		p.names = append(p.names, f.Name)
		if f.Name == manifestFile && f.UncompressedSize64 < 1<<20 {
			r, err := f.Open()
			if err != nil {
				return nil, usagef("%s: %s: %v", name, f.Name, err)
			}
			p.manifest, err = io.ReadAll(io.LimitReader(r, 1<<20))
			r.Close()
			if err != nil {
				return nil, usagef("%s: %s: %v", name, f.Name, err)
			}
		}
	}
	slices.Sort(p.names)
	return p, nil
}

func checkZipSize(n int64) error {
	if n <= starling.CodeZipMax {
		return nil
	}
	return starling.Errorf(starling.TooLarge, "pack function", "the zip has %s: at most %s; leave out what the function does not need", size(n), size(starling.CodeZipMax))
}
