package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"starling/vmpool/kata/link"
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

// open opens the image of a package, or of a package and its layers.
func (i *images) open(ctx context.Context, code string, layers []string) (*os.File, error) {
	path, err := i.image(ctx, code, layers)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

// image returns the image of a package, or of a package and its layers, padded to the size of the slot: a disk must not change its size.
func (i *images) image(ctx context.Context, code string, layers []string) (string, error) {
	key := sha256.New()
	for _, folder := range append([]string{code}, layers...) {
		info, err := os.Stat(folder)
		if err != nil {
			return "", err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(key, "%q %d %d %v\n", folder, st.Dev, st.Ino, info.ModTime())
	}
	dir := filepath.Join(i.setup.Cache, "code")
	path := filepath.Join(dir, fmt.Sprintf("%x.erofs", key.Sum(nil)))
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
	err := i.make(ctx, dir, path, code, layers)
	i.mu.Lock()
	close(i.making[path])
	delete(i.making, path)
	i.mu.Unlock()
	return path, err
}

func (i *images) make(ctx context.Context, dir, path, code string, layers []string) error {
	if len(layers) > 0 {
		both, done, err := lay(code, layers)
		if err != nil {
			return err
		}
		defer done()
		code = both
	}
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
