package dragonboat

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"

	"starling"
)

const (
	markFile = "applied"
	markSize = 12 // u64 index, u32 CRC-32C of it; little-endian
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A mark is the index of the newest command that was applied, in a file that is written at each one and never
// synced: it survives the death of the process, though not that of the machine. What is applied is in the log and
// synced, so the mark is never ahead of a sound log; a log that ends before it has lost its end. It belongs to the
// goroutine that applies.
type mark struct {
	file *os.File
	high uint64 // what the file holds
}

// openMark opens the file of a replica's directory, empty at first. One that cannot be read counts as none: it only
// adds to what the guard file notes.
func openMark(dir string) (*mark, error) {
	f, err := os.OpenFile(filepath.Join(dir, markFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, starling.Errorf(starling.Internal, "open replica", "%w", err)
	}
	m := &mark{file: f}
	var b [markSize]byte
	if _, err := f.ReadAt(b[:], 0); err == nil && crc32.Checksum(b[:8], castagnoli) == binary.LittleEndian.Uint32(b[8:]) {
		m.high = binary.LittleEndian.Uint64(b[:])
	}
	return m, nil
}

// raise notes index. Commands that are applied again after a start cost nothing. A write that fails leaves an older
// mark, which is true as well.
func (m *mark) raise(index uint64) {
	if m == nil || index <= m.high {
		return
	}
	var b [markSize]byte
	binary.LittleEndian.PutUint64(b[:], index)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[:8], castagnoli))
	if _, err := m.file.WriteAt(b[:], 0); err == nil {
		m.high = index
	}
}
