package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"starling/vmpool/kata/link"
	"starling/vmpool/kata/shim"
)

// makeSlot makes what lies in the code slot of a template: nothing, of the slot's size.
func makeSlot(path string, s *link.Setup) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(int64(s.CodeMiB)<<20), f.Close())
}

// imagesMax bounds the images of code that are kept; the one that was used longest ago goes first.
const imagesMax = 64

// images makes one read-only image of each package, once for all clones that get it.
type images struct {
	setup *link.Setup

	mu     sync.Mutex // guards making; never held while an image is made
	making map[string]chan struct{}
}

// image returns the image of a package, padded to the size of the slot: a disk must not change its size.
func (i *images) image(ctx context.Context, code string) (string, error) {
	info, err := os.Stat(code)
	if err != nil {
		return "", err
	}
	st := info.Sys().(*syscall.Stat_t)
	dir := filepath.Join(i.setup.Cache, "code")
	path := filepath.Join(dir, fmt.Sprintf("%x.erofs", sha256.Sum256(fmt.Appendf(nil, "%s %d %d %v", code, st.Dev, st.Ino, info.ModTime()))))
	for {
		now := time.Now()
		if err := os.Chtimes(path, now, now); err == nil {
			return path, nil
		}
		i.mu.Lock()
		wait := i.making[path]
		if wait == nil {
			i.making[path] = make(chan struct{})
		}
		i.mu.Unlock()
		if wait == nil {
			break
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	err = i.make(ctx, dir, path, code)
	i.mu.Lock()
	close(i.making[path])
	delete(i.making, path)
	i.mu.Unlock()
	return path, err
}

func (i *images) make(ctx context.Context, dir, path, code string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fresh, err := os.CreateTemp(dir, "new-*")
	if err != nil {
		return err
	}
	fresh.Close()
	defer os.Remove(fresh.Name())
	if out, err := exec.CommandContext(ctx, "mkfs.erofs", "--all-root", fresh.Name(), code).CombinedOutput(); err != nil {
		return fmt.Errorf("make image of code: %w: %s", err, out)
	}
	info, err := os.Stat(fresh.Name())
	if err != nil {
		return err
	}
	slot := int64(i.setup.CodeMiB) << 20
	if info.Size() > slot {
		return fmt.Errorf("the code's image has %d bytes, and the slot %d: make the package smaller", info.Size(), slot)
	}
	if err := os.Truncate(fresh.Name(), slot); err != nil {
		return err
	}
	i.forget(dir)
	return os.Rename(fresh.Name(), path)
}

// forget removes the images over the limit. A VM that has one open keeps it until it ends.
func (i *images) forget(dir string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "*.erofs"))
	if len(paths) < imagesMax {
		return
	}
	age := func(p string) time.Time {
		info, err := os.Stat(p)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	slices.SortFunc(paths, func(a, b string) int { return age(a).Compare(age(b)) })
	for _, p := range paths[:len(paths)-imagesMax+1] {
		_ = os.Remove(p)
	}
}

// monitorTime bounds one conversation with QEMU.
const monitorTime = 10 * time.Second

// putCode puts an image into the code slot of a VM: a new file under the disk that the guest has. The monitor is ours, beside
// Kata's.
func putCode(vm, image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(vm, shim.MonitorSocket)})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(monitorTime)); err != nil {
		return err
	}
	m := &monitor{in: json.NewDecoder(bufio.NewReader(conn)), out: conn}
	if err := m.in.Decode(&map[string]any{}); err != nil { // the greeting
		return err
	}
	type args map[string]any
	file := args{"driver": "file", "node-name": "image", "filename": "/dev/fdset/1", "read-only": true}
	disk := args{"driver": "raw", "node-name": shim.CodeNode, "read-only": true, "file": "image"}
	return errors.Join(
		m.do("qmp_capabilities", nil, nil),
		m.do("add-fd", args{"fdset-id": 1}, f), // QEMU may open no file of the cache, where others' code lies
		m.do("blockdev-add", file, nil),
		m.do("blockdev-reopen", args{"options": []args{disk}}, nil),
	)
}

// A monitor speaks QMP.
type monitor struct {
	in  *json.Decoder
	out *net.UnixConn
}

// do carries out one command; pass is a file that goes with it, or nil.
func (m *monitor) do(command string, arguments any, pass *os.File) error {
	q := map[string]any{"execute": command}
	if arguments != nil {
		q["arguments"] = arguments
	}
	text, err := json.Marshal(q)
	if err != nil {
		return err
	}
	var rights []byte
	if pass != nil {
		rights = syscall.UnixRights(int(pass.Fd()))
	}
	if _, _, err := m.out.WriteMsgUnix(text, rights, nil); err != nil {
		return err
	}
	for {
		var a struct {
			Return *json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := m.in.Decode(&a); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		if a.Error != nil {
			return fmt.Errorf("%s: %s", command, a.Error.Desc)
		}
		if a.Return != nil {
			return nil
		}
	}
}
