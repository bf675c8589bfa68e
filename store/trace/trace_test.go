package trace

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"starling"
)

func open(t *testing.T, change func(*Config)) *Recorder {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Dir, cfg.Log = filepath.Join(t.TempDir(), "calls"), slog.New(slog.DiscardHandler)
	change(&cfg)
	r := New(cfg)
	if err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func call(i int) Call {
	return Call{Start: 1_700_000_000_000_000 + int64(i)*1000, Account: "a", Function: fmt.Sprintf("f%d", i%7), Version: uint64(i % 3), Wait: int64(i), Run: 2000,
		Cold: i%10 == 0, Begin: 5, Init: 6, Outcome: "ok", MemoryMiB: 128, PeakMiB: 40, Slots: 1}
}

func readAll(t *testing.T, path string) (calls []Call) {
	t.Helper()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for {
		c, err := r.Next()
		if errors.Is(err, io.EOF) {
			return calls
		}
		if err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
}

func TestWhatIsRecordedIsRead(t *testing.T) {
	r := open(t, func(c *Config) { c.RowsMax = 2000 })
	var want []Call
	for i := range 5000 {
		want = append(want, call(i))
		r.Add(call(i))
	}
	r.Close()
	if got := readAll(t, r.cfg.Dir); !slices.Equal(got, want) {
		t.Errorf("read %d calls, recorded %d", len(got), len(want))
	}
	if files, _ := Files(r.cfg.Dir); len(files) < 2 {
		t.Errorf("%d files, want one for about every 2,000 calls", len(files))
	}
	if n := r.recorded.Get(); n != 5000 || r.dropped.Get() != 0 {
		t.Errorf("%d counted as recorded, %d as dropped", n, r.dropped.Get())
	}
}

func TestOldFilesGo(t *testing.T) {
	r := open(t, func(c *Config) { c.RowsMax, c.FilesMax, c.PendingMax = 1, 2, 10 })
	for i := range 5 {
		r.Add(call(i))
		for r.recorded.Get() < uint64(i+1) {
			time.Sleep(time.Millisecond)
		}
	}
	r.Close()
	if got := readAll(t, r.cfg.Dir); len(got) != 2 || got[1] != call(4) {
		t.Errorf("kept %v, want the last two", got)
	}
}

// A file ends by time, too, so that a quiet node's calls can be read.
func TestFilesEndByTime(t *testing.T) {
	r := open(t, func(c *Config) { c.AgeMax = 20 * time.Millisecond })
	defer r.Close()
	r.Add(call(1))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if files, _ := Files(r.cfg.Dir); len(files) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no file was finished")
		}
	}
	if got := readAll(t, r.cfg.Dir); len(got) != 1 {
		t.Errorf("%d calls", len(got))
	}
}

func TestASlowDiskDropsAndCounts(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Dir, cfg.PendingMax, cfg.Log = t.TempDir(), 10, slog.New(slog.DiscardHandler)
	r := New(cfg) // not open: nobody writes, as when the disk stands still
	for i := range 25 {
		r.Add(call(i))
	}
	if n := r.dropped.Get(); n != 15 {
		t.Errorf("%d dropped, want 15", n)
	}
	if err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if got := readAll(t, cfg.Dir); len(got) != 10 {
		t.Errorf("%d written when the disk came back, want 10", len(got))
	}
}

func TestABrokenDiskDropsAndCounts(t *testing.T) {
	r := open(t, func(c *Config) {})
	if err := os.RemoveAll(r.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	r.Add(call(1))
	r.Close()
	if r.dropped.Get() != 1 || r.recorded.Get() != 0 {
		t.Errorf("%d dropped, %d recorded", r.dropped.Get(), r.recorded.Get())
	}
}

func TestWhatIsNoTraceIsRefused(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenReader(dir); starling.KindOf(err) != starling.NotFound {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := OpenReader(filepath.Join(dir, "none")); starling.KindOf(err) != starling.NotFound {
		t.Errorf("no such path: %v", err)
	}
	for name, text := range map[string]string{"empty": "", "text": "hello, this is no Parquet", "magic": "PAR1\xff\xff\xff\xffPAR1"} {
		path := filepath.Join(dir, name+suffix)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := OpenReader(path)
		if err == nil {
			_, err = r.Next()
		}
		if starling.KindOf(err) != starling.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An unfinished file of a node that died is removed by the next.
func TestUnfinishedFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "calls-1"+suffix+unfinished)
	if err := os.WriteFile(left, []byte("PAR1"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, func(c *Config) { c.Dir = dir })
	r.Close()
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}

func BenchmarkAdd(b *testing.B) {
	cfg := DefaultConfig()
	cfg.Dir, cfg.Log = b.TempDir(), slog.New(slog.DiscardHandler)
	r := New(cfg)
	if err := r.Open(b.Context()); err != nil {
		b.Fatal(err)
	}
	c := call(1)
	b.ReportAllocs()
	for b.Loop() {
		r.Add(c)
	}
	b.StopTimer()
	r.Close()
	b.ReportMetric(float64(r.dropped.Get())/float64(b.N), "dropped/op")
}
