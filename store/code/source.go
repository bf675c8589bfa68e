package code

import (
	"bufio"
	"context"
	"encoding/binary"
	"hash/fnv"
	"io"
	"slices"
	"time"

	"starling"
	"starling/store/image"
)

const (
	blockPatience = 5 * time.Second // for one row of blocks from one node
	sulkTime      = 5 * time.Second // a node that failed is not asked to share for so long
)

// bring returns count sealed blocks from first, checked. Each chunk of an image has a home among the hosts: who lacks a block asks its
// home, and only homes ask the origin, so the origin serves each block about once however many hosts want it. The origin itself is
// asked when there is no other way, and by the home.
func (s *Store) bring(ctx context.Context, b *blocks, first, count int, share bool) ([]byte, error) {
	if !s.cfg.Bucket.Shared() {
		if p, err := s.fromBucket(ctx, b, first, count); err == nil {
			return p, nil
		}
	}
	if home := s.home(b, first); share && home != "" {
		p, err := s.fromPeer(ctx, home, b, first, count, true)
		if err == nil {
			s.count.fetchedHost.Add(len(p))
			return p, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.sulk(home)
	}
	if s.cfg.Bucket.Shared() {
		return s.fromBucket(ctx, b, first, count)
	}
	return s.fromOrigin(ctx, b, first, count)
}

// fromBucket reads blocks from the bucket this node has, when the image there is this one.
func (s *Store) fromBucket(ctx context.Context, b *blocks, first, count int) ([]byte, error) {
	p, err := s.bucketBlocks(ctx, b.key, b.index, first, count)
	if err != nil {
		return nil, err
	}
	if bad := b.check(first, count, p); bad >= 0 {
		return nil, s.damaged("the bucket", b, bad)
	}
	s.count.bucketBytes.Add(len(p))
	return p, nil
}

// fromOrigin asks the nodes that keep the image, those that are known first.
func (s *Store) fromOrigin(ctx context.Context, b *blocks, first, count int) ([]byte, error) {
	b.mu.Lock()
	known := slices.Clone(b.origins)
	b.mu.Unlock()
	asked := map[string]bool{}
	var last error = starling.Errorf(starling.Unavailable, "fetch blocks", "no node has the image of %s: deploy the function again", b.key.hash).With("CodeUnreachable")
	for _, addr := range append(known, s.peerAddrs()...) {
		if asked[addr] {
			continue
		}
		asked[addr] = true
		p, err := s.fromPeer(ctx, addr, b, first, count, false)
		if err == nil {
			s.count.fetchedOrigin.Add(len(p))
			b.originIs(addr)
			return p, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if starling.KindOf(err) != starling.NotFound {
			last = err
		}
	}
	return nil, last
}

// originIs puts addr at the head of the known origins.
func (b *blocks) originIs(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.origins) > 0 && b.origins[0] == addr {
		return
	}
	b.origins = append([]string{addr}, slices.DeleteFunc(b.origins, func(a string) bool { return a == addr })...)
}

// fromPeer asks one node for blocks and checks them.
func (s *Store) fromPeer(ctx context.Context, addr string, b *blocks, first, count int, relay bool) ([]byte, error) {
	st, stop, err := s.open(ctx, addr, blockPatience)
	if err != nil {
		return nil, err
	}
	defer stop()
	if _, err := st.Write(blocksRequest{b.digest, uint32(first), uint32(count), relay}.append(appendRequest(nil, operationBlocks, b.key))); err != nil {
		return nil, starling.Errorf(starling.Unavailable, "ask node for blocks", "%w", err)
	}
	if err := readStatus(st); err != nil {
		return nil, err
	}
	_, n := span(b.index, first, count)
	p := make([]byte, n)
	if _, err := io.ReadFull(st, p); err != nil {
		return nil, starling.Errorf(starling.Unavailable, "ask node for blocks", "the answer is cut: %w", err)
	}
	if bad := b.check(first, count, p); bad >= 0 {
		return nil, s.damaged(addr, b, bad)
	}
	return p, nil
}

// damaged notes that a copy of a block was not what the index says.
func (s *Store) damaged(from string, b *blocks, block int) error {
	s.count.damaged.Inc()
	s.cfg.Log.Error("a block of code is damaged; asking another node", "from", from, "account", b.key.account, "hash", b.key.hash, "block", block)
	return starling.Errorf(starling.Unavailable, "fetch blocks", "block %d from %s is damaged", block, from).With("HashMismatch")
}

// home returns the address of the host that fetches the chunk of block i for all; "" when it is this one, or cannot be asked now. It
// is drawn by rendezvous: a host that comes or goes changes the homes of few chunks.
func (s *Store) home(b *blocks, i int) string {
	var best Peer
	var most uint64
	for _, p := range s.cfg.Images.Hosts() {
		h := fnv.New64a()
		h.Write(b.digest[:])
		h.Write(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(i/chunk)), uint64(p.ID)))
		if w := mix(h.Sum64()); w >= most {
			best, most = p, w
		}
	}
	if best.ID == s.cfg.Images.Self || best.ID == 0 {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.sulking[best.Addr]) {
		return ""
	}
	return best.Addr
}

// mix spreads the bits of a hash whose inputs differ in their last bytes only.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// sulk leaves a node that failed alone for a while.
func (s *Store) sulk(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for a, until := range s.sulking {
		if now.After(until) {
			delete(s.sulking, a)
		}
	}
	s.sulking[addr] = now.Add(sulkTime)
}

// fetchIndex asks the other nodes in turn for the index of an image.
func (s *Store) fetchIndex(ctx context.Context, k key) (*image.Index, string, error) {
	missing := true
	for _, addr := range s.peerAddrs() {
		x, err := s.indexFrom(ctx, addr, k)
		if err == nil {
			return x, addr, nil
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		// A node of a release without images says Invalid: it has none.
		if kind := starling.KindOf(err); kind != starling.NotFound && kind != starling.Invalid {
			missing = false
			s.cfg.Log.Warn("fetch image from a node", "addr", addr, "hash", k.hash, "error", err)
		}
	}
	if missing {
		return nil, "", starling.Errorf(starling.NotFound, "fetch code", "no node has an image of package %s", k.hash)
	}
	return nil, "", starling.Errorf(starling.Unavailable, "fetch code", "no node that answers has package %s: try again when all nodes are up", k.hash).With("CodeUnreachable")
}

func (s *Store) indexFrom(ctx context.Context, addr string, k key) (*image.Index, error) {
	st, stop, err := s.open(ctx, addr, blockPatience)
	if err != nil {
		return nil, err
	}
	defer stop()
	if _, err := st.Write(appendRequest(nil, operationIndex, k)); err != nil {
		return nil, starling.Errorf(starling.Unavailable, "ask node for image", "%w", err)
	}
	r := bufio.NewReader(st)
	if err := readStatus(r); err != nil {
		return nil, err
	}
	b, err := readSized(r, image.IndexMax)
	if err != nil {
		return nil, err
	}
	return image.ParseIndex(b)
}

// readSized reads u32 size · bytes.
func readSized(r io.Reader, most uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, starling.Errorf(starling.Unavailable, "ask node for code", "the answer is cut: %w", err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > most {
		return nil, starling.Errorf(starling.Invalid, "ask node for code", "an answer of %d bytes", n)
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, starling.Errorf(starling.Unavailable, "ask node for code", "the answer is cut: %w", err)
	}
	return b, nil
}

func appendSized(b, p []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(p))), p...)
}
