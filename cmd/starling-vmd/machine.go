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
	return filepath.Join(vmDir, g.Id), nil
}

// clonePaused makes a clone that does not run yet.
func (t *template) clonePaused(ctx context.Context) (*machine, error) {
	vm, err := t.factory.GetBaseVM(ctx, t.config)
	if err != nil {
		return nil, err
	}
	return t.adopt(ctx, vm)
}

// clone makes a clone that runs.
func (t *template) clone(ctx context.Context) (*machine, error) { return t.cloneAs(ctx, t.config) }

// cloneAs is clone with a configuration that should be the template's. With any other Kata's factory boots a guest from
// nothing instead, in a hundred times the time, and says so only in its log.
func (t *template) cloneAs(ctx context.Context, config vc.VMConfig) (*machine, error) {
	vm, err := t.factory.GetVM(ctx, config)
	if err != nil {
		return nil, err
	}
	return t.adopt(ctx, vm)
}

// errBooted is what a VM is refused with that was booted instead of cloned.
var errBooted = errors.New("Kata booted a guest instead of cloning the template")

// adopt checks that a VM of the factory is a clone and makes it a machine. It ends the VM when it is not.
func (t *template) adopt(ctx context.Context, vm *vc.VM) (*machine, error) {
	m := &machine{t: t, vm: vm, pid: int(vm.GetVMStatus().Pid)}
	err := func() (err error) {
		if m.dir, err = dirOf(ctx, vm, t.config); err != nil {
			return err
		}
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.pid)); err != nil || !bytes.Contains(line, []byte("\x00-incoming\x00")) {
			return errors.Join(errBooted, err)
		}
		m.agent, err = dialAgent(filepath.Join(m.dir, shim.AgentSocket))
		return err
	}()
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// wake makes the clone a guest of its own: it comes from our template's boot, and has fresh randomness, the time and a name.
func (m *machine) wake(ctx context.Context, name string) error {
	boot, err := bootOf(ctx, m.agent)
	if err != nil {
		return err
	}
	if boot != m.t.boot {
		return fmt.Errorf("%w: it is from boot %s, the template from %s", errBooted, boot, m.t.boot)
	}
	return m.agent.renew(ctx, name)
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
	if err := putCode(m.dir, image); err != nil {
		return "", fmt.Errorf("put code into its slot: %w", err)
	}
	if err := m.agent.specialise(ctx, q.MemoryBytes, len(q.Layers) > 0); err != nil {
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
			m.closeErr = os.RemoveAll(m.dir)
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
		m.closeErr = os.RemoveAll(m.dir)
	})
	return m.closeErr
}
