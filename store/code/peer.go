package code

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"time"

	"starling"
	"starling/transport"
)

// One request has a stream of its own:
//
//	u8 operation · 32 bytes hash · u8 n · n bytes account · for keep: u64 size · size bytes
//
// and one answer: u8 0 · for get: u64 size · size bytes; or u8 1+kind. Numbers are little-endian. The
// receiver of bytes checks their hash, so a peer can refuse or delay but not deceive.
const (
	operationGet  = 1
	operationKeep = 2

	peerPatience = 30 * time.Second // for one package of 50 MiB on a slow link
	keepPatience = 10 * time.Second // an upload waits no longer for its copies
)

// Serve answers other nodes on ep and fetches through it. Call it before ep opens.
func (s *Store) Serve(ep transport.Endpoint) {
	s.peers = ep
	ep.Handle(transport.ChannelCode, s.serve)
}

// serve answers one request of a member of the cluster.
func (s *Store) serve(st transport.Stream) {
	defer st.Cancel()
	if st.Peer().Node == 0 {
		return
	}
	st.SetReadDeadline(time.Now().Add(peerPatience))
	st.SetWriteDeadline(time.Now().Add(peerPatience))
	ctx, cancel := context.WithTimeout(s.ctx, peerPatience)
	defer cancel()
	r := bufio.NewReaderSize(st, 64<<10)
	op, k, err := readRequest(r)
	if err == nil {
		switch op {
		case operationGet:
			err = s.serveGet(ctx, st, k)
		case operationKeep:
			err = s.serveKeep(ctx, st, r, k)
		default:
			err = s.serveImage(ctx, st, r, op, k)
		}
	}
	if err != nil {
		s.cfg.Log.Debug("serve code", "peer", st.Peer().Node, "error", err)
		st.Write([]byte{1 + byte(starling.KindOf(err))})
	}
	st.CloseWrite()
	io.Copy(io.Discard, io.LimitReader(r, 1)) // the peer ends the stream when it has read the answer; to end it before could cut that off
}

func (s *Store) serveGet(ctx context.Context, st transport.Stream, k key) error {
	r, size, err := s.cfg.Bucket.Get(ctx, k.object())
	if err != nil {
		return err
	}
	defer r.Close()
	head := binary.LittleEndian.AppendUint64([]byte{0}, uint64(size))
	if _, err := st.Write(head); err != nil {
		return nil // the peer went away: nobody to tell
	}
	if _, err := io.Copy(struct{ io.Writer }{st}, r); err == nil {
		s.count.served.Inc()
	}
	return nil
}

func (s *Store) serveKeep(ctx context.Context, st transport.Stream, r io.Reader, k key) error {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return starling.Errorf(starling.Invalid, "keep code", "the request is cut: %w", err)
	}
	size := binary.LittleEndian.Uint64(head[:])
	if size > uint64(s.cfg.Limits.Zip) {
		return refuseSize("%d bytes", size)
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		return starling.Errorf(starling.Overloaded, "keep code", "too many uploads at once")
	}
	f, n, err := s.verified(k, io.LimitReader(r, int64(size)))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.cfg.Bucket.Put(ctx, k.object(), io.NewSectionReader(f, 0, n)); err != nil {
		return err
	}
	if s.cfg.Images == nil {
		s.prepare(k, nil)
	}
	_, err = st.Write([]byte{0})
	return err
}

// readRequest reads the head of a request. It trusts nothing in it.
func readRequest(r io.Reader) (op byte, k key, err error) {
	var head [34]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, k, starling.Errorf(starling.Invalid, "read code request", "cut: %w", err)
	}
	account := make([]byte, head[33])
	if _, err := io.ReadFull(r, account); err != nil {
		return 0, k, starling.Errorf(starling.Invalid, "read code request", "cut: %w", err)
	}
	k = key{starling.AccountID(account), starling.CodeHash(hex.EncodeToString(head[1:33]))}
	if head[0] < operationGet || head[0] > operationPlaced {
		return 0, k, starling.Errorf(starling.Invalid, "read code request", "no operation %d", head[0])
	}
	return head[0], k, k.validate()
}

func appendRequest(b []byte, op byte, k key) []byte {
	b = append(b, op)
	sum, _ := hex.DecodeString(string(k.hash)) // validated before
	b = append(b, sum...)
	b = append(b, byte(len(k.account)))
	return append(b, k.account...)
}

// fetchPeer asks the other nodes in turn until one has k.
func (s *Store) fetchPeer(ctx context.Context, k key) (*os.File, int64, error) {
	missing := true // every node answered that it has no copy
	for _, addr := range s.peerAddrs() {
		f, size, err := s.get(ctx, addr, k)
		if err == nil {
			return f, size, nil
		}
		if starling.KindOf(err) != starling.NotFound {
			missing = false
			s.cfg.Log.Warn("fetch code from a node", "addr", addr, "hash", k.hash, "error", err)
		}
		if ctx.Err() != nil || starling.ReasonOf(err) == "DiskFull" {
			return nil, 0, err
		}
	}
	if missing {
		return nil, 0, starling.Errorf(starling.NotFound, "fetch code", "no node has package %s: deploy the function again", k.hash).With("CodeMissing")
	}
	return nil, 0, starling.Errorf(starling.Unavailable, "fetch code", "no node that answers has package %s: try again when all nodes are up", k.hash).With("CodeUnreachable")
}

func (s *Store) peerAddrs() []string {
	if s.peers == nil || s.cfg.Peers == nil {
		return nil
	}
	return s.cfg.Peers()
}

// get fetches k from one node.
func (s *Store) get(ctx context.Context, addr string, k key) (*os.File, int64, error) {
	st, stop, err := s.open(ctx, addr, peerPatience)
	if err != nil {
		return nil, 0, err
	}
	defer stop()
	if _, err := st.Write(appendRequest(nil, operationGet, k)); err != nil {
		return nil, 0, err
	}
	r := bufio.NewReaderSize(st, 64<<10)
	if err := readStatus(r); err != nil {
		return nil, 0, err
	}
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, 0, err
	}
	size := binary.LittleEndian.Uint64(head[:])
	if size > uint64(s.cfg.Limits.Zip) {
		return nil, 0, refuseSize("the node offers %d bytes", size)
	}
	return s.verified(k, io.LimitReader(r, int64(size)))
}

// replicate hands an uploaded zip to other nodes.
func (s *Store) replicate(ctx context.Context, k key, f io.ReaderAt, size int64) {
	s.replicateTo(ctx, k, func(ctx context.Context, addr string) error {
		return s.keep(ctx, addr, k, io.NewSectionReader(f, 0, size), size)
	})
}

// replicateTo hands an upload to other nodes, so that it outlives this one. A shared bucket needs no copies.
// Failures are logged: the upload itself is safe here, and a node that lacks the package asks for it.
func (s *Store) replicateTo(ctx context.Context, k key, send func(ctx context.Context, addr string) error) {
	if s.cfg.Bucket.Shared() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keepPatience)
	defer cancel()
	kept := 0
	for _, addr := range s.peerAddrs() {
		if kept == s.cfg.Replicas || ctx.Err() != nil {
			break
		}
		if err := send(ctx, addr); err != nil {
			s.cfg.Log.Warn("copy code to a node", "addr", addr, "hash", k.hash, "error", err)
			continue
		}
		kept++
	}
}

// keep hands one package to one node and waits until it lies on that node's disk.
func (s *Store) keep(ctx context.Context, addr string, k key, body io.Reader, size int64) error {
	st, stop, err := s.open(ctx, addr, keepPatience)
	if err != nil {
		return err
	}
	defer stop()
	head := binary.LittleEndian.AppendUint64(appendRequest(nil, operationKeep, k), uint64(size))
	if _, err := st.Write(head); err != nil {
		return err
	}
	if _, err := io.Copy(struct{ io.Writer }{st}, body); err != nil {
		return err
	}
	return readStatus(st)
}

// open opens a stream that ends with ctx or after patience. stop releases it.
func (s *Store) open(ctx context.Context, addr string, patience time.Duration) (transport.Stream, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	st, err := s.peers.Open(ctx, addr, transport.ChannelCode)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	unhook := context.AfterFunc(ctx, st.Cancel)
	return st, func() {
		unhook()
		st.Cancel()
		cancel()
	}, nil
}

func readStatus(r io.Reader) error {
	var status [1]byte
	if _, err := io.ReadFull(r, status[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return starling.Errorf(starling.Unavailable, "ask node for code", "no answer: %w", err)
	}
	if status[0] == 0 {
		return nil
	}
	return starling.Errorf(starling.Kind(status[0]-1), "ask node for code", "the node refused: %s", starling.Kind(status[0]-1))
}
