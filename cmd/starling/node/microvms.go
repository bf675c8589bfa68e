package node

import (
	"os"
	"path/filepath"
	"time"

	"starling"
	"starling/vmpool/kata"
	"starling/vmpool/process"
)

// vmCloneTime is how long a microVM may take to be ready: one that is emulated on a busy machine takes seconds.
const vmCloneTime = time.Minute

// microVMs makes the Kata driver with what it shares with the process driver.
func (n *Node) microVMs(base process.Config) (*kata.Driver, error) {
	cfg, err := vmConfig(n.cfg.KataImages)
	if err != nil {
		return nil, err
	}
	cfg.GuestPath, cfg.RuntimeDir, cfg.Command, cfg.Log = base.GuestPath, base.RuntimeDir, base.Command, base.Log
	cfg.Tag = "k-" + base.Tag
	if n.cfg.KataMemory > 0 {
		cfg.MemoryMiB = n.cfg.KataMemory + kata.ReserveMiB
	}
	return kata.New(cfg), cfg.Validate()
}

// FindMicroVMs returns the emulator of microVMs when all that they are made of is on this machine, and else says what is missing.
// images is as in Config.KataImages.
func FindMicroVMs(images string) (emulator string, err error) {
	cfg, err := vmConfig(images)
	if err != nil {
		return "", err
	}
	for _, path := range []string{cfg.QEMU, filepath.Join(cfg.Images, "kernel/vmlinuz")} {
		if _, err := os.Stat(path); err != nil {
			return "", starling.Errorf(starling.Invalid, "find microVMs", "%s is missing", path)
		}
	}
	return cfg.QEMU, nil
}

// vmConfig says where the things are that microVMs are made of.
func vmConfig(folder string) (kata.Config, error) {
	const op = "find microVMs"
	cfg := kata.DefaultConfig()
	self, err := os.Executable()
	if err != nil {
		return cfg, err
	}
	cfg.VMD = filepath.Join(filepath.Dir(self), "starling-vmd")
	if _, err := os.Stat(cfg.VMD); err != nil {
		return cfg, starling.Errorf(starling.Invalid, op, "starling-vmd is not at %s: put it beside the starling binary (\"make build\" makes both)", cfg.VMD)
	}
	cfg.Images, cfg.Cache, err = kata.DefaultImages()
	if folder != "" {
		cfg.Cache = filepath.Join(folder, "vm")
		cfg.Images, err = filepath.Abs(folder)
		if err == nil {
			cfg.Cache, err = filepath.Abs(cfg.Cache)
		}
	}
	if err != nil {
		return cfg, starling.Errorf(starling.Invalid, op, "no folder for guest images: name one with --kata-images: %w", err)
	}
	return cfg, nil
}
