package code

import (
	"context"
	"errors"
)

// chunk is how many blocks are asked for at once in the background; the blocks of one chunk have one home.
const chunk = 8

// A coming is a row of blocks on its way.
type coming struct {
	first, end int // the blocks, without end
	done       chan struct{}
	err        error // set before done is closed
}

// complete has every block in the file, in a few rows at a time.
func (b *blocks) complete(ctx context.Context) error {
	rows := make(chan int)
	errs := make(chan error, completers)
	for range completers {
		go func() {
			var err error
			for first := range rows {
				if err == nil {
					err = b.row(ctx, first)
				}
			}
			errs <- err
		}()
	}
	for first := 0; first < b.index.Blocks(); first += chunk {
		rows <- first
	}
	close(rows)
	var err error
	for range completers {
		err = errors.Join(err, <-errs)
	}
	return err
}

// completers is how many rows of one image are fetched at once in the background.
const completers = 4

// row has the blocks of one chunk in the file.
func (b *blocks) row(ctx context.Context, first int) error {
	end := min(first+chunk, b.index.Blocks())
	for i := first; i < end; i++ {
		if !b.seen(i) {
			_, _ = b.read(i, 1) // an earlier life may have left it; it is marked when it is right
		}
	}
	return b.fetch(ctx, first, end-first, true)
}

// fetch brings those of count blocks from first into the file that are not there yet, once for all who want them at this time. share
// says that other hosts are asked before the origin.
func (b *blocks) fetch(ctx context.Context, first, count int, share bool) error {
	for end := first + count; ; {
		b.mu.Lock()
		own, other := b.next(first, end)
		b.mu.Unlock()
		switch {
		case own != nil:
			b.run(ctx, own, share)
			if own.err != nil {
				return own.err
			}
		case other != nil:
			select {
			case <-other.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if given := errors.Is(other.err, context.Canceled) || errors.Is(other.err, context.DeadlineExceeded); other.err != nil && !given {
				return other.err // one that was given up by who asked first is taken up again
			}
		default:
			return nil
		}
	}
}

// next returns the first row of blocks between first and end that is neither here nor on its way, and enters it as coming; if there is
// none, one that is on its way; nil if all are here. The caller holds mu.
func (b *blocks) next(first, end int) (own, other *coming) {
	for i := first; i < end; i++ {
		if b.right[i] {
			continue
		}
		if c := b.coming[i]; c != nil {
			other = c
			continue
		}
		own = &coming{first: i, end: i, done: make(chan struct{})}
		for ; own.end < end && !b.right[own.end] && b.coming[own.end] == nil; own.end++ {
			b.coming[own.end] = own
		}
		return own, nil
	}
	return nil, other
}

// run brings one row.
func (b *blocks) run(ctx context.Context, c *coming, share bool) {
	p, err := b.store.bring(ctx, b, c.first, c.end-c.first, share)
	if err == nil {
		off, _ := b.index.Sealed(c.first)
		_, err = b.file.WriteAt(p, off)
		err = diskError("keep blocks", err)
	}
	b.mu.Lock()
	for i := c.first; i < c.end; i++ {
		b.right[i] = err == nil
		delete(b.coming, i)
	}
	b.mu.Unlock()
	c.err = err
	close(c.done)
}
