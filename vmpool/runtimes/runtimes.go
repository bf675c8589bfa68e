// Package runtimes carries the programs that run functions of the shipped languages, and how to start them.
// They speak vmpool/framed on file descriptor 3.
package runtimes

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"starling"
)

//go:embed python/start.py python/runtime.py python/rehearsal.py node/runtime.js node/rehearsal.js
var files embed.FS

// Dir is where a sandbox sees the programs that Write wrote.
const Dir = "/var/runtime"

// TaskRoot is where a sandbox sees the code of its function.
const TaskRoot = "/var/task"

// Write puts the programs below dir, readable to everybody and writable to none but the owner. Each file is
// replaced whole, so a node that starts beside another one with the same dir does no harm.
func Write(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, "python/__pycache__")); err != nil { // of an earlier runtime
		return fmt.Errorf("write runtime: %w", err)
	}
	return fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, path)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		text, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		return replace(to, text)
	})
}

func replace(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write runtime: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if cerr := f.Chmod(0o644); err == nil {
		err = cerr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write runtime %s: %w", filepath.Base(path), err)
	}
	return nil
}

// Command returns the argument vector that starts the runtime whose program lies below dir (Dir inside a
// sandbox): the interpreter at python or node, with the options that keep an idle one small. Provided has no
// program; its command is its own bootstrap.
func Command(rt starling.Runtime, dir, python, node string) []string {
	switch rt {
	case starling.Python311:
		// -I: nothing of the surroundings decides what is imported. -S: no site.py; runtime.py adds the paths.
		// -B: /var/task is read-only anyway.
		return []string{python, "-I", "-S", "-B", filepath.Join(dir, "python/start.py")}
	case starling.NodeJS20:
		return []string{node, "--max-semi-space-size=2", "--v8-pool-size=0", "--no-warnings", filepath.Join(dir, "node/runtime.js")}
	}
	return []string{filepath.Join(TaskRoot, "bootstrap")}
}
