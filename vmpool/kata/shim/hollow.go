package shim

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// HollowDir is the folder beside the shim with libraries that take the place of those QEMU is linked with and does not use.
const HollowDir = "lib"

// unused is the library that is replaced, and how the names begin that QEMU takes from it: a disassembler, for a monitor that nobody
// types at. Its tables are pointers, which the loader writes anew in each process: 1.3 MB of every VM.
const unused, unusedPrefix = "libcapstone.so.", "cs_"

// Hollow makes the libraries in dir that the emulator at path can do without. There may be none.
func Hollow(dir, path string) error {
	f, err := elf.Open(path)
	if format := (*elf.FormatError)(nil); errors.As(err, &format) {
		return nil // a script, which may start anything
	}
	if err != nil {
		return err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(needed, func(name string) bool { return strings.HasPrefix(name, unused) })
	if at < 0 || f.Machine != elf.EM_X86_64 {
		return nil
	}
	imported, err := f.ImportedSymbols()
	if err != nil {
		return err
	}
	var names []string
	for _, s := range imported {
		if strings.HasPrefix(s.Name, unusedPrefix) {
			names = append(names, s.Name)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, HollowDir), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, HollowDir, needed[at]), library(needed[at], names), 0o600)
}

// failing is a function that returns 3, which every function of the library would call an error.
var failing = []byte{0xb8, 3, 0, 0, 0, 0xc3} // mov eax, 3; ret

// Sizes and places of a library: a page that is read and executed, and one for the loader's table.
const (
	page       = 0x1000
	headerSize = 64
	segment    = 56
	segments   = 4
	symbolSize = 24
)

// library returns a shared library for x86-64 whose functions all fail.
func library(soname string, functions []string) []byte {
	strs := append([]byte{0}, soname...)
	strs = append(strs, 0)
	var symbols bytes.Buffer
	put := func(v any) { _ = binary.Write(&symbols, binary.LittleEndian, v) } // into memory, which does not fail
	count := uint32(len(functions) + 1)
	hashAt := uint64(headerSize + segments*segment)
	symbolsAt := (hashAt + 4*uint64(3+count) + 7) &^ 7
	stringsAt := symbolsAt + symbolSize*uint64(count)
	names := 0
	for _, name := range functions {
		names += len(name) + 1
	}
	codeAt := stringsAt + uint64(len(strs)+names)
	put(elf.Sym64{})
	for _, name := range functions {
		put(elf.Sym64{Name: uint32(len(strs)), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: codeAt, Size: uint64(len(failing))})
		strs = append(append(strs, name...), 0)
	}
	end := codeAt + uint64(len(failing))

	var out bytes.Buffer
	write := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) }
	pad := func(to uint64) { out.Write(make([]byte, int(to)-out.Len())) }
	tags := []elf.Dyn64{{Tag: int64(elf.DT_SONAME), Val: 1}, {Tag: int64(elf.DT_HASH), Val: hashAt}, {Tag: int64(elf.DT_SYMTAB), Val: symbolsAt},
		{Tag: int64(elf.DT_STRTAB), Val: stringsAt}, {Tag: int64(elf.DT_STRSZ), Val: uint64(len(strs))}, {Tag: int64(elf.DT_SYMENT), Val: symbolSize}, {}}
	tableSize := uint64(len(tags) * 16)
	head := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: headerSize,
		Ehsize: headerSize, Phentsize: segment, Phnum: segments}
	copy(head.Ident[:], elf.ELFMAG)
	head.Ident[elf.EI_CLASS], head.Ident[elf.EI_DATA], head.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	write(head)
	write(elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Filesz: end, Memsz: end, Align: page})
	for _, kind := range []elf.ProgType{elf.PT_LOAD, elf.PT_DYNAMIC} {
		write(elf.Prog64{Type: uint32(kind), Flags: uint32(elf.PF_R | elf.PF_W), Off: page, Vaddr: page, Paddr: page, Filesz: tableSize, Memsz: tableSize, Align: page})
	}
	write(elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)})
	// All names are in one bucket, each the next of the one before.
	write([]uint32{1, count, min(1, count-1)})
	for i := range count {
		next := i + 1
		if i == 0 || next == count {
			next = 0
		}
		write(next)
	}
	pad(symbolsAt)
	out.Write(symbols.Bytes())
	out.Write(strs)
	out.Write(failing)
	pad(page)
	write(tags)
	return out.Bytes()
}
