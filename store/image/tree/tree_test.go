package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func file(name, body string, mode fs.FileMode) Entry {
	return Entry{Name: name, Mode: mode, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }}
}

func some() []Entry {
	entries := []Entry{
		file("main.py", "def handler(e, c): return e\n", 0o644), file("bin/tool", strings.Repeat("x", 5000), 0o755), file("empty", "", 0o644),
		{Name: "lib/a.so", Mode: fs.ModeSymlink | 0o777, Link: "../bin/tool"}, {Name: "void", Mode: fs.ModeDir | 0o755},
		file("lib/deep/er/x", strings.Repeat("y", 300<<10), 0o644),
	}
	for i := range 300 { // a folder over several blocks
		entries = append(entries, file(fmt.Sprintf("many/file-with-a-long-name-%03d", i), fmt.Sprint(i), 0o644))
	}
	return entries
}

func build(t *testing.T, entries []Entry) (meta, data []byte) {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(t.TempDir(), "image")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	if err := Build(context.Background(), entries, files[0], files[1]); err != nil {
		t.Fatal(err)
	}
	read := func(f *os.File) []byte {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	return read(files[0]), read(files[1])
}

func unpack(t *testing.T, meta, data []byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return dir, Unpack(context.Background(), bytes.NewReader(meta), bytes.NewReader(data), root)
}

// listing describes everything below dir.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprint(&b, rel, " ", info.Mode(), " ")
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			fmt.Fprint(&b, target)
		case d.Type().IsRegular():
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%x", sha256.Sum256(body))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestAPackageComesBackAsItWas(t *testing.T) {
	meta, data := build(t, some())
	if len(meta)%4096 != 0 || len(data)%4096 != 0 {
		t.Errorf("%d and %d bytes are no whole pages", len(meta), len(data))
	}
	dir, err := unpack(t, meta, data)
	if err != nil {
		t.Fatal(err)
	}
	got := listing(t, dir)
	for _, want := range []string{
		fmt.Sprintf("main.py -rw-r--r-- %x\n", sha256.Sum256([]byte("def handler(e, c): return e\n"))),
		"bin drwxr-xr-x \n", fmt.Sprintf("bin/tool -rwxr-xr-x %x\n", sha256.Sum256([]byte(strings.Repeat("x", 5000)))),
		"lib/a.so Lrwxrwxrwx ../bin/tool\n", "void drwxr-xr-x \n", fmt.Sprintf("empty -rw-r--r-- %x\n", sha256.Sum256(nil)),
		fmt.Sprintf("lib/deep/er/x -rw-r--r-- %x\n", sha256.Sum256([]byte(strings.Repeat("y", 300<<10)))),
		fmt.Sprintf("many/file-with-a-long-name-299 -rw-r--r-- %x\n", sha256.Sum256([]byte("299"))),
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in the unpacked package:\n%s", want, got[:1000])
		}
	}
	// ".", four files, a link, void, bin, lib, lib/deep, lib/deep/er, many and what is in it
	if n := strings.Count(got, "\n"); n != 312 {
		t.Errorf("%d things were unpacked", n)
	}
}

func TestTheSamePackageGivesTheSameImage(t *testing.T) {
	meta, data := build(t, some())
	other := some()
	for i, j := 0, len(other)-1; i < j; i, j = i+1, j-1 {
		other[i], other[j] = other[j], other[i]
	}
	again, more := build(t, other)
	if !bytes.Equal(meta, again) || !bytes.Equal(data, more) {
		t.Error("two images of one package differ")
	}
}
