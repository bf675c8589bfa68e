package judge

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"starling"
	"starling/internal/audit"
)

// A Sight is one entry of the partition map as one node saw it at an instant.
type Sight struct {
	Seen      int64 // when it was surely there
	By        string
	Partition starling.PartitionID
	Epoch     starling.Epoch
	Owner     starling.NodeID
	Range     starling.Range
}

// Maps checks what nodes saw of the map and returns what is wrong. One epoch of a partition has one owner and one range,
// whoever looks; and what one node sees of a key never goes back to an earlier epoch. Sights of one node are in the order
// in which it saw them.
func Maps(sights []Sight) []string {
	var wrong []string
	first := map[place]Sight{}
	newest := map[string][]Sight{} // by node, disjoint ranges
	for _, s := range sights {
		k := place{s.Partition, s.Epoch}
		if f, ok := first[k]; !ok {
			first[k] = s
		} else if f.Owner != s.Owner || f.Range != s.Range {
			wrong = append(wrong, fmt.Sprintf("%s at epoch %d is %s of %s for %s and %s of %s for %s", s.Partition, uint64(s.Epoch), f.Range, f.Owner, f.By, s.Range, s.Owner, s.By))
		}
		keep := newest[s.By][:0]
		for _, o := range newest[s.By] {
			if meets(o.Range, s.Range) {
				if o.Epoch > s.Epoch {
					wrong = append(wrong, fmt.Sprintf("%s saw %s at epoch %d after %s at epoch %d for the same keys", s.By, s.Partition, uint64(s.Epoch), o.Partition, uint64(o.Epoch)))
				}
				continue
			}
			keep = append(keep, o)
		}
		newest[s.By] = append(keep, s)
	}
	return wrong
}

// A step of the map or under it, as the model of one key sees it.
type step struct {
	grant bool
	index int // of the epoch, among those that the key went through
	owner starling.NodeID
}

// A keyState is the map's entry of one key.
type keyState struct {
	index int // -1 before the first
	owned int // the last that has an owner
	owner starling.NodeID
}

// mapModel is the map as a register for each key that goes through epochs in order and gives each one owner, or none. A
// grant is allowed only under the last epoch that has an owner, and by that owner. An epoch without one takes the key from
// an owner that lives and may not have heard of it; until the next owner has its epoch, nobody else grants.
var mapModel = porcupine.Model{
	Init: func() any { return keyState{index: -1, owned: -1} },
	Step: func(state, input, _ any) (bool, any) {
		s, in := state.(keyState), input.(step)
		switch {
		case in.grant:
			return s.owned == in.index && s.owner == in.owner, s
		case in.owner == 0:
			return in.index == s.index+1, keyState{in.index, s.owned, s.owner}
		}
		return in.index == s.index+1, keyState{in.index, in.index, in.owner}
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// A Verdict is what porcupine says of the histories of one kind.
type Verdict struct {
	Operations int
	Keys       int
	Illegal    []string // keys whose history no order explains: there must be none
	Unknown    []string // keys that took longer than allowed
}

// OK reports whether every history was judged linearizable.
func (v Verdict) OK() bool { return len(v.Illegal)+len(v.Unknown) == 0 }

// Grants judges grants against the map: for each key with grants, the changes of the map and the grants must fit into one
// order. A change may have happened at any time before somebody saw it. A grant happened at the instant of its decision.
// A key gets at most limit of time.
func Grants(lives []Life, sights []Sight, limit time.Duration) Verdict {
	grants, sights := grantsByKey(lives, sights)
	var v Verdict
	for _, key := range sortedKeys(grants) {
		v.judge(mapModel, fmt.Sprintf("%016x", uint64(key)), mapHistory(key, grants[key], sights), limit)
	}
	return v
}

// grantsByKey returns the grants of each key, and the sights with those that owners themselves had.
func grantsByKey(lives []Life, sights []Sight) (map[starling.Key64][]audit.Record, []Sight) {
	grants := map[starling.Key64][]audit.Record{}
	sights = slices.Clip(sights)
	for _, l := range lives {
		for _, r := range l.Records {
			switch r.Kind {
			case audit.Grant:
				grants[r.Key] = append(grants[r.Key], r)
				sights = append(sights, Sight{Seen: r.At, Partition: r.Partition, Epoch: r.Epoch, Owner: r.Node, Range: starling.Range{Lo: r.Key, Hi: r.Key + 1}})
			case audit.May:
				sights = append(sights, Sight{Seen: r.At, Partition: r.Partition, Epoch: r.Epoch, Owner: r.Node, Range: r.Range})
			}
		}
	}
	return grants, sights
}

// TellKey lists the grants and the changes of the map for one key as Grants names it, for a failed test: when each was
// surely there, in nanoseconds.
func TellKey(lives []Life, sights []Sight, name string) string {
	var b strings.Builder
	grants, sights := grantsByKey(lives, sights)
	for key, some := range grants {
		if fmt.Sprintf("%016x", uint64(key)) != name {
			continue
		}
		ops := mapHistory(key, some, sights)
		slices.SortStableFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		for _, o := range ops {
			fmt.Fprintf(&b, "%d %+v\n", o.Return, o.Input)
		}
	}
	return b.String()
}

// mapHistory is what happened to one key.
func mapHistory(key starling.Key64, grants []audit.Record, sights []Sight) []porcupine.Operation {
	first := map[place]Sight{}
	for _, s := range sights {
		k := place{s.Partition, s.Epoch}
		if f, ok := first[k]; s.Range.Contains(key) && (!ok || s.Seen < f.Seen) {
			first[k] = s
		}
	}
	changes := make([]Sight, 0, len(first))
	for _, s := range first {
		changes = append(changes, s)
	}
	slices.SortFunc(changes, func(a, b Sight) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Partition, b.Partition))
	})
	ops, index := []porcupine.Operation{}, map[place]int{}
	for i, s := range changes {
		index[place{s.Partition, s.Epoch}] = i
		ops = append(ops, porcupine.Operation{Input: step{index: i, owner: s.Owner}, Call: 0, Return: s.Seen})
	}
	for _, g := range grants {
		ops = append(ops, porcupine.Operation{Input: step{grant: true, index: index[place{g.Partition, g.Epoch}], owner: g.Node}, Call: g.At, Return: g.At})
	}
	return ops
}

func (v *Verdict) judge(m porcupine.Model, name string, ops []porcupine.Operation, limit time.Duration) {
	v.Keys++
	v.Operations += len(ops)
	switch porcupine.CheckOperationsTimeout(m, ops, limit) {
	case porcupine.Illegal:
		v.Illegal = append(v.Illegal, name)
	case porcupine.Unknown:
		v.Unknown = append(v.Unknown, name)
	}
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
