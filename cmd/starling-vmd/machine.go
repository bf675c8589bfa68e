package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	vc "github.com/kata-containers/kata-containers/src/runtime/virtcontainers"
	"golang.org/x/sys/unix"

	"starling/vmpool/kata/link"
	"starling/vmpool/kata/shim"
)

// A machine is one clone.
type machine struct {
	t     *template
	vm    *vc.VM
	home  string // holds dir only
	dir   string // its sockets
	pid   int
	agent *agentConn

	closing  sync.Once
	closeErr error
}

// dirOf returns the folder of a VM, which Kata names by an id of its own.
func dirOf(ctx context.Context, vm *vc.VM, config vc.VMConfig) (string, error) {
	g, err := vm.ToGrpc(ctx, config)
	if err != nil {
		return "", err
	}
	return filepath.Join(config.HypervisorConfig.VMStorePath, g.Id), nil
}

// housed returns config with a folder of its own for the VM, so that it can be found before Kata tells its name.
func housed(config vc.VMConfig) (vc.VMConfig, string, error) {
	home, err := os.MkdirTemp(vmDir, "")
	config.HypervisorConfig.VMStorePath, config.HypervisorConfig.RunStorePath = home, home
	return config, home, err
}

// clonePaused makes a clone that does not run yet.
func (t *template) clonePaused(ctx context.Context) (*machine, error) {
	config, home, err := housed(t.config)
	if err != nil {
		return nil, err
	}
	vm, err := t.factory.GetBaseVM(ctx, config)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(home))
	}
	m, err := t.adopt(ctx, vm, config)
	if err == nil {
		m.agent, err = dialAgent(filepath.Join(m.dir, shim.AgentSocket))
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// clone makes a clone that runs and is awake.
func (t *template) clone(ctx context.Context, name string) (*machine, error) {
	return t.cloneAs(ctx, t.config, name)
}

// cloneAs is clone with a configuration that should be the template's. With any other Kata's factory boots a guest from
// nothing instead, in a hundred times the time, and says so only in its log.
//
// Kata looks every 100 ms whether the state is loaded. Nobody waits for that: the guest is started and woken from beside.
func (t *template) cloneAs(ctx context.Context, config vc.VMConfig, name string) (*machine, error) {
	config, home, err := housed(config)
	if err != nil {
		return nil, err
	}
	type woken struct {
		agent *agentConn
		err   error
	}
	beside, stop := context.WithCancel(ctx)
	defer stop()
	waking := make(chan woken, 1)
	go func() {
		a, err := t.wakeLoaded(beside, home, name)
		waking <- woken{a, err}
	}()
	vm, err := t.factory.GetVM(ctx, config)
	if err != nil {
		stop()
		if w := <-waking; w.agent != nil {
			w.agent.Close()
		}
		return nil, errors.Join(err, os.RemoveAll(home))
	}
	m, err := t.adopt(ctx, vm, config)
	if err != nil {
		stop()
	}
	w := <-waking
	m.agent = w.agent
	if err == nil {
		err = w.err
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// wakeLoaded lets the one VM of home run as soon as its state is loaded, and wakes it.
func (t *template) wakeLoaded(ctx context.Context, home, name string) (*agentConn, error) {
	dir, err := soon(ctx, func() (string, error) {
		vms, err := os.ReadDir(home)
		if err == nil && len(vms) == 0 {
			err = os.ErrNotExist
		}
		if err != nil {
			return "", err
		}
		return filepath.Join(home, vms[0].Name()), nil
	})
	if err != nil {
		return nil, err
	}
	m, err := soon(ctx, func() (*monitor, error) { return openMonitor(ctx, dir) })
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.runLoaded(ctx); err != nil {
		return nil, err
	}
	a, err := dialAgent(filepath.Join(dir, shim.AgentSocket))
	if err != nil {
		return nil, err
	}
	if err := t.wake(ctx, a, name); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// errBooted is what a VM is refused with that was booted instead of cloned.
var errBooted = errors.New("Kata booted a guest instead of cloning the template")

// adopt makes a VM of the factory a machine, which is the caller's to close also when it is no clone.
func (t *template) adopt(ctx context.Context, vm *vc.VM, config vc.VMConfig) (m *machine, err error) {
	m = &machine{t: t, vm: vm, pid: int(vm.GetVMStatus().Pid), home: config.HypervisorConfig.VMStorePath}
	if m.dir, err = dirOf(ctx, vm, config); err != nil {
		return m, err
	}
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.pid)); err != nil || !bytes.Contains(line, []byte("\x00-incoming\x00")) {
		return m, errors.Join(errBooted, err)
	}
	return m, nil
}

// wake makes a clone a guest of its own: it comes from our template's boot, and has fresh randomness, the time and a name.
func (t *template) wake(ctx context.Context, a *agentConn, name string) error {
	boot, err := bootOf(ctx, a)
	if err != nil {
		return err
	}
	if boot != t.boot {
		return fmt.Errorf("%w: it is from boot %s, the template from %s", errBooted, boot, t.boot)
	}
	return a.renew(ctx, name)
}

// stream connects to the guest's streams and returns the descriptor, which belongs to the caller.
func (m *machine) stream() (*os.File, error) {
	c, err := net.Dial("unix", filepath.Join(m.dir, shim.StreamSocket))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*net.UnixConn).File()
}

// attach gives the clone its code.
func (m *machine) attach(ctx context.Context, image string, q *link.Message) (entrypoint string, err error) {
	if err := putCode(ctx, m.dir, image); err != nil {
		return "", fmt.Errorf("put code into its slot: %w", err)
	}
	if err := m.agent.specialise(ctx, q.MemoryBytes); err != nil {
		return "", err
	}
	if len(q.Argv) == 0 {
		return "", nil
	}
	return m.agent.bootstrap(ctx, q.Argv, q.Env)
}

func (m *machine) pause(ctx context.Context) error { return m.vm.Pause(ctx) }

// resume lets the guest run on, and sets its clock, which stood still.
func (m *machine) resume(ctx context.Context) error {
	if err := m.vm.Resume(ctx); err != nil {
		return err
	}
	return m.agent.setTime(ctx)
}

// await returns when the function or its VM ended.
func (m *machine) await(ctx context.Context) (status unix.WaitStatus, outOfMemory bool) {
	status, outOfMemory, err := m.agent.wait(ctx)
	if err != nil { // the guest is gone, whatever ended it
		return unix.WaitStatus(unix.SIGKILL), false
	}
	return status, outOfMemory
}

// endTime bounds the wait for a killed QEMU.
const endTime = 5 * time.Second

// close ends the VM and waits until its process is gone.
func (m *machine) close() error {
	m.closing.Do(func() {
		if m.agent != nil {
			m.agent.Close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), endTime)
		defer cancel()
		fd, err := unix.PidfdOpen(m.pid, 0)
		if err != nil { // it is gone already; Kata would ask its monitor in vain
			m.closeErr = os.RemoveAll(m.home)
			return
		}
		defer unix.Close(fd)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			m.closeErr = err
			return
		}
		gone := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(gone, int(endTime.Milliseconds())); n == 0 {
			m.closeErr = errors.Join(errors.New("QEMU did not end"), err)
			return
		}
		_ = m.vm.Disconnect(ctx)
		m.closeErr = os.RemoveAll(m.home)
	})
	return m.closeErr
}
