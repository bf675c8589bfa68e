// Package lazy shows images whose blocks are not all here yet. A helper process of its own serves the opened blocks as files over
// FUSE: two that the kernel's EROFS mounts, or one that lies under the disk of a virtual machine. What is missing it asks the node
// for. It is the only importer of go-fuse.
//
// The helper is apart from the node because a reader of such a mount waits for the process that serves it: a node that read
// from itself could wait for ever, and its death must not be what frees a hung reader.
package lazy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"starling/store/image"
)

// LineFD is the descriptor on which the helper speaks with its node.
const LineFD = 3

const (
	needTime = 15 * time.Second // a reader waits no longer for a block: it gets an error, and may try again
	keepOpen = 64               // opened blocks of each image in memory; the kernel keeps pages besides
	longLife = time.Hour        // names and sizes never change
)

// Main serves images until the node goes away. Then every mount ends, and readers get errors.
func Main() error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP) // of a terminal; the end of the line is our end
	l, err := newLine(os.NewFile(LineFD, "line"))
	if err != nil {
		return err
	}
	h := &helper{line: l, root: &fs.Inode{}, images: map[uint64]*served{}}
	if h.fuse, err = h.serve(); err != nil {
		return err
	}
	for {
		m, file, err := l.receive()
		if err != nil {
			return nil // the node is gone
		}
		h.obey(m, file)
	}
}

// helper is the whole process. Its goroutines are go-fuse's, one for each mount under way, and Main's.
type helper struct {
	line line
	fuse *os.File // the file system of all images' files
	root *fs.Inode

	mu     sync.Mutex // a leaf
	images map[uint64]*served
}

// A served is one image.
type served struct {
	helper *helper
	id     uint64
	meta   int64 // bytes of its description
	blocks *os.File
	reader *image.Reader

	mu    sync.Mutex // a leaf
	waits map[int]*wait
}

// A wait is a block that the node was asked for.
type wait struct {
	done chan struct{}
	err  error // set before done is closed
}

// serve mounts the file system of all images' files.
func (h *helper) serve() (*os.File, error) {
	dev, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	m, err := mount("fuse", option{"source", "starling-code"}, option{"fd", strconv.Itoa(dev)}, option{"rootmode", "40000"}, option{"user_id", "0"},
		option{"group_id", "0"}, option{"allow_other", ""}, option{"max_read", strconv.Itoa(image.BlockSize)})
	if err != nil {
		return nil, err
	}
	life := longLife
	options := &fs.Options{EntryTimeout: &life, AttrTimeout: &life, RootStableAttr: &fs.StableAttr{Ino: 1}}
	options.MaxBackground, options.MaxWrite = 64, image.BlockSize
	options.DisabledCapabilities = fuse.CAP_PASSTHROUGH // with it EROFS refuses the files as no block device
	server, err := fuse.NewServer(fs.NewNodeFS(h.root, options), "/dev/fd/"+strconv.Itoa(dev), &options.MountOptions)
	if err != nil {
		return nil, fmt.Errorf("serve files: %w", err)
	}
	go server.Serve() // ends with the process
	return m, nil
}

func (h *helper) obey(m *message, file *os.File) {
	switch m.Op {
	case opOpen:
		go func() { // the mount reads what we serve
			mounted, err := h.open(m, file)
			answer := &message{Op: opMounted, ID: m.ID}
			if err != nil {
				answer.Error = err.Error()
			}
			_ = h.line.send(answer, mounted) // a node that is gone shows at the next receive
			if mounted != nil {
				mounted.Close()
			}
		}()
		return
	case opClose:
		h.close(m.ID)
	case opHave:
		h.mu.Lock()
		s := h.images[m.ID]
		h.mu.Unlock()
		if s != nil {
			s.have(m)
		}
	case opPing:
		_ = h.line.send(&message{Op: opPong}, nil)
	}
	if file != nil {
		file.Close()
	}
}

// open shows an image's two files and mounts what they hold, or shows all of it as one and opens that.
func (h *helper) open(m *message, blocks *os.File) (*os.File, error) {
	if blocks == nil || m.Spec == nil {
		return nil, errors.New("open image: the request is not whole")
	}
	cipher, err := image.NewCipher(m.Spec.Key, image.Subject{Account: m.Spec.Account, Hash: m.Spec.Hash})
	if err != nil {
		blocks.Close()
		return nil, err
	}
	size := m.Spec.Meta + m.Spec.Data
	s := &served{helper: h, id: m.ID, meta: m.Spec.Meta, blocks: blocks, waits: map[int]*wait{}}
	s.reader = image.NewReader(cipher, size, keepOpen, func(i int) ([]byte, error) { return s.block(cipher, size, i) })
	h.mu.Lock()
	h.images[m.ID] = s
	h.mu.Unlock()
	shown, err := h.mountOrDisk(m, s)
	if err != nil {
		h.close(m.ID)
		return nil, err
	}
	return shown, nil
}

func (h *helper) mountOrDisk(m *message, s *served) (*os.File, error) {
	if m.Spec.Disk > 0 {
		return openOwn(h.show(m.ID, "disk", s, 0, m.Spec.Meta+m.Spec.Data, m.Spec.Disk))
	}
	options := []option{{"source", h.show(m.ID, "meta", s, 0, m.Spec.Meta, m.Spec.Meta)}}
	if m.Spec.Data > 0 {
		options = append(options, option{"device", h.show(m.ID, "data", s, m.Spec.Meta, m.Spec.Data, m.Spec.Data)})
	}
	mounted, err := mount("erofs", options...)
	if err == nil {
		err = seal(mounted)
	}
	if err != nil && mounted != nil {
		mounted.Close()
		mounted = nil
	}
	return mounted, err
}

// openOwn opens a file that this process itself answers for; a goroutine of go-fuse does. os.Open would besides have Go's poller look
// at it: the kernel asks us then, while the poller is locked and a processor of Go's is held, and everything here may wait for that.
func openOwn(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// show makes a file of the held bytes at off of the image, and zeros up to size, and returns its path.
func (h *helper) show(id uint64, part string, s *served, off, held, size int64) string {
	name := strconv.FormatUint(id, 10) + "." + part
	f := &file{image: s, off: off, held: held, size: size}
	h.root.AddChild(name, h.root.NewPersistentInode(context.Background(), f, fs.StableAttr{Mode: syscall.S_IFREG}), true)
	return within(h.fuse, name)
}

// close forgets an image. Whoever still reads it gets errors.
func (h *helper) close(id uint64) {
	h.mu.Lock()
	s := h.images[id]
	delete(h.images, id)
	h.mu.Unlock()
	if s == nil {
		return
	}
	name := strconv.FormatUint(id, 10)
	h.root.RmChild(name+".meta", name+".data", name+".disk")
	s.blocks.Close()
}

// block returns sealed block i from the file, after the node has fetched it if it is not there or not whole.
func (s *served) block(c *image.Cipher, size int64, i int) ([]byte, error) {
	plain := min(image.BlockSize, size-int64(i)*image.BlockSize)
	sealed := make([]byte, plain+image.Overhead)
	for try := 0; ; try++ {
		if _, err := s.blocks.ReadAt(sealed, int64(i)*(image.BlockSize+image.Overhead)); err == nil {
			if _, err := c.Open(i, sealed); err == nil {
				return sealed, nil
			}
		}
		if try > 0 {
			return nil, fmt.Errorf("block %d does not come whole", i)
		}
		if err := s.need(i); err != nil {
			return nil, err
		}
	}
}

// need asks the node for a block, once for all who want it, and waits.
func (s *served) need(i int) error {
	s.mu.Lock()
	w, asked := s.waits[i]
	if !asked {
		w = &wait{done: make(chan struct{})}
		s.waits[i] = w
	}
	s.mu.Unlock()
	if !asked {
		if err := s.helper.line.send(&message{Op: opNeed, ID: s.id, Block: i}, nil); err != nil {
			s.have(&message{Block: i, Error: err.Error()})
		}
	}
	select {
	case <-w.done:
		return w.err
	case <-time.After(needTime):
		return fmt.Errorf("block %d does not come in time", i)
	}
}

func (s *served) have(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waits[m.Block]
	if w == nil {
		return
	}
	delete(s.waits, m.Block)
	if m.Error != "" {
		w.err = errors.New(m.Error)
	}
	close(w.done)
}

// A file is one part of an image as FUSE shows it.
type file struct {
	fs.Inode
	image *served
	off   int64
	held  int64 // bytes of the image; zeros follow
	size  int64
}

var (
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
)

// Getattr implements fs.NodeGetattrer.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blocks, out.Mtime = syscall.S_IFREG|0o400, uint64(f.size), uint64(f.size+511)/512, 1
	out.SetTimeout(longLife)
	return 0
}

// Open implements fs.NodeOpener.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH, 0 // whoever closes it waits for nobody
}

// Read implements fs.NodeReader.
func (f *file) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	p = p[:max(0, min(int64(len(p)), f.size-off))]
	of := p[:max(0, min(int64(len(p)), f.held-off))]
	if _, err := f.image.reader.ReadAt(of, f.off+off); err != nil {
		return nil, syscall.EIO
	}
	clear(p[len(of):])
	return fuse.ReadResultData(p), 0
}
