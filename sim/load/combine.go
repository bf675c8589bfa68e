package load

import "time"

// Burst is a load of one function: calls within, at at. The published comparison is 1,000 calls in 100 ms.
func Burst(f Function, at time.Duration, calls int, within, exec time.Duration) Load {
	return Generate([]Source{{Function: f, Shape: Once, First: at, Burst: int32(calls), Gap: within, Exec: exec}}, 0, forever)
}

// Merge returns the calls of all loads in the order of their times; the functions of a later load are numbered after
// those of an earlier one. It owns the loads.
func Merge(loads ...Load) Load {
	m := &merged{}
	for _, l := range loads {
		p := part{load: l, base: int32(len(m.functions))}
		p.next, p.more = l.Next()
		m.functions = append(m.functions, l.Functions()...)
		m.parts = append(m.parts, p)
	}
	return m
}

type merged struct {
	functions []Function
	parts     []part // a handful: looking at each beats a heap
}

type part struct {
	load Load
	base int32
	next Call
	more bool
}

// Functions returns those of every part, one after another.
func (m *merged) Functions() []Function { return m.functions }

// Next takes the earliest call of any part, of equal ones that of the first part.
func (m *merged) Next() (Call, bool) {
	var first *part
	for i := range m.parts {
		if p := &m.parts[i]; p.more && (first == nil || p.next.At < first.next.At) {
			first = p
		}
	}
	if first == nil {
		return Call{}, false
	}
	c := first.next
	c.Function += first.base
	first.next, first.more = first.load.Next()
	return c, true
}

// Speed returns l with all times between calls divided by factor, above 0. Run times stay: 2 is twice the load.
func Speed(l Load, factor float64) Load { return &paced{l, factor} }

type paced struct {
	Load
	factor float64
}

// Next scales the instant of the call.
func (p *paced) Next() (Call, bool) {
	c, more := p.Load.Next()
	c.At = time.Duration(float64(c.At) / p.factor)
	return c, more
}
