package judge

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// An Act names what a client asked of the control interface.
type Act string

// The acts: make a name with a value that no other act has, read its value, delete it.
const (
	Create Act = "create"
	Read   Act = "read"
	Delete Act = "delete"
)

// A Call is one control operation of a client.
type Call struct {
	Client     int
	Name       string
	Act        Act
	Value      int // created, or read; 0 for "there is none"
	Called     int64
	Returned   int64 // the end of the history when the outcome is not known
	Conflicted bool  // of Create: the name was taken
	Unknown    bool  // no answer: it may have happened, once, at any time since
}

// A register is one name: 0, or the value it was made with. Operations without an answer may have happened at any time, or
// never, and each alone would double the orders to try. Those that are alike are taken in the order of their calls: wherever
// one could stand, so could any that was called before it.
type register struct {
	value            int
	deletes, creates int // of those that are alike, so far
}

// unread stands for every value that nobody read: which of them it was, no answer tells.
const unread = -1

// A try is a call, with its place among those that are alike; 0 for one of its own.
type try struct {
	Call
	alike int
}

// controlModel judges one name. A deletion of what is not there is no error: an earlier try whose answer was lost may have
// done it.
var controlModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		r, c := state.(register), input.(try)
		switch {
		case c.Act == Delete && c.Unknown:
			legal := r.deletes == c.alike-1
			r.value, r.deletes = 0, c.alike
			return legal, r
		case c.Act == Delete:
			r.value = 0
			return true, r
		case c.Act == Read:
			return r.value == c.Value, r
		case c.Unknown:
			legal := c.alike == 0 || r.creates == c.alike-1
			r.creates = max(r.creates, c.alike)
			if r.value == 0 {
				r.value = c.Value
			}
			return legal, r
		case c.Conflicted:
			return r.value != 0, r
		}
		legal := r.value == 0
		r.value = c.Value
		return legal, r
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input.(try).Call) },
}

// Control judges control operations, each name for itself. A name gets at most limit of time.
func Control(calls []Call, limit time.Duration) Verdict {
	byName := map[string][]Call{}
	for _, c := range calls {
		if c.Unknown && c.Act == Read {
			continue // it says nothing and does nothing
		}
		byName[c.Name] = append(byName[c.Name], c)
	}
	var v Verdict
	for _, name := range sortedKeys(byName) {
		v.judge(controlModel, name, tries(byName[name]), limit)
	}
	return v
}

// tries numbers the calls of one name that are alike.
func tries(calls []Call) []porcupine.Operation {
	read := map[int]bool{}
	for _, c := range calls {
		if c.Act == Read {
			read[c.Value] = true
		}
	}
	calls = slices.Clone(calls)
	slices.SortStableFunc(calls, func(a, b Call) int { return cmp.Compare(a.Called, b.Called) })
	var ops []porcupine.Operation
	deletes, creates := 0, 0
	for _, c := range calls {
		t := try{Call: c}
		switch {
		case c.Unknown && c.Act == Delete:
			deletes++
			t.alike = deletes
		case c.Unknown && c.Act == Create && !read[c.Value]:
			creates++
			t.alike, t.Value = creates, unread
		}
		ops = append(ops, porcupine.Operation{ClientId: c.Client, Input: t, Call: c.Called, Return: c.Returned})
	}
	return ops
}

// Tell lists the operations of one name, for a failed test.
func Tell(calls []Call, name string) string {
	var b strings.Builder
	for _, c := range calls {
		if c.Name == name {
			fmt.Fprintf(&b, "%+v\n", c)
		}
	}
	return b.String()
}
