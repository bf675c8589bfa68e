package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// A wallClock sets the wall clock of one process wrong, and no other clock: the machine's own stays. It rewrites the
// function of the kernel's vDSO through which a program reads clocks, in that process's copy of it.
type wallClock struct {
	mem  *os.File
	data int64 // address of seconds and nanoseconds that are added
}

// newWallClock takes hold of the wall clock of a process that runs.
func newWallClock(pid int) (*wallClock, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("the wall clock can be set wrong on amd64 only, not on %s", runtime.GOARCH)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	var from, to int64
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "[vdso]") {
			fmt.Sscanf(line, "%x-%x", &from, &to)
		}
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil && err != io.EOF {
		mem.Close()
		return nil, err
	}
	w := &wallClock{mem: mem}
	if err := w.install(image, from); err != nil {
		mem.Close()
		return nil, err
	}
	return w, nil
}

// shifted asks the kernel for the time and adds what stands behind it when the clock is CLOCK_REALTIME.
var shifted = []byte{
	0xb8, 228, 0, 0, 0, // mov eax, SYS_clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi
	0x75, 45, // jne end
	0x48, 0x8b, 0x0d, 46, 0, 0, 0, // mov rcx, [seconds]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0x48, 0x8b, 0x0d, 44, 0, 0, 0, // mov rcx, [nanoseconds]
	0x48, 0x01, 0x4e, 0x08, // add [rsi+8], rcx
	0x48, 0x81, 0x7e, 0x08, 0x00, 0xca, 0x9a, 0x3b, // cmp qword [rsi+8], 1e9
	0x7c, 14, // jl end
	0x90, 0x90, 0x90, // nop
	0x48, 0x81, 0x6e, 0x08, 0x00, 0xca, 0x9a, 0x3b, // sub qword [rsi+8], 1e9
	0x48, 0xff, 0x06, // inc qword [rsi]
	0x31, 0xc0, // end: xor eax, eax
	0xc3,                         // ret
	0x90, 0x90, 0x90, 0x90, 0x90, // the two numbers follow
}

// install puts shifted over gettimeofday, which Go does not call, and a jump to it over the beginning of clock_gettime.
func (w *wallClock) install(image []byte, base int64) error {
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return err
	}
	at := map[string]elf.Symbol{}
	for _, s := range symbols {
		at[s.Name] = s
	}
	read, room := at["__vdso_clock_gettime"], at["__vdso_gettimeofday"]
	if read.Value == 0 || int(room.Size) < len(shifted)+16 || read.Value%8 != 0 {
		return fmt.Errorf("the kernel's vDSO is not as expected: %+v", at)
	}
	w.data = base + int64(room.Value) + int64(len(shifted))
	if w.data%8 != 0 {
		return fmt.Errorf("the two numbers would lie at %x", w.data)
	}
	if image[read.Value] == 0xe9 {
		return nil // it was done before
	}
	if _, err := w.mem.WriteAt(append(append([]byte{}, shifted...), make([]byte, 16)...), base+int64(room.Value)); err != nil {
		return err
	}
	jump := append([]byte{0xe9}, binary.LittleEndian.AppendUint32(nil, uint32(room.Value-read.Value-5))...)
	copy(image[read.Value:], jump)
	_, err = w.mem.WriteAt(image[read.Value:read.Value+8], base+int64(read.Value)) // one aligned word
	return err
}

// set makes the process's wall clock wrong by offset from now on.
func (w *wallClock) set(offset time.Duration) error {
	whole := offset.Truncate(time.Second)
	if whole > offset {
		whole -= time.Second
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(whole/time.Second))
	_, err := w.mem.WriteAt(binary.LittleEndian.AppendUint64(b, uint64(offset-whole)), w.data)
	return err
}

func (w *wallClock) close() { w.mem.Close() }

// TestWallClockOfOneProcessCanBeWrong sets the wall clock of this very process wrong and puts it right again.
func TestWallClockOfOneProcessCanBeWrong(t *testing.T) {
	w, err := newWallClock(os.Getpid())
	if err != nil {
		t.Skip(err)
	}
	defer w.close()
	for _, offset := range []time.Duration{time.Hour, -time.Hour - 700*time.Millisecond, 1500 * time.Millisecond, 0} {
		before := time.Now()
		if err := w.set(offset); err != nil {
			t.Fatal(err)
		}
		after := time.Now()
		monotonic := after.Sub(before)
		if got := after.Round(0).Sub(before.Round(0)) - monotonic; monotonic < 0 || monotonic > time.Minute || (got-offset).Abs() > time.Second/10 {
			t.Errorf("by %v: the wall clock jumped by %v while the monotonic one went on by %v", offset, got, monotonic)
		}
		if err := w.set(0); err != nil {
			t.Fatal(err)
		}
	}
}
