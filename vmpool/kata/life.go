package kata

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"starling/vmpool"
	"starling/vmpool/kata/link"
)

// A life is one run of starling-vmd, from its start to its end.
type life struct {
	conn    *link.Conn
	log     *slog.Logger
	process *os.Process // set before the first question
	wg      sync.WaitGroup

	mu      sync.Mutex // guards what follows; a leaf
	seq     uint64
	pending map[uint64]chan reply
	boxes   map[uint64]*sandbox
	over    bool
}

type reply struct {
	m  *link.Message
	fd int
}

var errGone = errors.New("starling-vmd is gone")

func newLife(conn *link.Conn, log *slog.Logger) *life {
	return &life{conn: conn, log: log, pending: map[uint64]chan reply{}, boxes: map[uint64]*sandbox{}}
}

// lockThread keeps the calling goroutine on its thread, for good.
func lockThread() { runtime.LockOSThread() }

func (l *life) isOver() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

func (l *life) add(b *sandbox) {
	l.mu.Lock()
	l.boxes[b.id] = b
	l.mu.Unlock()
}

// remove forgets a sandbox and reports whether nobody did before.
func (l *life) remove(id uint64) *sandbox {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.boxes[id]
	delete(l.boxes, id)
	return b
}

// ask sends one question and waits for its answer. When ctx ends first the answer is dropped.
func (l *life) ask(ctx context.Context, m *link.Message) (*link.Message, int, error) {
	return l.askWith(ctx, m, -1)
}

// askWith is ask with a duplicate of a descriptor.
func (l *life) askWith(ctx context.Context, m *link.Message, fd int) (*link.Message, int, error) {
	answer := make(chan reply, 1)
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return nil, -1, errGone
	}
	l.seq++
	m.Seq = l.seq
	l.pending[m.Seq] = answer
	l.mu.Unlock()
	if err := l.conn.Send(m, fd); err != nil {
		l.forget(m.Seq, answer)
		return nil, -1, err
	}
	select {
	case r := <-answer:
		if r.m == nil {
			return nil, -1, errGone
		}
		if r.m.Error != "" {
			return nil, -1, errors.New(r.m.Error)
		}
		return r.m, r.fd, nil
	case <-ctx.Done():
		l.forget(m.Seq, answer)
		return nil, -1, context.Cause(ctx)
	}
}

// forget drops a question, and an answer that came at the same moment.
func (l *life) forget(seq uint64, answer chan reply) {
	l.mu.Lock()
	delete(l.pending, seq)
	l.mu.Unlock()
	select {
	case r := <-answer:
		closeFD(r.fd)
	default:
	}
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// read hands out answers and ends until the link ends, which is the end of every VM.
func (l *life) read() {
	for {
		m, fd, err := l.conn.Receive()
		if err != nil {
			break
		}
		if m.Op == link.Exit {
			if m.Error != "" {
				l.log.Error("VM left something behind", "vm", m.VM, "err", m.Error)
			}
			if b := l.remove(m.VM); b != nil {
				l.wg.Go(func() { b.end(vmpool.ExitOf(m.Status, m.OutOfMemory)) })
			}
			continue
		}
		l.mu.Lock()
		answer := l.pending[m.Seq]
		delete(l.pending, m.Seq)
		l.mu.Unlock()
		if answer == nil {
			closeFD(fd)
			continue
		}
		answer <- reply{m, fd} // there is room for the one answer
	}
	l.mu.Lock()
	l.over = true
	pending, boxes := l.pending, l.boxes
	l.pending, l.boxes = map[uint64]chan reply{}, map[uint64]*sandbox{}
	l.mu.Unlock()
	for _, answer := range pending {
		answer <- reply{fd: -1}
	}
	for _, b := range boxes {
		l.wg.Go(func() { b.end(vmpool.Killed) })
	}
}

// close hangs up and waits until the process and its VMs are gone.
func (l *life) close() {
	l.conn.Close()
	l.wg.Wait()
}
