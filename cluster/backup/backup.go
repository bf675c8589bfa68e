// Package backup is the file that holds the whole replicated state of one cluster: its partition map, its catalog, its
// members and claims, and on request the CA's private key. Code packages are not in it: they lie in the bucket.
//
// A file is: magic, u16 version; then sections, each u32 length, u8 kind, body; the last one is the end; then the
// SHA-256 of everything before. All numbers are little-endian. Sections come in this order: the header (JSON), the
// state in pieces, the CA's key (PEM, optional), the end (JSON).
package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"

	"starling"
	"starling/cluster"
)

const (
	magic      = "STARBACK"
	version    = 1
	sectionMax = 1 << 20 // bytes of one section
	headMax    = 5       // u32 length, u8 kind

	sectionHeader = 1
	sectionState  = 2
	sectionKey    = 3
	sectionEnd    = 4
)

// A Header says what a backup is of.
type Header struct {
	Cluster   string          `json:"cluster"`
	Created   int64           `json:"created"` // Unix seconds
	Index     uint64          `json:"index"`   // of the last command in the state
	Leader    starling.NodeID `json:"leader"`  // who gave it
	Size      int64           `json:"size"`    // bytes of the state
	Authority []byte          `json:"authority"`
}

// An End holds the sums by which a backup is judged, in hexadecimal.
type End struct {
	StateHash   string `json:"stateHash"`   // SHA-256 of the state's snapshot
	CatalogHash string `json:"catalogHash"` // of accounts, keys and functions: the same after a restore
}

// NewEnd returns the sums as they are written.
func NewEnd(state, catalog [32]byte) End {
	return End{StateHash: hex.EncodeToString(state[:]), CatalogHash: hex.EncodeToString(catalog[:])}
}

// A Writer writes one backup. After an error it does nothing more; End returns the first one.
type Writer struct {
	w   io.Writer
	sum hash.Hash
	err error
}

// NewWriter begins a backup.
func NewWriter(w io.Writer, h Header) *Writer {
	out := &Writer{w: w, sum: sha256.New()}
	out.write(binary.LittleEndian.AppendUint16([]byte(magic), version))
	out.json(sectionHeader, h)
	return out
}

func (o *Writer) write(b []byte) {
	if o.err != nil {
		return
	}
	o.sum.Write(b) // a hash never fails
	_, o.err = o.w.Write(b)
}

func (o *Writer) section(kind byte, body []byte) {
	o.write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), kind))
	o.write(body)
}

func (o *Writer) json(kind byte, v any) {
	body, err := json.Marshal(v)
	if err != nil && o.err == nil {
		o.err = err
	}
	o.section(kind, body)
}

// State adds the next bytes of the state, at most 1 MiB at once.
func (o *Writer) State(piece []byte) error {
	o.section(sectionState, piece)
	return o.err
}

// Key adds the CA's private key. Whoever reads the file can then admit nodes.
func (o *Writer) Key(pem []byte) { o.section(sectionKey, pem) }

// End finishes the backup.
func (o *Writer) End(e End) error {
	o.json(sectionEnd, e)
	sum := o.sum.Sum(nil)
	o.write(sum)
	return o.err
}

// A Reader reads one backup. State reads as io.Reader to the end of the state; then End tells the rest.
type Reader struct {
	Header Header
	r      io.Reader
	sum    hash.Hash
	piece  []byte // of the state, not read yet
	kind   byte   // of the section after the state
	body   []byte
	err    error
}

// NewReader reads the header.
func NewReader(r io.Reader) (*Reader, error) {
	in := &Reader{r: r, sum: sha256.New()}
	top := make([]byte, len(magic)+2)
	if err := in.full(top); err != nil || string(top[:len(magic)]) != magic {
		return nil, starling.Errorf(starling.Invalid, "read backup", "this is no backup of a cluster")
	}
	if v := binary.LittleEndian.Uint16(top[len(magic):]); v != version {
		return nil, starling.Errorf(starling.Invalid, "read backup", "the backup has format %d and this program reads %d: use the program that wrote it, or a newer one", v, version)
	}
	kind, body, err := in.next()
	if err != nil {
		return nil, err
	}
	if kind != sectionHeader || json.Unmarshal(body, &in.Header) != nil {
		return nil, damaged("its header cannot be read")
	}
	return in, nil
}

func damaged(what string) error {
	return starling.Errorf(starling.Invalid, "read backup", "the backup is damaged, %s: take another one", what).With("DamagedBackup")
}

func (in *Reader) full(b []byte) error {
	_, err := io.ReadFull(in.r, b)
	in.sum.Write(b) // a hash never fails
	return err
}

func (in *Reader) next() (kind byte, body []byte, err error) {
	head := make([]byte, headMax)
	if in.full(head) != nil {
		return 0, nil, damaged("it is cut short")
	}
	n := binary.LittleEndian.Uint32(head)
	if n > sectionMax {
		return 0, nil, damaged("a section is too long")
	}
	body = make([]byte, n)
	if in.full(body) != nil {
		return 0, nil, damaged("it is cut short")
	}
	return head[4], body, nil
}

// Read returns the bytes of the state. It implements io.Reader.
func (in *Reader) Read(b []byte) (int, error) {
	for len(in.piece) == 0 {
		if in.err != nil {
			return 0, in.err
		}
		kind, body, err := in.next()
		switch {
		case err != nil:
			in.err = err
		case kind == sectionState:
			in.piece = body
		default:
			in.kind, in.body, in.err = kind, body, io.EOF
		}
	}
	n := copy(b, in.piece)
	in.piece = in.piece[n:]
	return n, nil
}

// End reads what follows the state, which must have been read to its end, and checks the sum over the whole file. key is
// nil when the backup holds none.
func (in *Reader) End() (e End, key []byte, err error) {
	if in.err != io.EOF {
		return e, nil, errors.Join(damaged("its state was not read to the end"), in.err)
	}
	kind, body := in.kind, in.body
	if kind == sectionKey {
		key = body
		if kind, body, err = in.next(); err != nil {
			return e, nil, err
		}
	}
	if kind != sectionEnd || json.Unmarshal(body, &e) != nil {
		return e, nil, damaged("its end cannot be read")
	}
	want, sum := in.sum.Sum(nil), make([]byte, sha256.Size)
	if _, err := io.ReadFull(in.r, sum); err != nil || [32]byte(sum) != [32]byte(want) {
		return e, nil, damaged("its checksum is wrong")
	}
	if n, _ := in.r.Read(make([]byte, 1)); n > 0 {
		return e, nil, damaged("something follows its end")
	}
	return e, key, nil
}

// A Report is what verifying a backup found.
type Report struct {
	Header  Header          `json:"header"`
	End     End             `json:"end"`
	Summary cluster.Summary `json:"summary"`
	HasKey  bool            `json:"hasCAKey"`
}

// Verify reads a whole backup, rebuilds the state and recomputes its hashes from that. The error is Invalid when anything
// differs from what the backup says of itself.
func Verify(r io.Reader) (rep Report, s *cluster.State, key []byte, err error) {
	in, err := NewReader(r)
	if err != nil {
		return rep, nil, nil, err
	}
	rep.Header = in.Header
	s = cluster.NewState()
	if err := s.Restore(in); err != nil {
		if in.err != nil && in.err != io.EOF {
			return rep, nil, nil, in.err
		}
		return rep, nil, nil, starling.Errorf(starling.Invalid, "read backup", "the state in it cannot be read: take another one: %w", err).With("DamagedBackup")
	}
	if n, err := io.Copy(io.Discard, in); n > 0 || err != nil {
		return rep, nil, nil, errors.Join(damaged("something follows its state"), err)
	}
	if rep.End, key, err = in.End(); err != nil {
		return rep, nil, nil, err
	}
	rep.Summary, rep.HasKey = s.Summary(), key != nil
	if NewEnd(s.Hash(), s.CatalogHash()) != rep.End || rep.Summary.Cluster != rep.Header.Cluster || rep.Summary.Index != rep.Header.Index {
		return rep, nil, nil, damaged("its state is not the one that it names")
	}
	return rep, s, key, nil
}

// AddKey copies a backup and puts the CA's private key in.
func AddKey(w io.Writer, r io.Reader, key []byte) error {
	in, err := NewReader(r)
	if err != nil {
		return err
	}
	out := NewWriter(w, in.Header)
	if _, err := io.CopyBuffer(writerFunc(out.State), struct{ io.Reader }{in}, make([]byte, sectionMax/4)); err != nil {
		return err
	}
	end, _, err := in.End()
	if err != nil {
		return err
	}
	out.Key(key)
	return out.End(end)
}

// A writerFunc lets io.CopyBuffer write pieces.
type writerFunc func([]byte) error

func (f writerFunc) Write(b []byte) (int, error) {
	if err := f(b); err != nil {
		return 0, err
	}
	return len(b), nil
}
