package protocol

import (
	"cmp"
	"slices"

	"starling"
)

// A FunctionLoad is what a partition knows of one version now, for operators. A function that is spread over several
// partitions has a line in each.
type FunctionLoad struct {
	Function starling.FunctionRef `json:"function"`
	Version  starling.VersionID   `json:"version"`
	Wanted   int                  `json:"wanted"` // instances
	Ready    int                  `json:"ready"`
	Starting int                  `json:"starting"`
	Floor    int                  `json:"floor"`   // provisioned
	Leased   int                  `json:"leased"`  // slots
	Waiting  int                  `json:"waiting"` // calls
	Calls    uint64               `json:"calls"`
	Refused  uint64               `json:"refused"`
	Cold     float64              `json:"cold"`           // share of calls that waited for a start
	Held     string               `json:"held,omitempty"` // why nothing is started now

	Isolation starling.Isolation `json:"isolation,omitempty"` // empty while it is not known
}

// Busiest sorts the lines, those with the longest queues first, and returns the first rows of them.
func Busiest(lines []FunctionLoad, rows int) []FunctionLoad {
	slices.SortFunc(lines, func(a, b FunctionLoad) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Leased, a.Leased), cmp.Compare(b.Calls, a.Calls),
			cmp.Compare(a.Function.String(), b.Function.String()), cmp.Compare(a.Version, b.Version))
	})
	return lines[:min(rows, len(lines))]
}
