package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"starling/vmpool/kata/agent"
	"starling/vmpool/kata/link"
)

// A cpio is an archive in the "newc" format, which kernels unpack as their first file system.
type cpio struct {
	buf   bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode fs.FileMode, kind uint32, data []byte) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, kind|uint32(mode.Perm()), 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.buf.WriteString(name + "\x00")
	c.pad()
	c.buf.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

const (
	kindDir  = 0o040000
	kindFile = 0o100000
)

func (c *cpio) dir(name string)               { c.add(name, 0o755, kindDir, nil) }
func (c *cpio) file(name string, data []byte) { c.add(name, 0o644, kindFile, data) }

// node adds a character device: the kernel opens /dev/console for the first process before that can mount anything.
func (c *cpio) node(name string, major, minor int) {
	c.inode++
	fmt.Fprintf(&c.buf, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, 0o020600, 0, 0, 1, 0, 0, 0, 0, major, minor, len(name)+1, 0)
	c.buf.WriteString(name + "\x00")
	c.pad()
}

// bytes ends the archive.
func (c *cpio) bytes() []byte {
	c.add("TRAILER!!!", 0, 0, nil)
	return c.buf.Bytes()
}

// initrd makes the first file system of a guest: the agent, its configuration, the kernel's modules and the runtimes.
func initrd(s *link.Setup, runtime string) ([]byte, error) {
	guest, err := os.ReadFile(s.Guest)
	if err != nil {
		return nil, err
	}
	cfg, err := json.Marshal(agent.Config{Argv: s.Argv[runtime], Env: s.Env, Listen: listenOf(s, runtime), TmpBytes: s.TmpBytes,
		TmpFiles: s.TmpFiles, Files: s.Files, Tasks: s.Tasks})
	if err != nil {
		return nil, err
	}
	c := &cpio{}
	for _, d := range []string{"dev", "modules", "var", "var/runtime"} {
		c.dir(d)
	}
	c.node("dev/console", 5, 1)
	c.node("dev/null", 1, 3)
	c.add("init", 0o755, kindFile, guest)
	c.file(agent.ConfigPath[1:], cfg)
	modules, _ := filepath.Glob(filepath.Join(s.Images, "kernel/modules/*.ko"))
	slices.Sort(modules)
	for _, m := range modules {
		data, err := os.ReadFile(m)
		if err != nil {
			return nil, err
		}
		c.file("modules/"+filepath.Base(m), data)
	}
	err = filepath.WalkDir(s.Programs, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.Programs {
			return err
		}
		name := filepath.Join("var/runtime", path[len(s.Programs):])
		if d.IsDir() {
			c.dir(name)
			return nil
		}
		data, err := os.ReadFile(path)
		c.file(name, data)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pack the runtimes: %w", err)
	}
	return c.bytes(), nil
}

// listenOf returns where the Runtime API listens in guests of a runtime; shipped runtimes have none.
func listenOf(s *link.Setup, runtime string) string {
	if len(s.Argv[runtime]) > 0 {
		return ""
	}
	return s.RuntimeAPI
}
