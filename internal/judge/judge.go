// Package judge decides whether what the nodes of a cluster wrote down under faults is a history that the rules allow. It
// reads no clock and starts nothing: the same history gets the same verdict, and every rule has a test with a planted
// breach that it must catch.
package judge

import (
	"cmp"
	"fmt"
	"slices"

	"starling"
	"starling/internal/audit"
)

// A Life is what one process wrote down between its start and its end. All instants are nanoseconds of one clock.
type Life struct {
	Name    string // of the process, unique in the history
	Records []audit.Record
	Died    int64 // when it was certainly gone; 0 when it lived to the end
}

// A Tenure is a time in which one owner might grant.
type Tenure struct {
	Life      string
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Range     starling.Range
	From, To  int64 // To is beyond it
}

// String tells the tenure in a line.
func (t Tenure) String() string {
	return fmt.Sprintf("%s might grant as %s at epoch %d for %s from %d to %d", t.Life, t.Partition, uint64(t.Epoch), t.Range, t.From, t.To)
}

// A place is one partition in one epoch in one process: the same right, however often it is prolonged.
type place struct {
	partition starling.PartitionID
	epoch     starling.Epoch
}

// Tenures returns when each owner might grant, by begin.
func Tenures(lives []Life) []Tenure {
	var out []Tenure
	for _, l := range lives {
		open := map[place]*Tenure{}
		for _, r := range l.Records {
			if r.Kind != audit.May && r.Kind != audit.Stop {
				continue
			}
			p := place{r.Partition, r.Epoch}
			if t := open[p]; t != nil && (r.Kind == audit.Stop || r.At > t.To) {
				t.To = min(t.To, r.At)
				out = appendTenure(out, *t, l.Died)
				delete(open, p)
			}
			switch t := open[p]; {
			case r.Kind == audit.Stop:
			case t == nil:
				open[p] = &Tenure{Life: l.Name, Partition: r.Partition, Epoch: r.Epoch, Range: r.Range, From: r.At, To: r.Until}
			default:
				t.To = max(t.To, r.Until)
			}
		}
		for _, t := range open {
			out = appendTenure(out, *t, l.Died)
		}
	}
	slices.SortFunc(out, func(a, b Tenure) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Life, b.Life))
	})
	return out
}

// appendTenure appends t as far as its process lived.
func appendTenure(out []Tenure, t Tenure, died int64) []Tenure {
	if died != 0 {
		t.To = min(t.To, died)
	}
	if t.From >= t.To {
		return out
	}
	return append(out, t)
}

// An Overlap is a time in which two owners might grant for one key.
type Overlap struct {
	A, B Tenure
	Time int64 // nanoseconds
}

// String tells the overlap in a line.
func (o Overlap) String() string { return fmt.Sprintf("%d ns: %s; %s", o.Time, o.A, o.B) }

// Overlaps returns every overlap of two tenures: there must be none. Tenures are in the order of Tenures.
func Overlaps(tenures []Tenure) []Overlap {
	var out []Overlap
	var open []Tenure
	for _, b := range tenures {
		open = slices.DeleteFunc(open, func(a Tenure) bool { return a.To <= b.From })
		for _, a := range open {
			if meets(a.Range, b.Range) {
				out = append(out, Overlap{a, b, min(a.To, b.To) - b.From})
			}
		}
		open = append(open, b)
	}
	return out
}

func meets(a, b starling.Range) bool {
	return (b.Hi == 0 || a.Lo < b.Hi) && (a.Hi == 0 || b.Lo < a.Hi)
}

// Outside returns the grants that no tenure of their owner covers: there must be none.
func Outside(lives []Life, tenures []Tenure) []audit.Record {
	type owner struct {
		life string
		place
	}
	of := map[owner][]Tenure{}
	for _, t := range tenures {
		k := owner{t.Life, place{t.Partition, t.Epoch}}
		of[k] = append(of[k], t)
	}
	var out []audit.Record
	for _, l := range lives {
		for _, r := range l.Records {
			if r.Kind != audit.Grant || l.Died != 0 && r.At >= l.Died {
				continue
			}
			if !slices.ContainsFunc(of[owner{l.Name, place{r.Partition, r.Epoch}}], func(t Tenure) bool {
				return t.From <= r.At && r.At < t.To && t.Range.Contains(r.Key)
			}) {
				out = append(out, r)
			}
		}
	}
	return out
}
