package code

import (
	"context"
	"encoding/binary"
	"io"

	"starling"
	"starling/store/image"
	"starling/transport"
)

// Operations on images, added after the first release; an older node refuses them as Invalid. Their requests begin as those of
// zips do (see operationGet), and go on with what stands here. Sized is u32 size · bytes.
const (
	operationIndex      = 3 // answer: sized index
	operationBlocks     = 4 // blocksRequest · answer: the sealed blocks
	operationKeepImage  = 5 // sized index · the sealed blocks
	operationMakeKey    = 6 // from frontends · answer: sized key and sealed key
	operationReleaseKey = 7 // from hosts: u64 version · sized sealed key · answer: sized key
	operationPlaced     = 8 // from managers: u64 version · u64 host · answer: sized 0 or 1
)

// rowMax bounds the blocks of one request.
const rowMax = 64

// peerStream is the part of a stream that answering needs.
type peerStream interface {
	io.Writer
	Peer() transport.Peer
}

// A blocksRequest asks for a row of blocks of one image. With relay the asked host fetches what it lacks; without, it must have them.
type blocksRequest struct {
	digest       image.Digest
	first, count uint32
	relay        bool
}

func (q blocksRequest) append(b []byte) []byte {
	b = append(b, q.digest[:]...)
	b = binary.LittleEndian.AppendUint32(b, q.first)
	b = binary.LittleEndian.AppendUint32(b, q.count)
	if q.relay {
		return append(b, 1)
	}
	return append(b, 0)
}

func readBlocksRequest(r io.Reader) (q blocksRequest, err error) {
	var b [41]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return q, starling.Errorf(starling.Invalid, "read blocks request", "cut: %w", err)
	}
	q = blocksRequest{first: binary.LittleEndian.Uint32(b[32:]), count: binary.LittleEndian.Uint32(b[36:]), relay: b[40] == 1}
	copy(q.digest[:], b[:])
	if q.count == 0 || q.count > rowMax || b[40] > 1 {
		return q, starling.Errorf(starling.Invalid, "read blocks request", "%d blocks", q.count)
	}
	return q, nil
}

// fits refuses a row that the image has not.
func (q blocksRequest) fits(x *image.Index) error {
	if uint64(q.first)+uint64(q.count) > uint64(x.Blocks()) {
		return starling.Errorf(starling.Invalid, "read blocks request", "blocks %d+%d of %d", q.first, q.count, x.Blocks())
	}
	return nil
}

// serveImage answers what is asked about images and keys.
func (s *Store) serveImage(ctx context.Context, st peerStream, r io.Reader, op byte, k key) error {
	switch {
	case s.cfg.Images == nil:
		return starling.Errorf(starling.Invalid, "serve code", "this node keeps no images")
	case op == operationIndex:
		return s.serveIndex(ctx, st, k)
	case op == operationBlocks:
		return s.serveBlocks(ctx, st, r, k)
	case op == operationKeepImage:
		return s.serveKeepImage(ctx, st, r, k)
	}
	return s.serveKey(ctx, st, r, op, k)
}

func (s *Store) serveIndex(ctx context.Context, st io.Writer, k key) error {
	x, err := s.bucketIndex(ctx, k)
	if err != nil {
		return err
	}
	_, err = st.Write(appendSized([]byte{0}, x.Append(nil)))
	return err
}

// serveBlocks gives blocks that this node keeps as an origin or has fetched, or fetches as their home.
func (s *Store) serveBlocks(ctx context.Context, st io.Writer, r io.Reader, k key) error {
	q, err := readBlocksRequest(r)
	if err != nil {
		return err
	}
	if !q.relay {
		if x := s.originIndex(ctx, k, q.digest); x != nil {
			if err := q.fits(x); err != nil {
				return err
			}
			p, err := s.bucketBlocks(ctx, k, x, int(q.first), int(q.count))
			if err != nil {
				return err
			}
			s.count.servedOrigin.Add(len(p))
			return answerBlocks(st, p)
		}
	}
	b, err := s.blocksFor(ctx, k, q)
	if err != nil {
		return err
	}
	defer s.leave(b)
	if err := q.fits(b.index); err != nil {
		return err
	}
	p, err := b.read(int(q.first), int(q.count))
	if err != nil && q.relay {
		if err = b.fetch(ctx, int(q.first), int(q.count), false); err == nil {
			p, err = b.read(int(q.first), int(q.count))
		}
	}
	if err != nil {
		return err
	}
	s.count.servedHost.Add(len(p))
	return answerBlocks(st, p)
}

func answerBlocks(st io.Writer, p []byte) error {
	if _, err := st.Write([]byte{0}); err != nil {
		return nil // the peer went away: nobody to tell
	}
	st.Write(p)
	return nil
}

// blocksFor holds the image of a request: one that is here, or for a home one that is found.
func (s *Store) blocksFor(ctx context.Context, k key, q blocksRequest) (*blocks, error) {
	s.mu.Lock()
	if b := s.images[q.digest]; b != nil && b.key == k {
		s.clock++
		b.refs++
		b.used = s.clock
		s.mu.Unlock()
		return b, nil
	}
	s.mu.Unlock()
	if q.relay {
		b, err := s.image(ctx, k)
		if err != nil {
			return nil, err
		}
		if b.digest == q.digest {
			return b, nil
		}
		s.leave(b)
	}
	return nil, starling.Errorf(starling.NotFound, "serve blocks", "this node has not this image of package %s", k.hash)
}

// originIndex returns the index of the image d if this node's bucket has that image of k; nil if not. The last few are remembered.
func (s *Store) originIndex(ctx context.Context, k key, d image.Digest) *image.Index {
	s.mu.Lock()
	x := s.kept[d]
	s.mu.Unlock()
	if x != nil {
		return x
	}
	x, err := s.bucketIndex(ctx, k)
	if err != nil || x.Digest() != d {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) >= keptMax {
		clear(s.kept)
	}
	s.kept[d] = x
	return x
}

// keptMax bounds the indexes that an origin remembers.
const keptMax = 256

// sendImage hands a whole image to a node and waits until it lies on that node's disk.
func (s *Store) sendImage(ctx context.Context, addr string, k key, im *sealed) error {
	st, stop, err := s.open(ctx, addr, keepPatience)
	if err != nil {
		return err
	}
	defer stop()
	if _, err := st.Write(appendSized(appendRequest(nil, operationKeepImage, k), im.index.Append(nil))); err != nil {
		return err
	}
	if _, err := io.Copy(struct{ io.Writer }{st}, io.NewSectionReader(im.file, 0, im.index.SealedSize())); err != nil {
		return err
	}
	return readStatus(st)
}

// serveKeepImage takes a whole image from the node that made it.
func (s *Store) serveKeepImage(ctx context.Context, st io.Writer, r io.Reader, k key) error {
	raw, err := readSized(r, image.IndexMax)
	if err != nil {
		return err
	}
	x, err := image.ParseIndex(raw)
	if err != nil {
		return err
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		return starling.Errorf(starling.Overloaded, "keep code", "too many uploads at once")
	}
	f, err := s.nameless()
	if err != nil {
		return diskError("keep code", err)
	}
	defer f.Close()
	buf := make([]byte, image.BlockSize+image.Overhead)
	for i := range x.Blocks() {
		_, n := x.Sealed(i)
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return starling.Errorf(starling.Invalid, "keep code", "the image is cut: %w", err)
		}
		if !x.Right(i, buf[:n]) {
			return starling.Errorf(starling.Invalid, "keep code", "block %d arrived damaged", i).With("HashMismatch")
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return diskError("keep code", err)
		}
	}
	if ok, err := s.cfg.Bucket.Exists(ctx, k.index()); err != nil {
		return err
	} else if !ok { // one that is here stays: hosts may be reading it
		if err := s.keepImage(ctx, k, &sealed{index: x, file: f}); err != nil {
			return err
		}
	}
	_, err = st.Write([]byte{0})
	return err
}
