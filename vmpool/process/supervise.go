package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"starling"
	"starling/internal/packet"
	"starling/vmpool"
	"starling/vmpool/process/link"
	"starling/vmpool/process/ward"
)

// A life is one warden process and what was asked of it.
type life struct {
	conn  *link.Conn
	lanes chan *link.Conn // free ones; closed with the life

	mu      sync.Mutex // a leaf
	pending map[key]chan reply
	over    bool
}

// A key names one question: there is at most one of each kind about a sandbox at a time.
type key struct {
	op link.Op
	id uint64
}

type reply struct {
	m   *link.Message
	fds []int
	err error
}

var errWardenGone = errors.New("the warden ended; a new one is started")

// supervise keeps a warden running until the driver closes. It is locked to its thread for its whole life: a warden
// is told to go when the thread that started it ends, and it must outlive every other thread of the node.
func (d *Driver) supervise(first chan<- error) {
	runtime.LockOSThread()
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		began := time.Now()
		ready, err := d.runWarden(func() {
			if first != nil {
				first <- nil
				first = nil
			}
		})
		if first != nil {
			first <- err
			return
		}
		if d.ctx.Err() != nil {
			return
		}
		d.m.wardenRestarts.Inc()
		d.cfg.Log.Error("warden ended, its sandboxes with it; starting another", "err", err)
		if ready && time.Since(began) > time.Minute {
			pause = 10 * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-d.ctx.Done():
			return
		}
	}
}

// runWarden starts one warden, serves its link and waits for its end, which the end of the driver brings about.
func (d *Driver) runWarden(onReady func()) (ready bool, err error) {
	l, cmd, err := d.startWarden()
	if err != nil {
		return false, fmt.Errorf("start warden %s: %w", d.cfg.GuestPath, err)
	}
	conn := l.conn
	defer l.closeLanes()
	defer conn.Close()
	l.pending[key{link.Open, 0}] = make(chan reply, 1)
	answer := l.pending[key{link.Open, 0}]
	var reader sync.WaitGroup
	reader.Go(func() { d.read(l) })
	stop := context.AfterFunc(d.ctx, func() { conn.Close() }) // the warden takes the end of the link for the end of the node
	defer stop()
	err = conn.Send(&link.Message{Op: link.Open, Setup: d.setup()})
	if err == nil {
		err = wait(answer)
	}
	if err != nil {
		conn.Close()
	} else {
		d.setLife(l)
		onReady()
	}
	werr := cmd.Wait()
	conn.Close()
	reader.Wait()
	d.setLife(nil)
	d.endAll()
	if err != nil {
		return false, fmt.Errorf("start warden: %w", err)
	}
	return true, werr
}

// startWarden starts the process with its ends of the link and of the lanes.
func (d *Driver) startWarden() (l *life, cmd *exec.Cmd, err error) {
	l = &life{pending: map[key]chan reply{}, lanes: make(chan *link.Conn, ward.Lanes)}
	cmd = exec.Command(d.cfg.GuestPath, d.cfg.Kind.Warden)
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Setsid: true, Pdeathsig: syscall.SIGTERM}
	var ours []*link.Conn
	for range 1 + ward.Lanes {
		c, theirs, pairErr := link.Pair()
		if err = pairErr; err != nil {
			break
		}
		ours = append(ours, c)
		cmd.ExtraFiles = append(cmd.ExtraFiles, theirs) // descriptors ward.NodeFD, ward.LaneFD and on
	}
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		for _, c := range ours {
			c.Close()
		}
		return nil, nil, err
	}
	l.conn = ours[0]
	for _, c := range ours[1:] {
		l.lanes <- c
	}
	return l, cmd, nil
}

// closeLanes waits for the attachments under way, which the end of the warden ends.
func (l *life) closeLanes() {
	for range ward.Lanes {
		(<-l.lanes).Close()
	}
	close(l.lanes)
}

// attach has a sandbox given its code over a lane of its own. ctx bounds the wait for a lane only: what follows is a mount, a
// few limits and an execution, and a lane with an answer that nobody took would be lost.
func (l *life) attach(ctx context.Context, m *link.Message, mount ...int) (entrypoint string, err error) {
	var lane *link.Conn
	select {
	case lane = <-l.lanes:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if lane == nil {
		return "", errWardenGone
	}
	defer func() { l.lanes <- lane }() // there is room: it was taken from there
	if err := lane.Send(m, mount...); err != nil {
		return "", errWardenGone
	}
	answer, _, err := lane.Receive()
	switch {
	case err != nil:
		return "", errWardenGone
	case answer.Error != "":
		return "", errors.New(answer.Error)
	}
	return answer.Entrypoint, nil
}

func wait(answer chan reply) error {
	select {
	case r := <-answer:
		return r.err
	case <-time.After(wardenStart):
		return fmt.Errorf("no answer in %v", wardenStart)
	}
}

func (d *Driver) setLife(l *life) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.life = l
	close(d.changed)
	d.changed = make(chan struct{})
}

// current returns the running warden, waiting a moment for one that is being started.
func (d *Driver) current(ctx context.Context) (*life, error) {
	timeout := time.NewTimer(2 * time.Second)
	defer timeout.Stop()
	for {
		d.mu.Lock()
		l, closed, changed := d.life, d.closed, d.changed
		d.mu.Unlock()
		if closed {
			return nil, starling.Errorf(starling.Unavailable, "make sandbox", "the node is shutting down")
		}
		if l != nil {
			return l, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-timeout.C:
			return nil, starling.Errorf(starling.Unavailable, "make sandbox", "the warden does not start: see the node's log").RetryAfter(time.Second)
		}
	}
}

// ask sends one message and waits for its answer. When ctx ends first the question stays open; its answer is dropped.
func (l *life) ask(ctx context.Context, m *link.Message, fds ...int) (*link.Message, []int, error) {
	answer, k := make(chan reply, 1), key{m.Op, m.ID}
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return nil, nil, errWardenGone
	}
	l.pending[k] = answer
	l.mu.Unlock()
	if err := l.conn.Send(m, fds...); err != nil {
		l.mu.Lock()
		delete(l.pending, k)
		l.mu.Unlock()
		return nil, nil, fmt.Errorf("ask warden: %w", err)
	}
	select {
	case r := <-answer:
		return r.m, r.fds, r.err
	case <-ctx.Done():
		l.mu.Lock()
		delete(l.pending, k)
		l.mu.Unlock()
		select { // answered at the same moment
		case r := <-answer:
			packet.CloseAll(r.fds)
		default:
		}
		return nil, nil, context.Cause(ctx)
	}
}

// read hands out the warden's answers and reports of ended sandboxes until the link ends.
func (d *Driver) read(l *life) {
	for {
		m, fds, err := l.conn.Receive()
		if err != nil {
			break
		}
		if m.Op == link.Exit {
			d.exited(m)
			continue
		}
		l.mu.Lock()
		answer, ok := l.pending[key{m.Op, m.ID}]
		delete(l.pending, key{m.Op, m.ID})
		if ok {
			r := reply{m: m, fds: fds}
			if m.Error != "" {
				r.err = errors.New(m.Error)
			}
			answer <- r // never blocks: there is room for the one answer
		}
		l.mu.Unlock()
		if !ok {
			packet.CloseAll(fds)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	for k, answer := range l.pending {
		answer <- reply{err: errWardenGone}
		delete(l.pending, k)
	}
}

// exited notes the end of one sandbox.
func (d *Driver) exited(m *link.Message) {
	if m.Error != "" {
		d.cfg.Log.Error("sandbox left something behind", "sandbox", m.ID, "err", m.Error)
	}
	if m.OutOfMemory {
		d.m.outOfMemory.Inc()
	}
	d.mu.Lock()
	b := d.boxes[m.ID]
	delete(d.boxes, m.ID)
	d.mu.Unlock()
	if b != nil {
		b.end(vmpool.ExitOf(m.Status, m.OutOfMemory))
	}
}

// endAll ends the sandboxes of a warden that is gone. The kernel killed their first processes when it ended; frozen ones
// die only here. What is left of their cgroups the next warden sweeps.
func (d *Driver) endAll() {
	d.mu.Lock()
	boxes := d.boxes
	d.boxes = map[uint64]*sandbox{}
	d.mu.Unlock()
	for _, b := range boxes {
		if err := b.group.Kill(); err != nil {
			d.cfg.Log.Error("kill sandbox of an ended warden", "sandbox", b.id, "err", err)
		}
		b.end(vmpool.Killed)
	}
}
