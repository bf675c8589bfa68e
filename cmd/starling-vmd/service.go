package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	vc "github.com/kata-containers/kata-containers/src/runtime/virtcontainers"
	vf "github.com/kata-containers/kata-containers/src/runtime/virtcontainers/factory"
	"github.com/sirupsen/logrus"

	"starling/vmpool/kata/link"
)

// service answers one node. It has a goroutine for each question under way, one for each clone, and one that keeps paused
// clones for each template; run waits for all of them.
type service struct {
	conn *link.Conn
	ctx  context.Context // Kata finds its agent in it; ends with run
	stop context.CancelFunc
	wg   sync.WaitGroup

	setup  *link.Setup
	groups *groups
	images *images
	accel  string

	mu        sync.Mutex // guards what follows; a leaf
	machines  map[uint64]*machine
	templates map[string]*shelf
}

func newService(conn *link.Conn) *service {
	// Kata's own agent check needs a vsock device, and its client another agent: ours is asked by us.
	ctx, stop := context.WithCancel(vc.WithNewAgentFunc(context.Background(), vc.NewMockAgent))
	logs := logrus.New()
	logs.SetOutput(io.Discard)
	if os.Getenv("STARLING_VMD_DEBUG") != "" {
		logs.SetOutput(os.Stderr)
		logs.SetLevel(logrus.DebugLevel)
	}
	logrus.SetOutput(io.Discard)
	vc.SetLogger(ctx, logrus.NewEntry(logs))
	vf.SetLogger(ctx, logrus.NewEntry(logs))
	return &service{conn: conn, ctx: ctx, stop: stop, machines: map[uint64]*machine{}, templates: map[string]*shelf{}}
}

// run answers until the node hangs up, and then ends every VM.
func (s *service) run() error {
	for {
		q, fd, err := s.conn.Receive()
		if err != nil {
			break
		}
		var disk *os.File
		if fd >= 0 {
			disk = os.NewFile(uintptr(fd), "disk")
		}
		s.wg.Go(func() { s.answer(q, disk) })
	}
	s.stop()
	s.mu.Lock()
	machines := s.machines
	s.machines = nil
	s.mu.Unlock()
	var errs []error
	var ending sync.WaitGroup
	var mu sync.Mutex
	for _, m := range machines {
		if m == nil {
			continue
		}
		ending.Go(func() {
			err := m.close()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	ending.Wait()
	s.wg.Wait()
	if s.groups != nil {
		errs = append(errs, s.groups.close())
	}
	return errors.Join(errs...)
}

// answer carries out one question and sends its answer. disk is what came with the question; nil for nothing.
func (s *service) answer(q *link.Message, disk *os.File) {
	if disk != nil {
		defer disk.Close()
	}
	a := &link.Message{Op: q.Op, Seq: q.Seq, VM: q.VM}
	fd, err := s.do(q, a, disk)
	if err != nil {
		a.Error = err.Error()
	}
	n := -1
	if fd != nil {
		defer fd.Close()
		n = int(fd.Fd())
	}
	s.conn.Send(a, n) // an error is also the end of run
}

func (s *service) do(q, a *link.Message, disk *os.File) (fd *os.File, err error) {
	switch q.Op {
	case link.Open:
		return nil, s.open(q.Setup, a)
	case link.Template:
		t, err := s.template(q.Runtime)
		if err == nil {
			a.Built = t.template.built
		}
		return nil, err
	case link.Clone:
		return s.clone(q)
	}
	m := s.machine(q.VM)
	if m == nil {
		if q.Op == link.Kill {
			s.forget(q.VM) // a clone under way finds its place taken away
			return nil, nil
		}
		return nil, fmt.Errorf("there is no VM %d", q.VM)
	}
	switch q.Op {
	case link.Attach:
		if disk == nil {
			if disk, err = s.images.open(s.ctx, q.Code, q.Layers); err != nil {
				return nil, err
			}
			defer disk.Close()
		}
		a.Entrypoint, err = m.attach(s.ctx, disk, q)
		return nil, err
	case link.Pause:
		return nil, m.pause(s.ctx)
	case link.Resume:
		return nil, m.resume(s.ctx)
	case link.Stats:
		a.Use, err = m.use(s.ctx)
		return nil, err
	case link.Settle:
		return nil, m.settle()
	case link.Kill:
		return nil, m.close()
	}
	return nil, fmt.Errorf("question %d is not known", q.Op)
}

// open takes the setup and finds out what runs VMs here.
func (s *service) open(setup *link.Setup, a *link.Message) (err error) {
	if setup == nil {
		return errors.New("no setup")
	}
	if err := os.MkdirAll(vmDir, 0o700); err != nil {
		return err
	}
	accel, why, err := probe(s.ctx, setup)
	if err != nil {
		return err
	}
	g, err := openGroups(setup.Groups)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.setup, s.groups, s.accel, s.images = setup, g, accel, &images{setup: setup, making: map[string]chan struct{}{}}
	s.mu.Unlock()
	a.Accel, a.Why = accel, why
	return nil
}

// template returns the shelf of a runtime, opening it the first time.
func (s *service) template(runtime string) (*shelf, error) {
	s.mu.Lock()
	sh := s.templates[runtime]
	if sh == nil {
		sh = &shelf{}
		s.templates[runtime] = sh
	}
	setup, groups, accel := s.setup, s.groups, s.accel
	s.mu.Unlock()
	if setup == nil {
		return nil, errors.New("not open")
	}
	sh.opening.Lock()
	defer sh.opening.Unlock()
	if sh.template != nil {
		return sh, nil
	}
	t, err := openTemplate(s.ctx, setup, groups, runtime, accel)
	if err != nil {
		return nil, err
	}
	sh.template, sh.stock = t, make(chan *machine)
	for range setup.Paused {
		s.wg.Go(func() { sh.keep(s.ctx) })
	}
	return sh, nil
}

// clone makes a VM the node's and returns its stream.
func (s *service) clone(q *link.Message) (*os.File, error) {
	sh, err := s.template(q.Runtime)
	if err != nil {
		return nil, err
	}
	if !s.reserve(q.VM) {
		return nil, errGivenUp
	}
	m, err := sh.take(s.ctx, fmt.Sprintf("starling-%d", q.VM))
	if err != nil {
		s.forget(q.VM)
		return nil, err
	}
	s.mu.Lock()
	_, wanted := s.machines[q.VM]
	if wanted {
		s.machines[q.VM] = m
	}
	s.mu.Unlock()
	if !wanted {
		return nil, errors.Join(errGivenUp, m.close())
	}
	f, err := m.stream()
	if err != nil {
		s.forget(q.VM)
		return nil, errors.Join(err, m.close())
	}
	s.wg.Go(func() { s.await(q.VM, m) })
	return f, nil
}

// errGivenUp ends a clone that nobody waits for any more.
var errGivenUp = errors.New("the clone was given up")

// reserve holds a place for a clone under way, which Kill takes away; false when everything is ending.
func (s *service) reserve(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.machines != nil {
		s.machines[id] = nil
	}
	return s.machines != nil
}

// await tells the node of the end of a function or of its VM.
func (s *service) await(id uint64, m *machine) {
	status, oom := m.await(s.ctx)
	s.forget(id)
	note := &link.Message{Op: link.Exit, VM: id, Status: status, OutOfMemory: oom}
	if err := m.close(); err != nil {
		note.Error = err.Error()
	}
	s.conn.Send(note, -1) // an error is also the end of run
}

func (s *service) machine(id uint64) *machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machines[id]
}

func (s *service) forget(id uint64) {
	s.mu.Lock()
	delete(s.machines, id)
	s.mu.Unlock()
}

// A shelf is a template and the clones of it that wait, paused.
type shelf struct {
	opening  sync.Mutex // held while the template is opened
	template *template
	stock    chan *machine // unbuffered: each keeper holds one
}

// keepPause is between tries to make a clone that nobody waits for.
const keepPause = 5 * time.Second

// keep holds one paused clone until it is taken, again and again.
func (sh *shelf) keep(ctx context.Context) {
	for ctx.Err() == nil {
		m, err := sh.template.clonePaused(ctx)
		if err != nil { // takers make their own meanwhile, and are told why that fails
			select {
			case <-time.After(keepPause):
			case <-ctx.Done():
			}
			continue
		}
		select {
		case sh.stock <- m:
		case <-ctx.Done():
			m.close()
		}
	}
}

// take returns a clone that runs and is awake: a paused one, or a new one when there is none.
func (sh *shelf) take(ctx context.Context, name string) (*machine, error) {
	select {
	case m := <-sh.stock:
		err := m.vm.Resume(ctx)
		if err == nil {
			err = sh.template.wake(ctx, m.agent, name)
		}
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		return m, nil
	default:
		return sh.template.clone(ctx, name)
	}
}
