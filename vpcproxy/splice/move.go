package splice

import (
	"context"
	"time"

	"starling/transport"
)

// A Movable is a stream whose other end may ask that the flow go on elsewhere.
type Movable interface {
	transport.Stream
	// Moving ends when it asks.
	Moving() context.Context
	// Resume opens the flow's next stream, and says how many bytes the other end has sent on all before it. sent is how many this end
	// has. After an error the flow is where it was, or its stream fails.
	Resume(ctx context.Context, sent uint64) (next transport.Stream, theirs uint64, err error)
}

const (
	movesMax  = 10                     // attempts to move one flow, before it stays where it is until that ends
	moveAgain = 500 * time.Millisecond // between them
	moveTime  = 10 * time.Second       // for one
)

// Run carries bytes between the connection and s until the flow is over, and moves to another stream when s asks for it.
func (j *Joint) Run(ctx context.Context, s transport.Stream) {
	for tries := 0; ; {
		stop := func() bool { return true }
		m, movable := s.(Movable)
		if _, ok := j.side.(pausable); !ok {
			movable = false
		}
		switch {
		case !movable || tries == movesMax:
		case tries == 0:
			stop = context.AfterFunc(m.Moving(), j.Pause)
		default:
			stop = time.AfterFunc(moveAgain, j.Pause).Stop
		}
		over := j.Carry(s)
		stop()
		if over {
			return
		}
		j.proceed()
		if next := j.move(ctx, m); next != nil {
			s, tries = next, 0
		} else {
			tries++
		}
	}
}

// move returns the flow's next stream, or nil when it stays with the one it has.
func (j *Joint) move(ctx context.Context, old Movable) transport.Stream {
	ctx, cancel := context.WithTimeout(ctx, moveTime)
	defer cancel()
	next, theirs, err := old.Resume(ctx, j.account.Sent())
	if err != nil {
		return nil
	}
	if err := j.Take(old, theirs); err != nil {
		j.abort(Lost) // the next Carry finds that it is over
	}
	old.Cancel() // what this end sent on it has come: the successor says so by its answer
	return next
}
