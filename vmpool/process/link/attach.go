package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
)

// An Attach and its answer lie on the way of a start, and code that ran last some time ago is slow: the general encoding took 0.2 ms
// of it. So they are numbers and strings in order, behind a first byte that no other message has.

const (
	attachMark = 1
	// StringOverhead is what a string takes of such a message beside its bytes, at most.
	StringOverhead = binary.MaxVarintLen32
)

// appendAttach appends m, of which only the fields of an Attach and of its answer count.
func appendAttach(b []byte, m *Message) []byte {
	b = binary.AppendUvarint(append(b, attachMark), m.ID)
	b = binary.AppendUvarint(b, uint64(m.MemoryBytes))
	b = binary.AppendUvarint(b, math.Float64bits(m.CPU))
	b = binary.AppendUvarint(b, uint64(m.Processes))
	b = binary.AppendUvarint(b, uint64(len(m.Layers)))
	b = binary.AppendUvarint(b, uint64(len(m.Env)))
	for _, s := range slices.Concat([]string{m.Error, m.Entrypoint, m.Code}, m.Layers, m.Env) {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	return b
}

// readAttach reads into m what appendAttach wrote after the mark.
func readAttach(b []byte, m *Message) error {
	ok := true
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			ok, b = false, nil
			return 0
		}
		b = b[n:]
		return v
	}
	text := func() string {
		n := number()
		if n > uint64(len(b)) {
			ok, b = false, nil
			return ""
		}
		s := string(b[:n])
		b = b[n:]
		return s
	}
	m.Op, m.ID, m.MemoryBytes = Attach, number(), int64(number())
	m.CPU, m.Processes = math.Float64frombits(number()), int(number())
	layers, n := number(), number()
	m.Error, m.Entrypoint, m.Code = text(), text(), text()
	for ; layers > 0 && ok; layers-- {
		m.Layers = append(m.Layers, text())
	}
	for ; n > 0 && ok; n-- {
		m.Env = append(m.Env, text())
	}
	if !ok || len(b) > 0 {
		return errors.New("not the fields of an attachment")
	}
	return nil
}

// A Tree is files for a sandbox: a folder, or a mount that stands in no namespace.
type Tree struct {
	Dir   string
	Mount int // -1 for a folder
}

// Trees returns what an Attach is about, its code and its layers: Code and each of Layers names a folder or, when it is empty, stands for
// the next of the descriptors that came with the message.
func (m *Message) Trees(fds []int) (code Tree, layers []Tree, err error) {
	for _, dir := range append([]string{m.Code}, m.Layers...) {
		t := Tree{dir, -1}
		switch {
		case filepath.IsAbs(dir):
		case dir == "" && len(fds) > 0:
			t.Mount, fds = fds[0], fds[1:]
		default:
			return Tree{}, nil, fmt.Errorf("code folder %q is not absolute, and no descriptor came instead", dir)
		}
		layers = append(layers, t)
	}
	return layers[0], layers[1:], nil
}
