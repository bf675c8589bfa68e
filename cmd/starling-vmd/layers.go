package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"starling/vmpool/kata/agent"
)

// lay shows a package and its layers, the later over the earlier, side by side in one folder, of which an image is made. The folder
// and its mounts are in this process's own namespace and gone with done, or with the process.
func lay(code string, layers []string) (both string, done func(), err error) {
	if both, err = os.MkdirTemp("/run", "layers-*"); err != nil {
		return "", nil, err
	}
	task, opt, empty := filepath.Join(both, "image", agent.CodeFolder), filepath.Join(both, "image", agent.LayerFolder), filepath.Join(both, "empty")
	done = func() {
		_ = unix.Unmount(task, unix.MNT_DETACH) // it may not be mounted
		_ = unix.Unmount(opt, unix.MNT_DETACH)
		for _, dir := range []string{task, opt, empty, filepath.Dir(task), both} {
			_ = os.Remove(dir) // never what lies below: a mount that stayed would lose its files
		}
	}
	for _, dir := range []string{task, opt, empty} {
		if err == nil {
			err = os.MkdirAll(dir, 0o755)
		}
	}
	if err == nil {
		err = unix.Mount(code, task, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = unix.Mount("layers", opt, "overlay", unix.MS_RDONLY, "lowerdir="+lowerOf(layers, empty))
	}
	if err != nil {
		done()
		return "", nil, fmt.Errorf("lay layers over each other: %w", err)
	}
	return filepath.Dir(task), done, nil
}

// lowerOf is what an overlay is told of the layers, the topmost first. It asks for two at least; empty is the second of one.
func lowerOf(layers []string, empty string) string {
	all := append([]string{empty}, layers...)
	slices.Reverse(all)
	quote := strings.NewReplacer(`\`, `\\`, `:`, `\:`, `,`, `\,`)
	for i := range all {
		all[i] = quote.Replace(all[i])
	}
	return strings.Join(all, ":")
}
