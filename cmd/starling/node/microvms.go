package node

import (
	"os"
	"path/filepath"
	"time"

	vm "github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/vmpool"
	"starling/vmpool/kata"
	"starling/vmpool/process"
)

// DriverProcess and DriverKata are the values of --driver.
const (
	DriverProcess = "process"
	DriverKata    = "kata"
)

// sandboxDriver is a driver that has numbers.
type sandboxDriver interface {
	vmpool.Driver
	Metrics() *vm.Set
}

// cloneTime is how long a clone may take to be ready. A microVM that is emulated on a busy machine takes seconds.
func (n *Node) cloneTime() time.Duration {
	if n.cfg.Driver == DriverKata {
		return time.Minute
	}
	return 0 // the pool's own
}

// microVMs makes the Kata driver with what it shares with the process driver.
func (n *Node) microVMs(base process.Config) (*kata.Driver, error) {
	cfg := kata.DefaultConfig()
	cfg.GuestPath, cfg.RuntimeDir, cfg.Command, cfg.Log = base.GuestPath, base.RuntimeDir, base.Command, base.Log
	var err error
	if cfg.VMD, err = n.cfg.vmd(); err != nil {
		return nil, err
	}
	images, cache, err := kata.DefaultImages()
	if err != nil && n.cfg.KataImages == "" {
		return nil, starling.Errorf(starling.Invalid, "open host", "no folder for guest images: name one with --kata-images: %w", err)
	}
	if n.cfg.KataImages != "" {
		images = n.cfg.KataImages
		cache = filepath.Join(images, "vm")
	}
	if cfg.Images, err = filepath.Abs(images); err != nil {
		return nil, err
	}
	if cfg.Cache, err = filepath.Abs(cache); err != nil {
		return nil, err
	}
	if n.cfg.KataMemory > 0 {
		cfg.MemoryMiB = n.cfg.KataMemory + kata.ReserveMiB
	}
	return kata.New(cfg), cfg.Validate()
}

// vmd returns the path of starling-vmd, which lies beside this binary.
func (c Config) vmd() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "starling-vmd")
	if _, err := os.Stat(path); err != nil {
		return "", starling.Errorf(starling.Invalid, "open host", "starling-vmd is not at %s: put it beside the starling binary (\"make build\" makes both): %w", path, err)
	}
	return path, nil
}
