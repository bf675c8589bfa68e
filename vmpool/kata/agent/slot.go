package agent

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

const blkFlushBuffers = 0x1261

// A part is a stretch of a disk in bytes.
type part struct{ start, size int64 }

const (
	sizesOption = "sizes=%d+%d"
	blockBytes  = 4096
)

// SizesOption says to the agent that an image is two: meta bytes that describe it, and behind them data bytes of content. Both are multiples
// of 4096.
func SizesOption(meta, data int64) string { return fmt.Sprintf(sizesOption, meta, data) }

// mountCode mounts the code slot: the package itself, or, when the caller asks for layers too, a folder with the package and one with
// its layers. The device was in the template with nothing on it, so what the kernel remembers of its blocks is dropped first.
func (g *guest) mountCode(in []byte) ([]byte, error) {
	if err := g.mayHaveCode(); err != nil {
		return nil, err
	}
	at, layers, sizes := taskRoot, false, ""
	err := within(in, []protowire.Number{1, 6}, func(v value) { layers = layers || string(v.bytes) == LayerPoint })
	if err == nil {
		err = within(in, []protowire.Number{1, 5}, func(v value) { sizes = string(v.bytes) })
	}
	if err != nil {
		return nil, err
	}
	if layers {
		at = slotRoot
	}
	device, options, err := g.openSlot(sizes)
	if err != nil {
		return nil, err
	}
	if err := unix.Mount(device, at, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		return nil, fmt.Errorf("mount code: %w", err)
	}
	if !layers {
		return nil, nil
	}
	return nil, mountAll([]mount{{slotRoot + "/" + CodeFolder, taskRoot, "", unix.MS_BIND, ""}, {slotRoot + "/" + LayerFolder, layerRoot, "", unix.MS_BIND, ""}})
}

// openSlot drops what the kernel remembers of the slot and returns what is to be mounted: the disk, or, of an image of such sizes, a
// partition with its description, and one with its content as an option. No table on the disk says so: nobody but the host knows.
func (g *guest) openSlot(sizes string) (device, options string, err error) {
	f, err := os.Open(g.code)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkFlushBuffers, 0); e != 0 {
		return "", "", fmt.Errorf("flush code slot: %w", e)
	}
	if sizes == "" {
		return g.code, "", nil
	}
	parts, err := partsOf(sizes)
	if err != nil {
		return "", "", err
	}
	for i, p := range parts {
		if err := addPartition(f, i+1, p); err != nil {
			return "", "", fmt.Errorf("divide code slot: %w", err)
		}
	}
	if len(parts) > 1 {
		options = "device=" + g.code + "2"
	}
	return g.code + "1", options, nil
}

// partsOf reads a SizesOption. An image without content has one part.
func partsOf(sizes string) ([]part, error) {
	var meta, data int64
	if n, err := fmt.Sscanf(sizes, sizesOption, &meta, &data); n != 2 || err != nil || meta <= 0 || data < 0 || meta%blockBytes != 0 || data%blockBytes != 0 {
		return nil, refuse(invalidArgument, "%q says nothing of an image's sizes", sizes)
	}
	parts := []part{{0, meta}}
	if data > 0 {
		parts = append(parts, part{meta, data})
	}
	return parts, nil
}

func addPartition(disk *os.File, number int, p part) error {
	as := unix.BlkpgPartition{Start: p.start, Length: p.size, Pno: int32(number)}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(as)), Data: (*byte)(unsafe.Pointer(&as))}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); e != 0 {
		return e
	}
	return nil
}
