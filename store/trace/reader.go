package trace

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/parquet-go/parquet-go"

	"starling"
)

// A Reader returns the calls of a trace in the order they were written, which is about that of their ends. It belongs
// to one goroutine; Close it.
type Reader struct {
	files []string
	file  *os.File
	rows  *parquet.GenericReader[Call]
	batch []Call
	next  int
}

// OpenReader reads path: one file, or a folder with those of one recorder or several. Without any file in it the kind
// of the error is NotFound.
func OpenReader(path string) (*Reader, error) {
	files, err := Files(path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, starling.Errorf(starling.NotFound, "open trace", "no file ending in %s is in %s: a running node finishes one every few minutes, and when it stops", suffix, path)
	}
	return &Reader{files: files, batch: make([]Call, 0, 1024)}, nil
}

// Next returns the next call; after the last one the error is io.EOF.
func (r *Reader) Next() (Call, error) {
	for r.next == len(r.batch) {
		if err := r.fill(); err != nil {
			return Call{}, err
		}
	}
	r.next++
	return r.batch[r.next-1], nil
}

func (r *Reader) fill() error {
	if r.file == nil {
		if len(r.files) == 0 {
			return io.EOF
		}
		if err := r.open(r.files[0]); err != nil {
			return err
		}
		r.files = r.files[1:]
	}
	n, err := r.rows.Read(r.batch[:cap(r.batch)])
	r.batch, r.next = r.batch[:n], 0
	if errors.Is(err, io.EOF) {
		return r.Close()
	}
	if err != nil {
		return fmt.Errorf("read trace %s: %w", r.file.Name(), err)
	}
	return nil
}

// open checks the file's end before the library's reader, which panics on what is no Parquet file.
func (r *Reader) open(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("open trace: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		var parsed *parquet.File
		if parsed, err = parquet.OpenFile(f, info.Size()); err == nil {
			r.file, r.rows = f, parquet.NewGenericReader[Call](parsed)
			return nil
		}
	}
	f.Close()
	return starling.Errorf(starling.Invalid, "open trace", "%s is no finished Parquet file: %w", name, err)
}

// Close closes the file that is open.
func (r *Reader) Close() error {
	if r.file == nil {
		return nil
	}
	err := errors.Join(r.rows.Close(), r.file.Close())
	r.file, r.rows = nil, nil
	if err != nil {
		return fmt.Errorf("close trace: %w", err)
	}
	return nil
}
