// Package blob keeps named bytes in a bucket: a folder of this machine by default, an S3 service when the
// operator says so, memory in tests. It is the only importer of gocloud.dev.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file://
	_ "gocloud.dev/blob/memblob"  // mem://
	_ "gocloud.dev/blob/s3blob"   // s3://
	"gocloud.dev/gcerrors"

	"starling"
)

// A Bucket holds objects by key. Keys are of a-z, 0-9, "-", "." and "/". It is safe for concurrent use.
type Bucket struct {
	bucket *blob.Bucket
	dir    string // of a file bucket, whose objects are flushed here; empty otherwise
	shared bool
}

// An Object is one entry of a listing.
type Object struct {
	Key     string
	Size    int64 // bytes
	Changed time.Time
}

// Open opens the bucket that address names:
//
//	file:///var/lib/starling/code     a folder of this machine, made when it is missing
//	s3://name?region=eu-central-1     an S3 service; endpoint=https://… for one of your own
//	mem://                            memory, gone with the process
//
// An address that names no known kind is Invalid.
func Open(ctx context.Context, address string) (*Bucket, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, "open bucket", "%q is no bucket address: use file:///path or s3://name?region=…", address)
	}
	b := &Bucket{}
	switch u.Scheme {
	case "file":
		q := u.Query()
		q.Set("create_dir", "1")
		q.Set("no_tmp_dir", "1") // a rename inside one file system, whatever TMPDIR says
		q.Set("metadata", "skip")
		q.Set("dir_file_mode", "0700")
		u.RawQuery = q.Encode()
		b.dir = u.Path
	case "s3":
		b.shared = true
	case "mem":
	default:
		return nil, starling.Errorf(starling.Invalid, "open bucket", "%q: use file:///path, s3://name?region=… or mem://", address)
	}
	b.bucket, err = blob.OpenBucket(ctx, u.String())
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", u.Redacted(), err)
	}
	return b, nil
}

// Shared reports whether other nodes that open the same address see the same objects.
func (b *Bucket) Shared() bool { return b.shared }

// Put stores what r gives under key, replacing what was there. When it returns nil the object survives a
// loss of power: an S3 service promises that itself; a file and its folder are flushed here, because the
// library does not.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before Close it withdraws the object
	w, err := b.bucket.NewWriter(ctx, key, &blob.WriterOptions{ContentType: "application/octet-stream"})
	if err != nil {
		return classify("put object", key, err)
	}
	if _, err := io.Copy(w, r); err != nil {
		cancel()
		w.Close()
		return classify("put object", key, err)
	}
	if err := w.Close(); err != nil {
		return classify("put object", key, err)
	}
	if b.dir == "" {
		return nil
	}
	return b.flush(key)
}

// flush makes a file and every folder between it and the bucket durable.
func (b *Bucket) flush(key string) error {
	path := filepath.Join(b.dir, filepath.FromSlash(key))
	for {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("flush object: %w", err)
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("flush object: %w", err)
		}
		if path == b.dir || !strings.HasPrefix(path, b.dir) {
			return nil
		}
		path = filepath.Dir(path)
	}
}

// Get opens an object; the caller closes it. An object that is not there is NotFound.
func (b *Bucket) Get(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	r, err := b.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return nil, 0, classify("get object", key, err)
	}
	return r, r.Size(), nil
}

// Range returns n bytes of an object from off; one that is not there is NotFound, one that is shorter Unavailable.
func (b *Bucket) Range(ctx context.Context, key string, off, n int64) ([]byte, error) {
	r, err := b.bucket.NewRangeReader(ctx, key, off, n, nil)
	if err != nil {
		return nil, classify("get part of object", key, err)
	}
	defer r.Close()
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return nil, classify("get part of object", key, err)
	}
	return p, nil
}

// Exists reports whether an object is there.
func (b *Bucket) Exists(ctx context.Context, key string) (bool, error) {
	ok, err := b.bucket.Exists(ctx, key)
	if err != nil {
		return false, classify("look for object", key, err)
	}
	return ok, nil
}

// Size returns the bytes of an object without reading it. One that is not there is NotFound.
func (b *Bucket) Size(ctx context.Context, key string) (int64, error) {
	a, err := b.bucket.Attributes(ctx, key)
	if err != nil {
		return 0, classify("look for object", key, err)
	}
	return a.Size, nil
}

// Delete removes an object; one that is not there is no error.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := b.bucket.Delete(ctx, key)
	if err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return classify("delete object", key, err)
	}
	return nil
}

// List calls each with every object under prefix, in order of keys, until it returns an error.
func (b *Bucket) List(ctx context.Context, prefix string, each func(Object) error) error {
	it := b.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := it.Next(ctx)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return classify("list objects", prefix, err)
		}
		if err := each(Object{Key: o.Key, Size: o.Size, Changed: o.ModTime}); err != nil {
			return err
		}
	}
}

// Close ends the use of the bucket.
func (b *Bucket) Close() error { return b.bucket.Close() }

// classify gives the kinds that callers act on: a missing object, a full disk, a service that is away.
func classify(op, key string, err error) error {
	var typed *starling.Error
	switch {
	case errors.As(err, &typed):
		return err
	case gcerrors.Code(err) == gcerrors.NotFound:
		return starling.Errorf(starling.NotFound, op, "no object %s", key)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return starling.Errorf(starling.Unavailable, op, "the disk of the bucket is full: free space or add disk: %w", err).With("DiskFull")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s: %w", op, key, err)
	}
	return starling.Errorf(starling.Unavailable, op, "%s: %w", key, err).With("Bucket")
}
