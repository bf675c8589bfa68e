package partition

import (
	"context"

	"starling/sched"
)

// RowsMax bounds the rows of Functions.
const RowsMax = 1000

// Functions returns the state of the busiest functions of each partition that lives here, at most rows of each, in no
// order. It asks the actors, which answer between two batches; one that does not before ctx ends is left out.
func (k *Keeper) Functions(ctx context.Context, rows int) []sched.VersionStatus {
	rows = max(min(rows, RowsMax), 1)
	all := *k.actors.Load()
	answers := make([]chan []sched.VersionStatus, 0, len(all))
	for _, a := range all {
		to := make(chan []sched.VersionStatus, 1)
		if a.ref.Tell(show{rows, to}, 1) {
			answers = append(answers, to)
		}
	}
	var out []sched.VersionStatus
	for _, to := range answers {
		select {
		case <-ctx.Done():
			return out
		case st := <-to:
			out = append(out, st...)
		}
	}
	return out
}
