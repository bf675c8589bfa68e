package main

import (
	"bytes"
	"cmp"
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
	home  home
	dir   string // its sockets
	pid   int
	agent *agentConn
	cpu   float64 // CPUs of its function; 0 without code

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

// clonePaused makes a clone that does not run yet.
func (t *template) clonePaused(ctx context.Context) (*machine, error) {
	h, err := newHome(t.groups, t.setup)
	if err != nil {
		return nil, err
	}
	vm, err := t.factory.GetBaseVM(ctx, h.of(t.config))
	if err != nil {
		return nil, errors.Join(err, h.remove())
	}
	m, err := t.adopt(ctx, vm, h)
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
	h, err := newHome(t.groups, t.setup)
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
		a, err := t.wakeLoaded(beside, h.dir, name)
		waking <- woken{a, err}
	}()
	vm, err := t.factory.GetVM(ctx, h.of(config))
	if err != nil {
		stop()
		if w := <-waking; w.agent != nil {
			w.agent.Close()
		}
		return nil, errors.Join(err, h.remove())
	}
	m, err := t.adopt(ctx, vm, h)
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
func (t *template) adopt(ctx context.Context, vm *vc.VM, h home) (m *machine, err error) {
	m = &machine{t: t, vm: vm, pid: int(vm.GetVMStatus().Pid), home: h}
	if m.dir, err = dirOf(ctx, vm, h.of(t.config)); err != nil {
		return m, err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.pid))
	switch {
	case err != nil || len(line) == 0:
		return m, fmt.Errorf("the emulator of a clone has ended at once: process %d: %w", m.pid, cmp.Or(err, error(unix.ESRCH)))
	case !bytes.Contains(line, []byte("\x00-incoming\x00")):
		return m, fmt.Errorf("%w: %s", errBooted, bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
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

// attach gives the clone its code. The way out of the guest is opened while the host prepares the code: both take milliseconds.
func (m *machine) attach(ctx context.Context, disk *os.File, q *link.Message) (entrypoint string, err error) {
	out := make(chan error, 1)
	if q.Network {
		go func() { out <- m.agent.letOut(ctx) }()
	} else {
		out <- nil
	}
	err = m.specialise(ctx, disk, q)
	if err = errors.Join(err, <-out); err != nil || len(q.Argv) == 0 {
		return "", err
	}
	return m.agent.bootstrap(ctx, q.Argv, q.Env)
}

func (m *machine) specialise(ctx context.Context, disk *os.File, q *link.Message) error {
	if err := putCode(ctx, m.dir, disk); err != nil {
		return fmt.Errorf("put code into its slot: %w", err)
	}
	m.cpu = q.CPU
	if err := m.home.group.LimitCPU(max(1, m.cpu), 0); err != nil {
		return fmt.Errorf("limit CPU: %w", err)
	}
	return m.agent.specialise(ctx, q)
}

// settledWeight is the weight of a function after its start, in CPUs: that of a start, as in process sandboxes.
const settledWeight = 1

// small tells whether the function has less than a whole CPU after its start.
func (m *machine) small() bool { return m.cpu != 0 && m.cpu < 1 }

// settle ends the time in which a small function has a whole CPU.
func (m *machine) settle() error {
	if !m.small() {
		return nil
	}
	return m.home.group.LimitCPU(m.cpu, settledWeight)
}

// use returns what the function uses: its memory as the guest tells, the time of processors as the host counts it for the whole VM.
func (m *machine) use(ctx context.Context) (*link.Use, error) {
	u, err := m.agent.use(ctx)
	if err != nil {
		return nil, err
	}
	counted, err := m.home.group.Stats()
	if err != nil {
		return nil, err
	}
	u.CPU, u.PID = counted.CPU, m.pid
	return u, nil
}

func (m *machine) pause(ctx context.Context) error { return m.vm.Pause(ctx) }

// resume lets the guest run on, and sets its clock, which stood still: with a whole CPU, or what a small function may use could be
// spent before the clock is set.
func (m *machine) resume(ctx context.Context) error {
	if m.small() {
		if err := m.home.group.LimitCPU(1, 0); err != nil {
			return err
		}
	}
	if err := m.vm.Resume(ctx); err != nil {
		return err
	}
	return errors.Join(m.agent.setTime(ctx), m.settle())
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
			m.closeErr = m.home.remove()
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
		m.closeErr = m.home.remove()
	})
	return m.closeErr
}
