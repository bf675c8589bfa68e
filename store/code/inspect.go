package code

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"

	"starling"
)

const (
	inspectMax  = 5 * time.Second // longest look at one package
	linkMax     = 255             // bytes of a symbolic link's target
	ratioFree   = 1 << 20         // unpacked bytes below which the ratio does not matter
	localHeader = 30              // bytes of the smallest local file header
)

// Limits bound one package.
type Limits struct {
	Zip      int64 // bytes of the zip
	Unpacked int64 // bytes of all its files
	Entries  int
	Ratio    int64         // unpacked bytes for each byte of the zip
	Time     time.Duration // to look through it
}

// DefaultLimits are those of DESIGN.
func DefaultLimits() Limits {
	return Limits{Zip: starling.CodeZipMax, Unpacked: starling.CodeUnpackedMax, Entries: starling.CodeEntryMax,
		Ratio: starling.CodeRatioMax, Time: inspectMax}
}

type kind uint8

const (
	kindFile kind = iota
	kindFolder
	kindLink
)

// An entry is one thing to unpack: its name is checked and its mode is ours, not the archive's.
type entry struct {
	name   string // clean, without a final slash
	kind   kind
	mode   fs.FileMode // 0644 or 0755
	target string      // of a link
	file   *zip.File
}

// A plan is a package that passed every check and how to unpack it.
type plan struct {
	entries []entry
	byName  map[string]int // place in entries; -1 for a folder that only the paths below it imply
	size    int64          // unpacked bytes
	blocks  int64          // bytes on disk, each file rounded up to 4 KiB
}

// inspect reads a whole zip and returns its plan. It writes nothing. Every byte is inflated once, so that
// the sizes and checksums are facts and not the archive's word. A package that breaks a rule is Invalid,
// one that breaks a limit TooLarge.
func inspect(ctx context.Context, r io.ReaderAt, size int64, lim Limits) (*plan, error) {
	deadline, cancel := context.WithTimeout(ctx, lim.Time)
	defer cancel()
	if size > lim.Zip {
		return nil, refuseSize("the zip has more than %d bytes: leave out what the function does not need", lim.Zip)
	}
	if err := checkDirectory(deadline, r, size, lim); err != nil {
		return nil, timed(ctx, err, lim)
	}
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "check package", "it is no zip: %w", err).With("InvalidPackage")
	}
	p, err := newPlan(z, lim)
	if err != nil {
		return nil, err
	}
	if err := checkOverlap(z, size); err != nil {
		return nil, err
	}
	if err := p.measure(deadline, size, lim); err != nil {
		return nil, timed(ctx, err, lim)
	}
	if err := p.checkLinks(); err != nil {
		return nil, err
	}
	return p, nil
}

// timed turns our own deadline into a refusal and leaves the caller's cancellation alone.
func timed(ctx context.Context, err error, lim Limits) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return refuseSize("it takes more than %s to unpack: use fewer or smaller files", lim.Time)
	}
	return err
}

// newPlan checks names, kinds and methods of all entries, before a byte is inflated.
func newPlan(z *zip.Reader, lim Limits) (*plan, error) {
	if len(z.File) == 0 {
		return nil, starling.Errorf(starling.Invalid, "check package", "the zip is empty: pack the files of the function").With("InvalidPackage")
	}
	if len(z.File) > lim.Entries {
		return nil, refuseSize("it has %d entries: use at most %d", len(z.File), lim.Entries)
	}
	p := &plan{byName: make(map[string]int, len(z.File))}
	looks := make(map[string]string, len(z.File)) // compatibility form → name
	for _, f := range z.File {
		e, err := newEntry(f)
		if err != nil {
			return nil, err
		}
		if err := p.add(e, looks); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func newEntry(f *zip.File) (entry, error) {
	if err := checkName(f.Name); err != nil {
		return entry{}, err
	}
	e := entry{name: strings.TrimSuffix(f.Name, "/"), mode: 0o644, file: f}
	if f.Flags&1 != 0 {
		return e, refuse(f.Name, "it is encrypted: pack it without a password")
	}
	if f.Method != zip.Store && f.Method != zip.Deflate {
		return e, refuse(f.Name, "compression method %d is not supported: use deflate or store", f.Method)
	}
	switch mode := f.Mode(); {
	case strings.HasSuffix(f.Name, "/") || mode.IsDir():
		e.kind, e.mode = kindFolder, 0o755
		if f.UncompressedSize64 != 0 {
			return e, refuse(f.Name, "it is a folder with content")
		}
	case mode&fs.ModeSymlink != 0:
		e.kind = kindLink
		if f.UncompressedSize64 > linkMax {
			return e, refuse(f.Name, "its link target has more than %d bytes", linkMax)
		}
	case mode.IsRegular():
		if mode&0o111 != 0 || e.name == "bootstrap" { // zips made on Windows carry no mode
			e.mode = 0o755
		}
	default:
		return e, refuse(f.Name, "it is a device, pipe or socket: only files, folders and links can be deployed")
	}
	return e, nil
}

// add enters e and the folders its path implies. A name may occur once, in one kind; two names that look
// the same after normalisation are refused, because a person could not tell which one runs.
func (p *plan) add(e entry, looks map[string]string) error {
	for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
		i, ok := p.byName[dir]
		if !ok {
			if err := lookAlike(dir, looks); err != nil {
				return err
			}
			p.byName[dir] = -1
			continue
		}
		if i >= 0 && p.entries[i].kind != kindFolder {
			return refuse(e.name, "%q is both a file and a folder", dir)
		}
		break
	}
	i, seen := p.byName[e.name]
	if seen && (i >= 0 || e.kind != kindFolder) {
		return refuse(e.name, "its name occurs twice")
	}
	if err := lookAlike(e.name, looks); err != nil {
		return err
	}
	p.byName[e.name] = len(p.entries)
	p.entries = append(p.entries, e)
	return nil
}

// lookAlike enters name by its compatibility form and refuses it when another name has the same.
func lookAlike(name string, looks map[string]string) error {
	look := norm.NFKC.String(name)
	if other, ok := looks[look]; ok && other != name {
		return refuse(name, "its name looks the same as that of another entry")
	}
	looks[look] = name
	return nil
}

// checkOverlap refuses entries whose bytes overlap: the trick by which a small zip holds the same bomb many times.
func checkOverlap(z *zip.Reader, size int64) error {
	type span struct {
		from, to int64
		name     string
	}
	spans := make([]span, 0, len(z.File))
	for _, f := range z.File {
		from, err := f.DataOffset()
		if err != nil {
			return refuse(f.Name, "its header is damaged")
		}
		to := from + int64(f.CompressedSize64)
		if to < from || to > size {
			return refuse(f.Name, "it reaches past the end of the zip")
		}
		spans = append(spans, span{from, to, f.Name})
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i := 1; i < len(spans); i++ {
		if spans[i].from < spans[i-1].to+localHeader {
			return refuse(spans[i].name, "it overlaps entry %q", spans[i-1].name)
		}
	}
	return nil
}

// measure inflates every entry and counts what comes out.
func (p *plan) measure(ctx context.Context, zipSize int64, lim Limits) error {
	buf := make([]byte, 64<<10)
	most := min(lim.Unpacked, max(zipSize*lim.Ratio, ratioFree))
	for i := range p.entries {
		e := &p.entries[i]
		if e.kind == kindFolder {
			p.blocks += 4096
			continue
		}
		n, err := p.inflate(ctx, e, most-p.size, buf)
		if err != nil {
			return err
		}
		p.size += n
		p.blocks += (n + 4095) &^ 4095
		if p.size > most {
			if p.size > lim.Unpacked {
				return refuseSize("entry %q: the package unpacks to more than %d bytes: leave out what the function does not need", e.name, lim.Unpacked)
			}
			return refuseSize("entry %q: the package unpacks to more than %d times its size: it looks like a bomb", e.name, lim.Ratio)
		}
	}
	return nil
}

// inflate reads e to its end, to one byte past left, or to the end of ctx. It fills in a link's target.
func (p *plan) inflate(ctx context.Context, e *entry, left int64, buf []byte) (int64, error) {
	r, err := e.file.Open()
	if err != nil {
		return 0, refuse(e.name, "it cannot be read: %v", err)
	}
	defer r.Close()
	var n int64
	for n <= left {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := r.Read(buf)
		if e.kind == kindLink {
			if e.target += string(buf[:m]); len(e.target) > linkMax {
				return n, refuse(e.name, "its link target has more than %d bytes", linkMax)
			}
		}
		n += int64(m)
		if err == io.EOF {
			break
		}
		if errors.As(err, new(*os.PathError)) {
			return n, err // our disk, not the archive
		}
		if err != nil {
			return n, refuse(e.name, "it is damaged: %v", err)
		}
	}
	if e.kind == kindLink && strings.ContainsAny(e.target, "\x00\\\n") {
		return n, refuse(e.name, "its link target holds a character that is not allowed")
	}
	return n, nil
}

var directorySignature = []byte("PK\x01\x02")

// checkDirectory bounds the number of directory headers before the zip reader makes an object of each: it
// believes the bytes, not the count at the end, and 50 MiB hold a million of them. Headers of archives
// stored inside count too; a package that has so many needs fewer files anyway.
func checkDirectory(ctx context.Context, r io.ReaderAt, size int64, lim Limits) error {
	buf := make([]byte, 256<<10)
	keep := len(directorySignature) - 1
	count, at, held := 0, int64(0), 0
	for at < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.ReadAt(buf[held:min(len(buf), held+int(size-at))], at)
		if n == 0 && err != nil {
			return err
		}
		at += int64(n)
		window := buf[:held+n]
		count += bytes.Count(window, directorySignature)
		if count > lim.Entries {
			return refuseSize("it has more than %d entries: pack fewer files", lim.Entries)
		}
		held = copy(buf, window[max(0, len(window)-keep):])
	}
	return nil
}
