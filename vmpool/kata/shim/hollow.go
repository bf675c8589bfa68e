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

// Sizes in a library.
const (
	page       = 0x1000
	headerSize = 64
	segment    = 56
	segments   = 4
	symbolSize = 24
)

// library returns a shared library for x86-64 whose functions all fail: pages that are read and executed, and one for the loader's table.
func library(soname string, functions []string) []byte {
	names := "\x00" + soname + "\x00" + strings.Join(functions, "\x00") + "\x00"
	count := uint64(len(functions) + 1) // the first symbol is no symbol
	hashAt := uint64(headerSize + segments*segment)
	symbolsAt := (hashAt + 4*(3+count) + 7) &^ 7
	namesAt := symbolsAt + symbolSize*count
	codeAt := namesAt + uint64(len(names))
	end := codeAt + uint64(len(failing))
	tableAt := (end + page - 1) &^ (page - 1)
	table := []elf.Dyn64{{Tag: int64(elf.DT_SONAME), Val: 1}, {Tag: int64(elf.DT_HASH), Val: hashAt}, {Tag: int64(elf.DT_SYMTAB), Val: symbolsAt},
		{Tag: int64(elf.DT_STRTAB), Val: namesAt}, {Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))}, {Tag: int64(elf.DT_SYMENT), Val: symbolSize}, {}}

	var out bytes.Buffer
	write := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) } // into memory, which does not fail
	pad := func(to uint64) { out.Write(make([]byte, int(to)-out.Len())) }
	write(header())
	write(parts(end, tableAt, uint64(len(table)*16)))
	write(hash(uint32(count)))
	pad(symbolsAt)
	write(symbols(soname, functions, codeAt))
	out.WriteString(names)
	out.Write(failing)
	pad(tableAt)
	write(table)
	return out.Bytes()
}

func header() elf.Header64 {
	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: headerSize, Ehsize: headerSize,
		Phentsize: segment, Phnum: segments}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	return h
}

// parts say what the loader maps: the pages up to end, the table, which older loaders write to, and a stack that is not executed.
func parts(end, tableAt, tableSize uint64) []elf.Prog64 {
	table := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Off: tableAt, Vaddr: tableAt, Paddr: tableAt, Filesz: tableSize, Memsz: tableSize, Align: page}
	named := table
	named.Type = uint32(elf.PT_DYNAMIC)
	return []elf.Prog64{{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Filesz: end, Memsz: end, Align: page}, table, named,
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)}}
}

// hash returns a table with all symbols in one bucket, each followed by the next.
func hash(count uint32) []uint32 {
	words := []uint32{1, count, min(1, count-1), 0}
	for next := uint32(2); next < count; next++ {
		words = append(words, next)
	}
	return append(words, 0)[:3+count]
}

// symbols returns the functions, all of which are the one at code.
func symbols(soname string, functions []string, code uint64) []elf.Sym64 {
	out := []elf.Sym64{{}}
	at := len(soname) + 2
	for _, name := range functions {
		out = append(out, elf.Sym64{Name: uint32(at), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: code, Size: uint64(len(failing))})
		at += len(name) + 1
	}
	return out
}
