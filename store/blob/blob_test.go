package blob

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"starling"
)

func TestBucketKeepsObjects(t *testing.T) {
	dir := t.TempDir()
	for _, address := range []string{"mem://", "file://" + filepath.Join(dir, "bucket")} {
		t.Run(address[:4], func(t *testing.T) {
			ctx := context.Background()
			b, err := Open(ctx, address)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if _, _, err := b.Get(ctx, "code/a/1.zip"); starling.KindOf(err) != starling.NotFound {
				t.Fatalf("get of nothing: %v", err)
			}
			if err := b.Put(ctx, "code/a/1.zip", strings.NewReader("one")); err != nil {
				t.Fatal(err)
			}
			r, size, err := b.Get(ctx, "code/a/1.zip")
			if err != nil {
				t.Fatal(err)
			}
			data, _ := io.ReadAll(r)
			r.Close()
			if string(data) != "one" || size != 3 {
				t.Fatalf("got %q, %d bytes", data, size)
			}
			if n, err := b.Size(ctx, "code/a/1.zip"); n != 3 || err != nil {
				t.Fatalf("size %d, %v", n, err)
			}
			if _, err := b.Size(ctx, "code/a/2.zip"); starling.KindOf(err) != starling.NotFound {
				t.Fatalf("size of nothing: %v", err)
			}
			var keys []string
			if err := b.List(ctx, "code/", func(o Object) error { keys = append(keys, o.Key); return nil }); err != nil {
				t.Fatal(err)
			}
			if len(keys) != 1 || keys[0] != "code/a/1.zip" {
				t.Fatalf("listed %v", keys)
			}
			if err := b.Delete(ctx, "code/a/1.zip"); err != nil {
				t.Fatal(err)
			}
			if err := b.Delete(ctx, "code/a/1.zip"); err != nil {
				t.Fatalf("second delete: %v", err)
			}
			if ok, err := b.Exists(ctx, "code/a/1.zip"); ok || err != nil {
				t.Fatalf("after delete: %v %v", ok, err)
			}
		})
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	b, err := Open(context.Background(), "file://"+dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := io.MultiReader(strings.NewReader("half"), errReader{})
	if err := b.Put(context.Background(), "code/a/1.zip", r); err == nil {
		t.Fatal("put of a broken stream succeeded")
	}
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			t.Errorf("left %s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("line cut") }

func TestOpenRefusesUnknownKinds(t *testing.T) {
	for _, a := range []string{"", "gs://x", "/tmp/x", "://"} {
		if _, err := Open(context.Background(), a); starling.KindOf(err) != starling.Invalid {
			t.Errorf("open %q: %v", a, err)
		}
	}
}
