package lazy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"starling"
	"starling/store/image"
)

const (
	beat      = 2 * time.Second
	beatsMax  = 5               // a helper that leaves so many questions unanswered is killed: readers get errors instead of waiting
	endTime   = 5 * time.Second // for a helper that was told to end
	mountTime = 20 * time.Second
	fetchTime = 12 * time.Second // for one block that a reader waits for; less than the helper waits
	tryPause  = 200 * time.Millisecond
)

// Config says how to run the helper.
type Config struct {
	Command  []string      // that calls Main
	Patience time.Duration // for so long a fetch that failed is tried again; in all a reader waits 12 s at most
	Log      *slog.Logger
}

// A Spec is an image to be shown.
type Spec struct {
	Subject image.Subject
	Key     []byte
	Index   *image.Index
	Blocks  *os.File // sealed blocks, each at its place or a hole; read only here
	// Fetch has block i, whole, in the file when it returns nil. It is called concurrently, and again when it fails.
	Fetch func(ctx context.Context, i int) error
	// Lost is called once when a read of the image failed for good, before its reader is told, or when the process that shows it has
	// ended: what is not in memory cannot be read any more. nil for nobody.
	Lost func()
	// Disk is the size of the file that shows the image: its description, its content, zeros. 0 for a mount.
	Disk int64
}

// Helper is the process that shows images. New makes it, Open of the first image starts it, Close ends it and waits. Its goroutines:
// a reader and a watchdog for each life of the process, and one for each block that a reader waits for.
type Helper struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	next   atomic.Uint64

	mu      sync.Mutex // guards what follows; held while a process is started, never while one is asked
	current *life      // nil before the first and after a death
	closed  bool
}

// New returns a helper that does not run yet.
func New(cfg Config) *Helper {
	h := &Helper{cfg: cfg}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// A life is one process.
type life struct {
	helper *Helper
	line   line
	cmd    *exec.Cmd
	gone   chan struct{} // closed when the process has ended
	missed atomic.Int64  // questions since the process last said anything

	mu     sync.Mutex // a leaf
	images map[uint64]*Image
}

// An Image is one that is shown. Close it when no sandbox has it any more.
type Image struct {
	// Mount is the root of its files, which stands in no namespace, or the file of a Spec with a Disk. It is closed by Close.
	Mount *os.File

	id      uint64
	life    *life
	spec    Spec
	mounted chan error
	lost    chan struct{}
	lose    func() // closes lost and tells whose it is, once
}

// Open shows an image. It waits until the image's description is here.
func (h *Helper) Open(ctx context.Context, s Spec) (*Image, error) {
	l, err := h.alive()
	if err != nil {
		return nil, err
	}
	i := &Image{id: h.next.Add(1), life: l, spec: s, mounted: make(chan error, 1), lost: make(chan struct{})}
	i.lose = sync.OnceFunc(func() {
		close(i.lost)
		if s.Lost != nil {
			s.Lost()
		}
	})
	l.mu.Lock()
	l.images[i.id] = i
	l.mu.Unlock()
	err = l.line.send(&message{Op: opOpen, ID: i.id, Spec: &spec{Account: s.Subject.Account, Hash: s.Subject.Hash, Key: s.Key,
		Meta: int64(s.Index.Meta), Data: int64(s.Index.Data), Disk: s.Disk}}, s.Blocks)
	if err == nil {
		select {
		case err = <-i.mounted:
		case <-l.gone:
			err = errors.New("the helper ended")
		case <-time.After(mountTime):
			err = errors.New("the mount does not come in time")
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		i.Close()
		return nil, starling.Errorf(starling.Unavailable, "show image", "%w", err)
	}
	return i, nil
}

// Broken reports whether the image is lost, see Spec.
func (i *Image) Broken() bool {
	select {
	case <-i.lost:
		return true
	default:
		return false
	}
}

// Close ends the showing. It may be called once.
func (i *Image) Close() {
	i.life.mu.Lock()
	delete(i.life.images, i.id)
	mount := i.Mount
	i.life.mu.Unlock()
	if mount != nil {
		mount.Close() // before the helper forgets it: the kernel reads nothing on the way out
	}
	_ = i.life.line.send(&message{Op: opClose, ID: i.id}, nil) // a helper that is gone has forgotten it
}

// alive returns the running process, started if there is none.
func (h *Helper) alive() (*life, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, starling.Errorf(starling.Unavailable, "show image", "this node is stopping")
	}
	if h.current != nil {
		select {
		case <-h.current.gone:
		default:
			return h.current, nil
		}
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(h.cfg.Command[0], h.cfg.Command[1:]...)
	cmd.ExtraFiles, cmd.Stderr, cmd.Dir = []*os.File{theirs}, os.Stderr, "/"
	cmd.Env = append(os.Environ(), "GOGC=50")
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start helper: %w", err)
	}
	l := &life{helper: h, line: ours, cmd: cmd, gone: make(chan struct{}), images: map[uint64]*Image{}}
	h.current = l
	h.group.Go(l.read)
	h.group.Go(l.watch)
	return l, nil
}

// PID is that of the running process, 0 for none.
func (h *Helper) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.current == nil {
		return 0
	}
	return h.current.cmd.Process.Pid
}

// Close ends the process and waits for it. What it showed is gone.
func (h *Helper) Close() {
	h.cancel()
	h.mu.Lock()
	h.closed = true
	if h.current != nil {
		h.current.line.Close() // the end of the line ends it
	}
	h.mu.Unlock()
	h.group.Wait()
}

// read takes what the process says until it ends, then collects it.
func (l *life) read() {
	for {
		m, file, err := l.line.receive()
		if err != nil {
			break
		}
		l.missed.Store(0)
		l.mu.Lock()
		i := l.images[m.ID]
		if m.Op == opMounted && i != nil {
			i.Mount, file = file, nil
		}
		l.mu.Unlock()
		if file != nil {
			file.Close() // of an image that nobody waits for any more
		}
		switch {
		case i == nil:
		case m.Op == opMounted && m.Error != "":
			i.mounted <- errors.New(m.Error)
		case m.Op == opMounted:
			i.mounted <- nil
		case m.Op == opNeed:
			l.helper.group.Go(func() { l.fetch(i, m.Block) })
		}
	}
	l.line.Close()
	late := time.AfterFunc(endTime, func() { l.cmd.Process.Kill() }) // no effect on one that has been collected
	err := l.cmd.Wait()
	late.Stop()
	close(l.gone)
	l.mu.Lock()
	images := slices.Collect(maps.Values(l.images))
	l.mu.Unlock()
	for _, i := range images {
		i.lose()
	}
	if l.helper.ctx.Err() == nil {
		l.helper.cfg.Log.Error("the helper that shows images ended; large packages that run must read from memory what they still need", "error", err)
	}
}

// fetch answers one need.
func (l *life) fetch(i *Image, block int) {
	ctx, cancel := context.WithTimeout(l.helper.ctx, fetchTime)
	defer cancel()
	answer := &message{Op: opHave, ID: i.id, Block: block}
	if block < 0 || block >= i.spec.Index.Blocks() {
		answer.Error = "there is no such block"
	} else if err := i.bring(ctx, block); err != nil {
		answer.Error = err.Error()
		if !i.Broken() && l.helper.ctx.Err() == nil {
			l.helper.cfg.Log.Error("a block of code cannot be had; what runs this package ends", "account", i.spec.Subject.Account, "hash", i.spec.Subject.Hash, "block", block, "error", err)
		}
		i.lose()
	}
	_ = l.line.send(answer, nil) // a helper that is gone asks nothing any more
}

// bring fetches a block, again and again for a while. An image that is lost fetches no more: nobody is to wait for it.
func (i *Image) bring(ctx context.Context, block int) error {
	for end := time.Now().Add(i.life.helper.cfg.Patience); ; {
		if i.Broken() {
			return errors.New("the image is lost")
		}
		err := i.spec.Fetch(ctx, block)
		if err == nil || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(tryPause):
		case <-i.lost:
		case <-ctx.Done():
		}
	}
}

// watch kills a process that does not answer: a reader that waits for it could not be ended otherwise.
func (l *life) watch() {
	t := time.NewTicker(beat)
	defer t.Stop()
	for {
		select {
		case <-l.gone:
			return
		case <-t.C:
		}
		_ = l.line.send(&message{Op: opPing}, nil) // an ended line shows in read
		if l.missed.Add(1) > beatsMax {
			l.helper.cfg.Log.Error("the helper that shows images hangs: it is killed")
			l.cmd.Process.Kill() // it is collected by read
		}
	}
}
