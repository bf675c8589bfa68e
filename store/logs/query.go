package logs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"time"

	"starling"
)

// limitMax bounds the lines a query begins with.
const limitMax = 10_000

// A Query selects lines of one account; other zero fields match all.
type Query struct {
	Account  starling.AccountID     `cbor:"1,keyasint"`
	Function starling.FunctionName  `cbor:"2,keyasint"`
	Version  starling.VersionNumber `cbor:"3,keyasint"` // unless All is set
	All      bool                   `cbor:"4,keyasint"` // lines of every version
	Request  starling.RequestID     `cbor:"5,keyasint"`
	Since    time.Time              `cbor:"6,keyasint"`
	Limit    int                    `cbor:"7,keyasint"` // newest lines to begin with, 1-10000; 0 means 100
	Follow   bool                   `cbor:"8,keyasint"` // keep going as lines come
}

// Validate reports the first field that cannot work.
func (q *Query) Validate() error {
	if err := q.Account.Validate(); err != nil {
		return err
	}
	if q.Function != "" {
		if err := q.Function.Validate(); err != nil {
			return err
		}
	}
	if q.Limit < 0 || q.Limit > limitMax {
		return starling.Errorf(starling.Invalid, "query logs", "limit %d: use 1-%d", q.Limit, limitMax)
	}
	return nil
}

func (q *Query) limit() int {
	if q.Limit == 0 {
		return 100
	}
	return q.Limit
}

func (q *Query) matches(r *Record) bool {
	return (q.Function == "" || q.Function == r.Function.Name) && (q.All || q.Version == r.Version) &&
		(q.Request == starling.RequestID{} || q.Request == r.Request) && !r.Time.Before(q.Since)
}

// Query yields the lines of this host that q selects, oldest first, until they end, ctx ends (with Follow)
// or the caller stops. An error is the last thing it yields.
func (s *Store) Query(ctx context.Context, q Query) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		err := s.scan(ctx, q, func(r Record) error {
			if !yield(r, nil) {
				return errStop
			}
			return nil
		}, func() error { return nil })
		if err != nil && !errors.Is(err, errStop) && ctx.Err() == nil {
			yield(Record{}, err)
		}
	}
}

// errStop ends a scan whose reader has enough.
var errStop = errors.New("the reader has enough")

// scan calls emit with each selected line and caughtUp once between what was there and what comes. A slow
// reader holds up nobody: it reads from the disk at its own pace.
func (s *Store) scan(ctx context.Context, q Query, emit func(Record) error, caughtUp func() error) error {
	if err := q.Validate(); err != nil {
		return err
	}
	wake := s.flushed()
	s.flush() // what was printed before the question belongs to the answer
	tail := ring{max: q.limit()}
	var at place
	if err := s.readFrom(ctx, &q, &at, func(r Record) error { tail.add(r); return nil }); err != nil {
		return err
	}
	if err := tail.each(emit); err != nil {
		return err
	}
	if err := caughtUp(); err != nil || !q.Follow {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		wake = s.flushed()
		if err := s.readFrom(ctx, &q, &at, emit); err != nil {
			return err
		}
	}
}

// flushed is closed at the next write.
func (s *Store) flushed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written
}

// A place is where reading goes on.
type place struct {
	segment int64
	offset  int64
}

// readFrom emits every line after at and moves at behind them.
func (s *Store) readFrom(ctx context.Context, q *Query, at *place, emit func(Record) error) error {
	list, err := s.segments(q.Account)
	if err != nil {
		return err
	}
	for i, g := range list {
		if g.name < at.segment || (g.name == at.segment && g.size == at.offset) {
			continue
		}
		last := i == len(list)-1
		if !last && g.changed.Before(q.Since) {
			continue // nothing was added to it since
		}
		if g.name != at.segment {
			*at = place{segment: g.name}
		}
		if err := readSegment(ctx, q, g.path, at, emit); err != nil {
			return err
		}
	}
	return nil
}

// readSegment emits the lines of one segment after at.offset. It stops at an entry that is torn or not yet
// whole; the next read tries it again.
func readSegment(ctx context.Context, q *Query, path string, at *place, emit func(Record) error) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil // deleted for its age or size meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 0, entryHead+entryMax)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf[:cap(buf)], at.offset)
		if err != nil && err != io.EOF {
			return err
		}
		b, used := buf[:n], 0
		for {
			r, size := parseEntry(b[used:])
			if size == 0 {
				break
			}
			used += size
			at.offset += int64(size)
			r.Function.Account = q.Account
			if !q.matches(&r) {
				continue
			}
			if err := eachLine(r, emit); err != nil {
				return err
			}
		}
		if used == 0 {
			return nil
		}
	}
}

// eachLine emits a record for each line of r with text of its own.
func eachLine(r Record, emit func(Record) error) error {
	text := bytes.TrimSuffix(bytes.Clone(r.Text), []byte("\n"))
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		r.Text = line
		if err := emit(r); err != nil {
			return err
		}
	}
	return nil
}

// A ring keeps the last max records.
type ring struct {
	max  int
	next int
	recs []Record
}

func (g *ring) add(r Record) {
	if len(g.recs) < g.max {
		g.recs = append(g.recs, r)
		return
	}
	g.recs[g.next] = r
	g.next = (g.next + 1) % g.max
}

func (g *ring) each(f func(Record) error) error {
	for i := range g.recs {
		if err := f(g.recs[(g.next+i)%len(g.recs)]); err != nil {
			return err
		}
	}
	return nil
}
