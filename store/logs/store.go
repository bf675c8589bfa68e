// Package logs keeps what functions print: append-only segments for each account on the host where the call
// ran, and a reader that asks all hosts and merges their lines by time.
package logs

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/internal/run"
)

// Config says where records are and how many of them are kept.
type Config struct {
	Dir        string        // folder of the segments; ours alone
	PendingMax int           // bytes not yet written; more are dropped and counted
	SegmentMax int64         // bytes of one segment, about
	AccountMax int64         // bytes of one account on this host
	TotalMax   int64         // bytes of all accounts on this host
	AgeMax     time.Duration // segments last written longer ago are deleted
	FlushEvery time.Duration // longest wait of a record in memory
	Log        *slog.Logger
}

// DefaultConfig returns the limits of DESIGN; Dir and Log are the caller's.
func DefaultConfig() Config {
	return Config{PendingMax: 16 << 20, SegmentMax: 4 << 20, AccountMax: 64 << 20, TotalMax: 4 << 30,
		AgeMax: 7 * 24 * time.Hour, FlushEvery: 50 * time.Millisecond}
}

const (
	flushBytes = 256 << 10 // pending bytes that are written without waiting for FlushEvery
	filesMax   = 64        // segments open for writing
	pruneEvery = time.Minute
)

// Store is the log of one host. Create it with New, start it with Open, and Close it; Close writes what is
// pending and waits for the one goroutine, which writes.
type Store struct {
	cfg     Config
	group   *run.Group
	kick    chan struct{} // one token: much is pending
	set     *metrics.Set
	records *metrics.Counter
	dropped *metrics.Counter

	mu       sync.Mutex // guards what follows; a leaf, held for copies in memory only
	accounts map[starling.AccountID]*pending
	dirty    []*pending // with bytes to write
	size     int        // pending bytes of all accounts
	written  chan struct{}

	files struct {
		sync.Mutex // guards the disk: writing and deleting; s.mu may be taken inside
		open       int
		last       int64 // name of the newest segment, so that names rise
		failed     bool  // the last write failed: it is logged once
	}
}

// pending is one account's unwritten entries and the segment they go to.
type pending struct {
	account starling.AccountID
	buf     []byte // guarded by Store.mu
	spare   []byte // the other buffer; with what follows guarded by Store.files
	file    *os.File
	size    int64
}

// New returns a log that does nothing yet.
func New(cfg Config) *Store {
	s := &Store{cfg: cfg, kick: make(chan struct{}, 1), set: metrics.NewSet(), accounts: map[starling.AccountID]*pending{},
		written: make(chan struct{}), group: run.New(context.Background())}
	s.records = s.set.NewCounter("starling_log_records_total")
	s.dropped = s.set.NewCounter("starling_log_records_dropped_total")
	return s
}

// Metrics are the log's counters.
func (s *Store) Metrics() *metrics.Set { return s.set }

// Open prepares the folder and starts the writer.
func (s *Store) Open(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("open log store: %w", err)
	}
	s.files.Lock()
	err := s.prune(time.Now())
	s.files.Unlock()
	if err != nil {
		return fmt.Errorf("open log store: %w", err)
	}
	s.group.Go(s.write)
	return nil
}

// Close writes what is pending and closes every segment.
func (s *Store) Close() error {
	s.group.Stop()
	s.flush()
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.accounts {
		s.closeFile(a)
	}
	return nil
}

// Append keeps r. It copies and never waits; when the disk is too slow the record is dropped and counted.
func (s *Store) Append(r Record) {
	s.mu.Lock()
	if s.size+len(r.Text) > s.cfg.PendingMax {
		s.mu.Unlock()
		s.dropped.Inc()
		return
	}
	a := s.accounts[r.Function.Account]
	if a == nil {
		a = &pending{account: r.Function.Account}
		s.accounts[r.Function.Account] = a
	}
	if len(a.buf) == 0 {
		s.dirty = append(s.dirty, a)
	}
	before := len(a.buf)
	a.buf = appendEntry(a.buf, &r)
	s.size += len(a.buf) - before
	full := s.size > flushBytes
	s.mu.Unlock()
	s.records.Inc()
	if full {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// write is the store's only goroutine.
func (s *Store) write(ctx context.Context) {
	tick := time.NewTicker(s.cfg.FlushEvery)
	defer tick.Stop()
	prune := time.NewTicker(pruneEvery)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.kick:
		case now := <-prune.C:
			s.files.Lock()
			s.note(s.prune(now))
			s.files.Unlock()
		}
		s.flush()
	}
}

// flush writes everything pending and wakes those who follow.
func (s *Store) flush() {
	s.files.Lock()
	defer s.files.Unlock()
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = nil
	s.mu.Unlock()
	if len(dirty) == 0 {
		return
	}
	for _, a := range dirty {
		s.mu.Lock()
		full := a.buf
		a.buf = a.spare[:0]
		s.size -= len(full)
		s.mu.Unlock()
		s.note(s.writeAccount(a, full))
		a.spare = full
		if cap(full) > flushBytes {
			a.spare = nil // a burst must not keep its buffer
		}
	}
	s.mu.Lock()
	close(s.written)
	s.written = make(chan struct{})
	s.mu.Unlock()
}

// note logs the first failure of a row and the recovery.
func (s *Store) note(err error) {
	if err != nil && !s.files.failed {
		s.cfg.Log.Error("write function logs; records are dropped until it works again", "error", err)
	}
	if err == nil && s.files.failed {
		s.cfg.Log.Info("function logs are written again")
	}
	s.files.failed = err != nil
}

// writeAccount appends whole entries to the account's segment and starts a new one when it is full.
func (s *Store) writeAccount(a *pending, b []byte) error {
	if a.file == nil {
		if err := s.openSegment(a); err != nil {
			s.dropped.Add(countEntries(b))
			return err
		}
	}
	n, err := a.file.Write(b)
	a.size += int64(n)
	if err != nil {
		// A torn entry may now end the segment; readers stop there, so the next entries need a new one.
		s.dropped.Add(countEntries(b))
		s.closeFile(a)
		return fmt.Errorf("write segment: %w", err)
	}
	if a.size >= s.cfg.SegmentMax {
		s.closeFile(a)
		return s.pruneAccount(a.account)
	}
	if s.files.open > filesMax {
		s.closeFile(a)
	}
	return nil
}

func countEntries(b []byte) int {
	n := 0
	for len(b) > 0 {
		_, size := parseEntry(b)
		if size == 0 {
			break
		}
		b = b[size:]
		n++
	}
	return n
}

// openSegment makes a new segment. Every life of the store begins new ones, so a torn end of an earlier
// life is never appended to.
func (s *Store) openSegment(a *pending) error {
	s.files.last = max(s.files.last+1, time.Now().UnixNano())
	dir := s.dir(a.account)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make segment: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, segmentName(s.files.last)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("make segment: %w", err)
	}
	a.file, a.size = f, 0
	s.files.open++
	return nil
}

func (s *Store) closeFile(a *pending) {
	if a.file == nil {
		return
	}
	if err := a.file.Close(); err != nil {
		s.cfg.Log.Warn("close log segment", "error", err)
	}
	a.file = nil
	s.files.open--
}

func (s *Store) dir(a starling.AccountID) string { return filepath.Join(s.cfg.Dir, string(a)) }

func segmentName(n int64) string { return fmt.Sprintf("%020d.log", n) }

// A segment is one file of an account.
type segment struct {
	path    string
	name    int64 // time of its making, Unix nanoseconds
	size    int64
	changed time.Time
}

// segments lists an account's files, oldest first.
func (s *Store) segments(a starling.AccountID) ([]segment, error) {
	names, err := os.ReadDir(s.dir(a))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var out []segment
	for _, e := range names {
		n, err := strconv.ParseInt(strings.TrimSuffix(e.Name(), ".log"), 10, 64)
		info, err2 := e.Info()
		if err != nil || err2 != nil {
			continue // not ours, or deleted meanwhile
		}
		out = append(out, segment{filepath.Join(s.dir(a), e.Name()), n, info.Size(), info.ModTime()})
	}
	slices.SortFunc(out, func(x, y segment) int { return cmp.Compare(x.name, y.name) })
	return out, nil
}

// pruneAccount deletes the oldest segments of one account beyond its share, never the newest one.
func (s *Store) pruneAccount(a starling.AccountID) error {
	list, err := s.segments(a)
	if err != nil {
		return err
	}
	var total int64
	for i := len(list) - 1; i >= 0; i-- {
		if total += list[i].size; total > s.cfg.AccountMax && i < len(list)-1 {
			if err := os.Remove(list[i].path); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("delete segment: %w", err)
			}
		}
	}
	return nil
}

// prune deletes segments that are too old, and the oldest of all while the host's share is exceeded. It
// forgets accounts that have nothing pending and closes their files.
func (s *Store) prune(now time.Time) error {
	dirs, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return err
	}
	var all []segment
	var total int64
	for _, d := range dirs {
		account := starling.AccountID(d.Name())
		if account.Validate() != nil {
			continue
		}
		if err := s.pruneAccount(account); err != nil {
			return err
		}
		list, err := s.segments(account)
		if err != nil {
			return err
		}
		for _, g := range list {
			total += g.size
		}
		all = append(all, list...)
	}
	s.mu.Lock()
	for id, a := range s.accounts {
		if len(a.buf) == 0 {
			s.closeFile(a)
			delete(s.accounts, id)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(x, y segment) int { return cmp.Compare(x.name, y.name) })
	for _, g := range all {
		if now.Sub(g.changed) <= s.cfg.AgeMax && total <= s.cfg.TotalMax {
			continue
		}
		total -= g.size
		if err := os.Remove(g.path); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("delete segment: %w", err)
		}
		os.Remove(filepath.Dir(g.path)) // succeeds only when it is empty
	}
	return nil
}
