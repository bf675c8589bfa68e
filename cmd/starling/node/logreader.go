package node

import (
	"context"
	"iter"

	"starling"
	"starling/frontend/protocol"
	"starling/store/logs"
)

// logReader answers the frontend's questions from the log stores of all hosts. The two are on floors that do
// not know each other, so their words meet here.
type logReader struct{ fanout *logs.Fanout }

// Query yields the lines of one function that q selects.
func (l logReader) Query(ctx context.Context, f starling.FunctionRef, q protocol.LogQuery) iter.Seq2[protocol.LogRecord, error] {
	return func(yield func(protocol.LogRecord, error) bool) {
		question := logs.Query{Account: f.Account, Function: f.Name, Version: q.Version, All: q.All, Request: q.Request,
			Since: q.Since, Limit: q.Limit, Follow: q.Follow}
		for r, err := range l.fanout.Query(ctx, question) {
			if err != nil {
				yield(protocol.LogRecord{}, err)
				return
			}
			out := protocol.LogRecord{Time: r.Time, Function: r.Function.Name, Version: r.Version.String(), Stream: r.Stream.String(), Line: string(r.Text)}
			if r.Request != (starling.RequestID{}) {
				out.Request = r.Request.String()
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}
