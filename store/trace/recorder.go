package trace

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/parquet-go/parquet-go"

	"starling"
	"starling/internal/run"
)

// Config says where calls are recorded and how much of that is kept.
type Config struct {
	Dir        string        // folder of the files; made when it is not there
	PendingMax int           // calls that wait for the disk; more are dropped and counted
	RowsMax    int           // calls of one file
	AgeMax     time.Duration // a file is closed, and so can be read, after this
	FilesMax   int           // the oldest of more are deleted
	Log        *slog.Logger
}

// DefaultConfig keeps some ten million calls: about 20 bytes each on the disk, 150 in memory. Dir and Log are the caller's.
func DefaultConfig() Config {
	return Config{PendingMax: 1 << 16, RowsMax: 1 << 20, AgeMax: 5 * time.Minute, FilesMax: 64}
}

// Validate reports the first setting that cannot work, by its name.
func (c Config) Validate() error {
	const op = "check settings of the recorder"
	if c.Dir == "" {
		return starling.Errorf(starling.Invalid, op, "Dir is empty")
	}
	if c.PendingMax < 1 || c.RowsMax < 1 || c.FilesMax < 1 || c.AgeMax <= 0 {
		return starling.Errorf(starling.Invalid, op, "PendingMax, RowsMax, FilesMax and AgeMax are at least 1")
	}
	return nil
}

const (
	suffix     = ".parquet"
	unfinished = ".part" // a Parquet file cannot be read before its end is written
	groupRows  = 1 << 16 // calls held in memory until a part of the file is written
)

// A Recorder writes calls to disk behind the back of those who serve them. Create it with New, start it with Open, and
// Close it; Close writes what is pending and waits for the one goroutine, which writes.
type Recorder struct {
	cfg      Config
	group    *run.Group
	pending  chan Call
	set      *metrics.Set
	recorded *metrics.Counter
	dropped  *metrics.Counter

	// What follows belongs to the goroutine.
	file    *os.File
	rows    *parquet.GenericWriter[Call]
	count   int
	opened  time.Time
	failing bool // the last write failed: that is logged once
}

// New returns a recorder that does nothing yet.
func New(cfg Config) *Recorder {
	r := &Recorder{cfg: cfg, pending: make(chan Call, cfg.PendingMax), set: metrics.NewSet()}
	r.recorded = r.set.NewCounter("starling_trace_calls_total")
	r.dropped = r.set.NewCounter("starling_trace_dropped_total")
	return r
}

// Metrics are the recorder's numbers.
func (r *Recorder) Metrics() *metrics.Set { return r.set }

// Open makes the folder and starts writing. What an earlier run left unfinished cannot be read and is removed.
func (r *Recorder) Open(ctx context.Context) error {
	if err := r.cfg.Validate(); err != nil {
		return err
	}
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("open recorder: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(r.cfg.Dir, "*"+suffix+unfinished))
	if err != nil {
		return fmt.Errorf("open recorder: %w", err)
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return fmt.Errorf("open recorder: %w", err)
		}
	}
	r.group = run.New(context.WithoutCancel(ctx))
	r.group.Go(r.write)
	return nil
}

// Add records one call. It never waits: when the disk is behind, the call is dropped and counted. Any number of
// goroutines may call it, but none after Close began.
func (r *Recorder) Add(c Call) {
	select {
	case r.pending <- c:
	default:
		r.dropped.Inc()
	}
}

// Close writes what is pending and ends the file.
func (r *Recorder) Close() error {
	r.group.Stop()
	return nil
}

// write is the only goroutine. It ends with ctx, after what was pending then.
func (r *Recorder) write(ctx context.Context) {
	tick := time.NewTicker(min(r.cfg.AgeMax, time.Second))
	defer tick.Stop()
	batch := make([]Call, 0, 1024)
	for {
		select {
		case c := <-r.pending:
			r.put(r.more(append(batch[:0], c)))
		case <-tick.C:
			if r.file != nil && time.Since(r.opened) >= r.cfg.AgeMax {
				r.finish()
			}
		case <-ctx.Done():
			for len(r.pending) > 0 {
				r.put(r.more(batch[:0]))
			}
			r.finish()
			return
		}
	}
}

// more adds what is pending, as far as there is room.
func (r *Recorder) more(batch []Call) []Call {
	for len(batch) < cap(batch) {
		select {
		case c := <-r.pending:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// put writes calls; those that cannot be written are dropped, and the file with them.
func (r *Recorder) put(batch []Call) {
	if err := r.append(batch); err != nil {
		r.dropped.Add(len(batch))
		r.fail(err)
		r.abandon()
		return
	}
	r.recorded.Add(len(batch))
	if r.count >= r.cfg.RowsMax {
		r.finish()
	}
}

func (r *Recorder) append(batch []Call) error {
	if r.file == nil {
		now := time.Now()
		name := now.UTC().Format("calls-20060102T150405.000000Z") + suffix + unfinished
		f, err := os.OpenFile(filepath.Join(r.cfg.Dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		r.file, r.count, r.opened = f, 0, now
		r.rows = parquet.NewGenericWriter[Call](f, parquet.Compression(&parquet.Zstd), parquet.MaxRowsPerRowGroup(groupRows))
	}
	_, err := r.rows.Write(batch)
	r.count += len(batch)
	return err
}

// finish ends the file, so that it can be read, and deletes the oldest of too many.
func (r *Recorder) finish() {
	if r.file == nil {
		return
	}
	name := r.file.Name()
	if err := r.end(); err != nil {
		r.dropped.Add(r.count)
		r.fail(err)
		r.abandon()
		return
	}
	r.file, r.rows, r.failing = nil, nil, false
	if err := os.Rename(name, strings.TrimSuffix(name, unfinished)); err != nil {
		r.fail(err)
		return
	}
	files, err := Files(r.cfg.Dir)
	if err != nil {
		r.fail(err)
		return
	}
	for ; len(files) > r.cfg.FilesMax; files = files[1:] {
		if err := os.Remove(files[0]); err != nil {
			r.fail(err)
			return
		}
	}
}

func (r *Recorder) end() error {
	if err := r.rows.Close(); err != nil {
		return err
	}
	return r.file.Close()
}

// abandon gives a file up that could not be written.
func (r *Recorder) abandon() {
	if r.file != nil {
		r.file.Close()
		os.Remove(r.file.Name()) // it could not be read
		r.file, r.rows = nil, nil
	}
}

func (r *Recorder) fail(err error) {
	if !r.failing {
		r.cfg.Log.Warn("calls are not recorded", slog.Any("error", err))
	}
	r.failing = true
}

// Files returns the finished files of a folder, or the one file that path names, the oldest first.
func Files(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, starling.Errorf(starling.NotFound, "open trace", "%w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	files, err := filepath.Glob(filepath.Join(path, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("open trace: %w", err)
	}
	slices.Sort(files) // their names are their times
	return files, nil
}
