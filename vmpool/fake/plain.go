package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"starling"
	"starling/vmpool"
	"starling/vmpool/framed"
	"starling/vmpool/runtimes"
)

// A Plain driver starts the shipped runtimes as plain processes of the test: real interpreters and real
// sockets, no isolation at all. Dir holds the runtime programs.
type Plain struct {
	Dir    string // written by runtimes.Write
	Python string // such as /usr/bin/python3
	Node   string // such as /usr/bin/node
}

var _ vmpool.Driver = (*Plain)(nil)

// Name is "plain".
func (p *Plain) Name() string { return "plain" }

// BuildTemplate checks that the interpreter exists.
func (p *Plain) BuildTemplate(_ context.Context, spec vmpool.TemplateSpec) (vmpool.Template, error) {
	argv := runtimes.Command(spec.Runtime, p.Dir, p.Python, p.Node)
	if spec.Runtime != starling.Provided {
		if _, err := exec.LookPath(argv[0]); err != nil {
			return nil, fmt.Errorf("find interpreter: %w", err)
		}
	}
	return &plainTemplate{p, spec.Runtime, argv}, nil
}

// Close does nothing: every sandbox is closed by whoever holds it.
func (p *Plain) Close() error { return nil }

type plainTemplate struct {
	p    *Plain
	rt   starling.Runtime
	argv []string
}

func (t *plainTemplate) Close() error { return nil }

// Clone starts the interpreter, or for provided only prepares a listener.
func (t *plainTemplate) Clone(context.Context) (vmpool.Sandbox, error) {
	s := &process{done: make(chan struct{})}
	var err error
	if s.outR, s.outW, err = os.Pipe(); err != nil {
		return nil, err
	}
	if s.errR, s.errW, err = os.Pipe(); err != nil {
		return nil, err
	}
	if t.rt == starling.Provided {
		s.ln, err = net.Listen("tcp", "127.0.0.1:0")
		return s, err
	}
	var theirs [2]int
	if s.channel, theirs, err = framed.Pipes(); err != nil {
		return nil, err
	}
	calls, answers := os.NewFile(uintptr(theirs[0]), "calls"), os.NewFile(uintptr(theirs[1]), "answers")
	defer calls.Close()
	defer answers.Close()
	return s, s.run(t.argv, []string{"PATH=/usr/bin:/bin"}, "/", calls, answers)
}

// process is one plain process.
type process struct {
	channel                net.Conn
	ln                     net.Listener
	outR, outW, errR, errW *os.File
	dir                    string
	wg                     sync.WaitGroup

	mu   sync.Mutex
	cmd  *exec.Cmd
	exit vmpool.Exit
	done chan struct{}
	once sync.Once
}

func (s *process) run(argv, env []string, dir string, inside ...*os.File) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = env, dir, s.outW, s.errW
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.ExtraFiles = inside
	if err := cmd.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	s.cmd = cmd
	s.mu.Unlock()
	s.outW.Close()
	s.errW.Close()
	s.wg.Go(func() {
		err := cmd.Wait()
		how := vmpool.Exit{Code: cmd.ProcessState.ExitCode()}
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			if ws, ok := ee.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
				how.Signal = ws.Signal().String()
			}
		}
		s.ended(how)
	})
	return nil
}

func (s *process) ended(how vmpool.Exit) {
	s.once.Do(func() {
		s.mu.Lock()
		s.exit = how
		s.mu.Unlock()
		close(s.done)
	})
}

// Root is where the code lies: there are no mounts.
func (s *process) Root() string { return s.dir }

// Attach remembers where the code is and, for provided, executes its bootstrap.
func (s *process) Attach(_ context.Context, code vmpool.Code) error {
	s.dir = code.Dir
	if s.ln == nil {
		return nil
	}
	var env []string
	for k, v := range code.Env {
		env = append(env, k+"="+v)
	}
	if err := s.run([]string{filepath.Join(code.Dir, "bootstrap")}, env, code.Dir, nil); err != nil {
		return starling.Errorf(starling.Failed, "attach code", "bootstrap cannot be executed: %w", err).With(starling.ErrEntrypoint)
	}
	return nil
}

func (s *process) Channel() net.Conn {
	if s.channel == nil {
		return nil
	}
	return s.channel
}

func (s *process) Listener() net.Listener {
	if s.ln == nil {
		return nil
	}
	return s.ln
}

func (s *process) Output() (stdout, stderr io.Reader) { return s.outR, s.errR }
func (s *process) Pause() error                       { return s.signal(syscall.SIGSTOP) }
func (s *process) Resume() error                      { return s.signal(syscall.SIGCONT) }
func (s *process) Done() <-chan struct{}              { return s.done }

func (s *process) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	return syscall.Kill(-s.cmd.Process.Pid, sig)
}

func (s *process) Stats() (vmpool.Stats, error) { return vmpool.Stats{Processes: 1}, nil }

func (s *process) Exit() vmpool.Exit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exit
}

// Close kills the process group and waits for its first process.
func (s *process) Close() error {
	select {
	case <-s.done:
	default:
		s.signal(syscall.SIGKILL)
	}
	s.mu.Lock()
	started := s.cmd != nil
	s.mu.Unlock()
	s.wg.Wait()
	if !started {
		s.outW.Close()
		s.errW.Close()
		s.ended(vmpool.Exit{Code: -1, Signal: "killed"})
	}
	s.outR.Close()
	s.errR.Close()
	if s.channel != nil {
		s.channel.Close()
	}
	if s.ln != nil {
		s.ln.Close()
	}
	return nil
}
