package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	vc "github.com/kata-containers/kata-containers/src/runtime/virtcontainers"
	vf "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/factory"
	"golang.org/x/sys/unix"

	"starling/vmpool/kata/link"
	"starling/vmpool/kata/shim"
)

// Folders of this process, below its own /run.
const (
	vmDir    = "/run/vm"
	shimsDir = "/run/starling-shims"
)

// Files of a template, in a folder of the cache.
const (
	memoryFile = "memory"
	stateFile  = "state"
	bootFile   = "boot" // the identity of the boot that was saved
)

// bootMax bounds the boot of a template under software emulation on a busy machine.
const bootMax = 3 * time.Minute

// settleTime lets the guest's agent see that its caller hung up before the guest is saved.
const settleTime = 300 * time.Millisecond

// A template is what clones of one runtime are made from.
type template struct {
	setup   *link.Setup
	groups  *groups
	runtime string
	accel   string
	dir     string // in the cache
	boot    string
	config  vc.VMConfig
	factory vc.Factory
	built   time.Duration // 0 when it was there
}

// openTemplate fetches the template of a runtime from the cache, or builds it there. Of several processes one builds.
func openTemplate(ctx context.Context, s *link.Setup, g *groups, runtime, accel string) (*template, error) {
	t := &template{setup: s, groups: g, runtime: runtime, accel: accel}
	ramdisk, err := initrd(s, runtime)
	if err != nil {
		return nil, err
	}
	key, err := t.key(ramdisk)
	if err != nil {
		return nil, err
	}
	t.dir = filepath.Join(s.Cache, "templates", runtime+"-"+key)
	if err := os.MkdirAll(filepath.Dir(t.dir), 0o700); err != nil {
		return nil, err
	}
	unlock, err := lockFile(ctx, t.dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := t.prepare(ramdisk); err != nil {
		return nil, err
	}
	if boot, err := os.ReadFile(filepath.Join(t.dir, bootFile)); err == nil {
		t.boot = string(boot)
	} else if err := t.build(ctx); err != nil {
		return nil, fmt.Errorf("build template of %s: %w", runtime, err)
	}
	now := time.Now()
	_ = os.Chtimes(t.dir, now, now) // says when it was used last
	forgetOld(filepath.Dir(t.dir), now)
	t.factory, err = vf.NewFactory(ctx, vf.Config{Template: true, TemplatePath: t.dir, VMConfig: t.config}, true)
	return t, err
}

// key names what a saved state depends on: other devices, another kernel or another emulator cannot load it.
func (t *template) key(ramdisk []byte) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, t.accel, t.setup.MemoryMiB, t.setup.CodeMiB)
	h.Write(ramdisk)
	for _, path := range []string{t.kernel(), t.root(), t.setup.QEMU} {
		info, err := os.Stat(path)
		if err != nil {
			return "", fmt.Errorf("%w (make guest-images makes kernel and roots)", err)
		}
		fmt.Fprintln(h, path, info.Size(), info.ModTime().UnixNano())
	}
	probe, err := shim.Args(shim.Sample, "shim", t.accel)
	fmt.Fprintln(h, probe, kernelParams(t.accel))
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), err
}

func (t *template) kernel() string { return filepath.Join(t.setup.Images, "kernel/vmlinuz") }
func (t *template) root() string   { return filepath.Join(t.setup.Images, t.runtime+".erofs") }

// prepare lays out the shim and its files, and sets the configuration that template and clones share.
func (t *template) prepare(ramdisk []byte) error {
	dir := filepath.Join(shimsDir, t.runtime)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, to := range map[string]string{shim.Name: t.setup.Guest, shim.QEMUFile: t.setup.QEMU, shim.RootFile: t.root()} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := shim.Hollow(dir, t.setup.QEMU); err != nil {
		return fmt.Errorf("replace what %s does not use: %w", t.setup.QEMU, err)
	}
	if err := os.WriteFile(filepath.Join(dir, shim.AccelFile), []byte(t.accel), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, shim.GroupsFile), []byte(t.setup.Groups), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "initrd"), ramdisk, 0o600); err != nil {
		return err
	}
	if err := makeSlot(filepath.Join(dir, shim.CodeFile), t.setup); err != nil {
		return err
	}
	t.config = vc.VMConfig{
		HypervisorType: vc.QemuHypervisor,
		AgentConfig:    vc.KataAgentConfig{LongLiveConn: true},
		HypervisorConfig: vc.HypervisorConfig{
			KernelPath: t.kernel(), InitrdPath: filepath.Join(dir, "initrd"), HypervisorPath: filepath.Join(dir, shim.Name),
			KernelParams: kernelParams(t.accel), HypervisorMachineType: vc.QemuQ35, NumVCPUsF: 1, DefaultMaxVCPUs: 1,
			MemorySize: uint32(t.setup.MemoryMiB), MemSlots: 1, DefaultBridges: 1, BlockDeviceDriver: "virtio-blk",
			SharedFS: "none", DisableImageNvdimm: true, DisableNestingChecks: true, DisableVhostNet: true, DisableSeLinux: true,
			DisableGuestSeLinux: true, EntropySource: "/dev/urandom", VMStorePath: vmDir, RunStorePath: vmDir, SharedPath: vmDir + "/shared",
		},
	}
	return nil
}

// kernelParams returns what the guest's kernel is told. GODEBUG is the environment of its first process: when a clone wakes, that
// process seems to have run for long, and would be interrupted and asked for its processors.
func kernelParams(accel string) []vc.Param {
	p := []vc.Param{{Key: "quiet"}, {Key: "panic", Value: "-1"}, {Key: "audit", Value: "0"}, {Key: "random.trust_cpu", Value: "on"},
		{Key: "GODEBUG", Value: "asyncpreemptoff=1,updatemaxprocs=0"}}
	if accel == shim.TCG { // what an emulated processor speculates is nobody's secret
		p = append(p, vc.Param{Key: "mitigations", Value: "off"})
	}
	return p
}

// build boots a guest until its language runtime is ready, pauses it and saves it. Kata's own way waits for two seconds and
// hopes; and it would save what never became ready.
func (t *template) build(ctx context.Context) (err error) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, bootMax)
	defer cancel()
	fresh := t.dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	memory, err := os.OpenFile(filepath.Join(fresh, memoryFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	memory.Close()
	h, err := newHome(t.groups, t.setup)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.remove()) }() // after Stop
	config := h.of(t.config)
	config.HypervisorConfig.BootToBeTemplate = true
	config.HypervisorConfig.MemoryPath = filepath.Join(fresh, memoryFile)
	config.HypervisorConfig.DevicesStatePath = filepath.Join(fresh, stateFile)
	vm, err := vc.NewVM(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Stop(context.WithoutCancel(ctx))) }()
	if t.boot, err = t.awaitReady(ctx, vm, config); err != nil {
		return err
	}
	time.Sleep(settleTime)
	if err := errors.Join(vm.Disconnect(ctx), vm.Pause(ctx)); err != nil {
		return err
	}
	if err := vm.Save(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(fresh, bootFile), []byte(t.boot), 0o600); err != nil {
		return err
	}
	if err := os.RemoveAll(t.dir); err != nil {
		return err
	}
	if err := os.Rename(fresh, t.dir); err != nil {
		return err
	}
	t.built = time.Since(begun)
	return nil
}

// awaitReady waits until the agent of a guest that boots answers, which it does when its runtime is ready. It returns the
// identity of the boot.
func (t *template) awaitReady(ctx context.Context, vm *vc.VM, config vc.VMConfig) (string, error) {
	dir, err := dirOf(ctx, vm, config)
	if err != nil {
		return "", err
	}
	a, err := dialAgent(filepath.Join(dir, shim.AgentSocket))
	if err != nil {
		return "", err
	}
	defer a.Close()
	return bootOf(ctx, a)
}

// lockFile waits for the lock of path and returns what gives it back.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// templateAge is how long a template that nobody opens is kept.
const templateAge = 7 * 24 * time.Hour

// forgetOld removes templates that were not used for long. What runs on one keeps its files until it ends.
func forgetOld(dir string, now time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() && now.Sub(info.ModTime()) > templateAge {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// bootOf asks a guest for the identity of its boot.
func bootOf(ctx context.Context, a *agentConn) (string, error) {
	boot, err := a.version(ctx)
	if err == nil && boot == "" {
		err = errors.New("the guest does not say which boot it is from")
	}
	return boot, err
}
