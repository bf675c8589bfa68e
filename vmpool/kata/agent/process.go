package agent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"starling/vmpool/kata/relay"
)

// guest is what there is of the sandbox inside its microVM. Its goroutines end with the kernel.
type guest struct {
	cfg      Config
	code     string       // device of the code slot
	listener net.Listener // of the Runtime API; nil for shipped runtimes
	exit     *exit
	stdout   [2]*os.File // read and write ends
	stderr   [2]*os.File
	calls    *os.File // to the runtime
	answers  *os.File // from the runtime

	// What a clone is asked first is open or known already: under emulation each new step in the kernel costs it a millisecond.
	boot                        []byte   // identity of the boot
	random, hostname, machineID *os.File // hostname and machineID are empty in the template

	mu      sync.Mutex // guards what follows; a leaf
	fresh   uint8
	running bool
	relay   *relay.Relay // once the node is connected

	connected chan struct{} // closed when there is a relay

	exited chan struct{}
	status uint32 // written before exited is closed
}

// OutOfMemory in the status of WaitProcess says that the memory limit ended the process; the rest is its wait status.
const OutOfMemory = 1 << 24

// templateTime is the clock of a template. It is far behind every clone's, so that whoever seeds anew when time has passed,
// such as the generator of OpenSSL, does so in each clone.
var templateTime = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)

func newGuest(cfg Config) (*guest, error) {
	g := &guest{cfg: cfg, connected: make(chan struct{}), exited: make(chan struct{}), exit: newExit()}
	var err error
	if g.code, err = disk(CodeDisk); err != nil {
		return nil, err
	}
	if g.boot, err = os.ReadFile("/proc/sys/kernel/random/boot_id"); err != nil {
		return nil, err
	}
	g.boot = bytes.TrimSpace(g.boot)
	for path, f := range map[string]**os.File{"/dev/urandom": &g.random, newRoot + "/run/hostname": &g.hostname, newRoot + "/run/machine-id": &g.machineID} {
		if *f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644); err != nil {
			return nil, err
		}
	}
	if g.listener, err = listen(cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen for the Runtime API: %w", err)
	}
	for _, p := range []*[2]*os.File{&g.stdout, &g.stderr} {
		if *p, err = pipe(); err != nil {
			return nil, err
		}
	}
	for what, n := range map[int]uint64{syscall.RLIMIT_NOFILE: cfg.Files, syscall.RLIMIT_CORE: 0} {
		if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			return nil, fmt.Errorf("limit resources: %w", err)
		}
	}
	old := unix.NsecToTimeval(templateTime.UnixNano())
	return g, unix.Settimeofday(&old)
}

// pipe returns the read and write end of a pipe; both block, as the runtimes ask.
func pipe() (p [2]*os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return p, err
	}
	return [2]*os.File{os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe")}, nil
}

// startRuntime starts the language runtime and returns when it said that it is ready; what it said stays in its pipe.
func (g *guest) startRuntime() error {
	calls, err := pipe()
	if err != nil {
		return err
	}
	answers, err := pipe()
	if err != nil {
		return err
	}
	g.calls, g.answers = calls[1], answers[0]
	if err := g.start(g.cfg.Argv, g.cfg.Env, "/", calls[0], answers[1]); err != nil {
		return fmt.Errorf("start %s: %w", g.cfg.Argv[0], err)
	}
	calls[0].Close()
	answers[1].Close()
	ready := []unix.PollFd{{Fd: int32(g.answers.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(ready, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case ready[0].Revents&unix.POLLIN == 0:
			said := make([]byte, 4096)
			unix.SetNonblock(int(g.stderr[0].Fd()), true)
			n, _ := unix.Read(int(g.stderr[0].Fd()), said)
			return fmt.Errorf("%s ended before it was ready: %s", g.cfg.Argv[0], said[:max(n, 0)])
		}
		return nil
	}
}

// start starts the function's process in its root, as its user, in its cgroup.
func (g *guest) start(argv, env []string, dir string, extra ...*os.File) error {
	in, err := os.Open(group)
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := &exec.Cmd{Path: argv[0], Args: argv, Env: env, Dir: dir, Stdout: g.stdout[1], Stderr: g.stderr[1], ExtraFiles: extra}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: newRoot, Setsid: true, UseCgroupFD: true, CgroupFD: int(in.Fd()),
		Credential: &syscall.Credential{Uid: User, Gid: User}}
	g.mu.Lock()
	twice := g.running
	g.running = true
	g.mu.Unlock()
	if twice {
		return errors.New("the guest has its process: it never gets a second")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	g.stdout[1].Close()
	g.stderr[1].Close()
	go g.await(cmd)
	return nil
}

// lastWords bounds the sending of what a function printed before it ended.
const lastWords = 500 * time.Millisecond

// await notes the end of the function's process, ends what it left, and tells nobody before what it printed is sent: the VM
// ends with that.
func (g *guest) await(cmd *exec.Cmd) {
	cmd.Wait() // what it returns is in ProcessState
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
		g.status = uint32(s)
	}
	if n, err := groupNumber("memory.events", "oom_kill"); err == nil && n > 0 {
		g.status |= OutOfMemory
	}
	os.WriteFile(group+"/cgroup.kill", []byte("1"), 0) // kernels without it end them with the guest
	g.mu.Lock()
	r := g.relay
	g.mu.Unlock()
	if r != nil {
		r.Drain(lastWords)
	}
	close(g.exited)
}

// exec starts the bootstrap of a provided function.
func (g *guest) exec(in []byte) ([]byte, error) {
	var argv, env []string
	var dir string
	err := within(in, []protowire.Number{4}, func(v value) {
		fields(v.bytes, func(n protowire.Number, v value) {
			switch n {
			case 4:
				argv = append(argv, string(v.bytes))
			case 5:
				env = append(env, string(v.bytes))
			case 6:
				dir = string(v.bytes)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	if err := g.mayHaveCode(); err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		return nil, refuse(invalidArgument, "no program")
	}
	if _, err := os.Lstat(newRoot + argv[0]); errors.Is(err, os.ErrNotExist) { // a layer may have it
		if _, err := os.Lstat(layerRoot + "/bootstrap"); err == nil {
			argv = append([]string{LayerPoint + "/bootstrap"}, argv[1:]...)
		}
	}
	if err := g.start(argv, env, dir); err != nil {
		return nil, refuse(invalidArgument, "%v", err)
	}
	return nil, nil
}

// wait returns when the function's process ended.
func (g *guest) wait([]byte) ([]byte, error) {
	<-g.exited
	return appendNumber(nil, 1, uint64(g.status)), nil
}

// serveStreams carries the sandbox's streams for the one node that connects. When it hangs up, the sandbox is over.
func (g *guest) serveStreams(p *port) {
	if err := p.waitConnected(); err != nil {
		Halt(err)
	}
	r := relay.New(p, relay.Config{First: []uint16{relay.Stdout, relay.Stderr}, Datagram: g.exit.answer})
	err := errors.Join(r.Join(relay.Stdout, g.stdout[0], nil), r.Join(relay.Stderr, g.stderr[0], nil))
	if g.answers != nil {
		err = errors.Join(err, r.Join(relay.Calls, g.answers, g.calls))
	}
	if err != nil {
		Halt(err)
	}
	g.mu.Lock()
	g.relay = r
	g.mu.Unlock()
	close(g.connected)
	if g.listener != nil {
		go g.accept(r)
	}
	Halt(fmt.Errorf("the node hung up: %v", r.Run()))
}

// accept makes each connection to the Runtime API a stream.
func (g *guest) accept(r *relay.Relay) {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			return
		}
		f, err := c.(*net.TCPConn).File()
		c.Close()
		if err == nil {
			err = r.Open(f)
		}
		if err != nil {
			fmt.Println("starling-guest: runtime api:", err)
		}
	}
}
