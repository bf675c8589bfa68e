package dragonboat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	pb "github.com/lni/dragonboat/v4/raftpb"

	"starling"
)

// Dragonboat's snapshot file: a head of 1 KiB (u64 length, header, CRC-32), blocks of 2 MiB each followed by its
// CRC-32, and a tail of the blocks' total size and a magic number. It is checked here before Dragonboat reads
// it, because Dragonboat panics on a damaged one, on a goroutine where nobody can catch that.
const (
	snapshotSuffix = ".gbsnap"
	snapshotHead   = 1024
	snapshotBlock  = 2 << 20
	snapshotTail   = 16
	snapshotV2     = 2
	crcSize        = 4
)

// verifySnapshots checks every finished snapshot below dir.
func verifySnapshots(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && (strings.HasSuffix(name, ".generating") || strings.HasSuffix(name, ".receiving") || strings.HasSuffix(name, ".streaming")) {
			return filepath.SkipDir // a crash left it; Dragonboat removes it
		}
		if !strings.HasSuffix(p, snapshotSuffix) {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := verifySnapshot(f, info.Size()); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return nil
	})
}

var (
	errSnapshotCut = errors.New("the snapshot is cut")
	errSnapshotSum = errors.New("a checksum of the snapshot does not match")
)

// verifySnapshot checks one snapshot file of the given size.
func verifySnapshot(r io.Reader, size int64) error {
	if size < snapshotHead+snapshotTail {
		return errSnapshotCut
	}
	head := make([]byte, snapshotHead)
	if _, err := io.ReadFull(r, head); err != nil {
		return errSnapshotCut
	}
	n := binary.LittleEndian.Uint64(head)
	if n > snapshotHead-8-crcSize {
		return errSnapshotSum
	}
	header, sum := head[8:8+n], binary.BigEndian.Uint32(head[8+n:])
	if sum != 0 && sum != crc32.ChecksumIEEE(header) {
		return errSnapshotSum
	}
	var h pb.SnapshotHeader
	if err := h.Unmarshal(header); err != nil {
		return fmt.Errorf("the snapshot's header cannot be read: %w", err)
	}
	if h.Version != snapshotV2 || h.ChecksumType != pb.CRC32IEEE {
		return nil // not a kind this version writes
	}
	blocks := size - snapshotHead - snapshotTail
	block := make([]byte, snapshotBlock+crcSize)
	for left := blocks; left > 0; {
		b := block[:min(left, int64(len(block)))]
		if _, err := io.ReadFull(r, b); err != nil || len(b) <= crcSize {
			return errSnapshotCut
		}
		data, sum := b[:len(b)-crcSize], binary.BigEndian.Uint32(b[len(b)-crcSize:])
		if crc32.ChecksumIEEE(data) != sum {
			return errSnapshotSum
		}
		left -= int64(len(b))
	}
	tail := make([]byte, snapshotTail)
	if _, err := io.ReadFull(r, tail); err != nil || binary.LittleEndian.Uint64(tail) != uint64(blocks) {
		return errSnapshotCut
	}
	return nil
}

// lock keeps a second replica, in this process or another, out of the directory. Dragonboat's own lock does not
// hold inside one process.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, "open replica", "%s cannot be written: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, starling.Errorf(starling.Conflict, "open replica", "%s is in use: another process runs this replica", dir).With("InUse")
	}
	return f, nil
}
