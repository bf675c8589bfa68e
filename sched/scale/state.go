package scale

import (
	"encoding/binary"
	"math"
	"time"

	"starling"
)

// A State is what a governor has learned and what it measures, in spans instead of instants, so that it goes on at another
// scheduler. The zero State is that of a governor that learns nothing. It is a value: copies are independent.
type State struct {
	known          bool
	guess, gone    bool
	never          bool          // no arrival was seen
	noted, arrived time.Duration // ago
	grown          uint32        // ticks ago
	active, ready  uint16
	rate, exec     float32
	start, loss    float32
	usual          float32
	gaps           gaps
	levels         levels // at counts ticks ago
}

// A Learner is a Governor that another one can go on for.
type Learner interface {
	Governor
	// State returns what it knows at the instant now.
	State(now time.Duration) State
}

// A Reviver is a Policy whose governors are Learners.
type Reviver interface {
	Policy
	// Revive returns a governor that goes on from st at the instant now. It may be given any State that was decoded.
	Revive(v Facts, now time.Duration, st State) Governor
}

// StateOf returns what g knows at the instant now; the zero State for nil and for one that learns nothing.
func StateOf(g Governor, now time.Duration) State {
	if l, ok := g.(Learner); ok {
		return l.State(now)
	}
	return State{}
}

// Revive returns a governor of p that goes on from st at the instant now, or a new one where p cannot or st is empty.
func Revive(p Policy, v Facts, now time.Duration, st State) Governor {
	if r, ok := p.(Reviver); ok && st.known {
		return r.Revive(v, now, st)
	}
	return p.New(v)
}

// Empty reports whether there is nothing in st.
func (st State) Empty() bool { return !st.known }

var (
	_ Learner = (*governor)(nil)
	_ Reviver = (*Adaptive)(nil)
)

// State returns what g knows.
func (g *governor) State(now time.Duration) State {
	st := State{known: true, guess: g.guess, gone: g.gone, never: g.arrived == never, noted: ago(now, g.noted), grown: uint32(now/tick) - g.grown,
		active: g.active, ready: g.ready, rate: g.rate, exec: g.exec, start: g.start, loss: g.loss, usual: g.usual, gaps: g.gaps, levels: g.levels}
	if !st.never {
		st.arrived = ago(now, g.arrived)
	}
	for k := range st.levels.n {
		st.levels.at[k] = uint32(now/tick) - st.levels.at[k]
	}
	clear(st.levels.at[st.levels.n:])
	clear(st.levels.top[st.levels.n:])
	return st
}

// ago is how long t lies back, in what the wire carries.
func ago(now, t time.Duration) time.Duration { return max(now-t, 0).Truncate(time.Microsecond) }

// Revive returns a governor that goes on from st.
func (a *Adaptive) Revive(v Facts, now time.Duration, st State) Governor {
	g := a.New(v).(*governor)
	ticks := uint32(now / tick)
	g.noted, g.grown = now-st.noted, ticks-min(st.grown, ticks)
	if !st.never {
		g.arrived = now - st.arrived
	}
	g.guess, g.gone, g.active, g.ready = st.guess, st.gone, st.active, st.ready
	g.rate, g.exec, g.start, g.loss, g.usual, g.gaps, g.levels = st.rate, st.exec, st.start, st.loss, st.usual, st.gaps, st.levels
	for k := range g.levels.n {
		g.levels.at[k] = ticks - min(st.levels.at[k], ticks)
	}
	return g
}

// Aged returns st as it is d later, when nothing happens meanwhile.
func (st State) Aged(d time.Duration) State {
	if !st.known {
		return st
	}
	st.noted += d
	st.grown += uint32(d / tick)
	if !st.never {
		st.arrived += d
	}
	for k := range st.levels.n {
		st.levels.at[k] += uint32(d / tick)
	}
	return st
}

// Part returns what is believed of a part of the calls that st was learned from, where share is from 0 to 1: its rate and its
// instances are fewer, and what is known of one call, one start or one gap is the same.
func (st State) Part(share float64) State { return st.times(share) }

// Join returns what is believed of the calls of both: the habits of the one that is called more, at the rate of both.
func (st State) Join(o State) State {
	switch {
	case !o.known:
		return st
	case !st.known:
		return o
	}
	if o.rate > st.rate {
		st, o = o, st
	}
	sum := 2.0
	if st.rate > 0 {
		sum = float64(st.rate+o.rate) / float64(st.rate)
	}
	j := st.times(sum)
	if st.never || !o.never && o.arrived < st.arrived {
		j.arrived, j.never, j.guess = o.arrived, o.never, o.guess
	}
	if j.exec == 0 {
		j.exec = o.exec
	}
	if j.start == 0 {
		j.start = o.start
	}
	j.noted, j.gone = min(st.noted, o.noted), st.gone && o.gone
	return j
}

// times returns st with f times the calls.
func (st State) times(f float64) State {
	count := func(n uint16) uint16 { return uint16(min(math.Ceil(float64(n)*f), math.MaxUint16)) }
	st.rate = float32(min(float64(st.rate)*f, rateMax))
	st.usual = float32(min(max(float64(st.usual)*f, 1), math.MaxUint16))
	st.active, st.ready = count(st.active), count(st.ready)
	was := st.levels
	l := &st.levels
	l.n, l.at, l.top = 0, [steps]uint32{}, [steps]uint16{}
	for k := range was.n {
		top := max(count(was.top[k]), 1)
		if l.n > 0 && l.top[l.n-1] <= top {
			l.n-- // the step below came to the same height, and is younger
		}
		l.at[l.n], l.top[l.n] = was.at[k], top
		l.n++
	}
	return st
}

// stateVersion is that of the encoding. 0 stands for the zero State.
const stateVersion = 1

// The bounds of what is decoded.
const (
	rateMax  = 1e9
	agoMax   = 366 * 24 * time.Hour
	ticksMax = uint64(agoMax / tick)
)

// Append appends the encoding of st: one byte for the zero State, else about 60 bytes and 2 for each bin that is not empty.
func (st State) Append(b []byte) []byte {
	if !st.known {
		return append(b, 0)
	}
	flags := byte(0)
	for k, set := range []bool{st.guess, st.gone, st.never} {
		if set {
			flags |= 1 << k
		}
	}
	b = append(b, stateVersion, flags)
	for _, n := range []uint64{uint64(min(st.noted, agoMax) / time.Microsecond), uint64(min(st.arrived, agoMax) / time.Microsecond), min(uint64(st.grown), ticksMax), uint64(st.active), uint64(st.ready)} {
		b = binary.AppendUvarint(b, n)
	}
	for _, f := range []float32{st.rate, st.exec, st.start, st.loss, st.usual, st.gaps.period, st.gaps.spread} {
		b = binary.BigEndian.AppendUint32(b, math.Float32bits(f))
	}
	b = append(b, st.gaps.beyond, st.gaps.near, st.gaps.odds)
	b = appendSparse(b, st.gaps.bins[:])
	for g := range st.levels.hits {
		b = appendSparse(b, st.levels.hits[g][:])
	}
	b = appendSparse(b, st.levels.peaks[:])
	b = append(b, st.levels.n)
	for k := range st.levels.n {
		b = binary.AppendUvarint(b, min(uint64(st.levels.at[k]), ticksMax))
		b = binary.AppendUvarint(b, uint64(st.levels.top[k]))
	}
	return b
}

// appendSparse appends the bins that are not empty.
func appendSparse(b []byte, bins []uint8) []byte {
	at := len(b)
	b = append(b, 0)
	for k, n := range bins {
		if n > 0 {
			b = append(b, byte(k), n)
			b[at]++
		}
	}
	return b
}

// DecodeState reads a State and returns it with the bytes behind it. What cannot be one is of kind Invalid.
func DecodeState(b []byte) (st State, rest []byte, err error) {
	r := stateReader{b: b}
	switch v := r.byte(); {
	case r.bad || v > stateVersion:
		return State{}, nil, errState()
	case v == 0:
		return State{}, r.b, nil
	}
	flags := r.byte()
	st = State{known: true, guess: flags&1 != 0, gone: flags&2 != 0, never: flags&4 != 0}
	st.noted, st.arrived = r.ago(), r.ago()
	st.grown, st.active, st.ready = uint32(r.number(ticksMax)), uint16(r.number(math.MaxUint16)), uint16(r.number(math.MaxUint16))
	for _, f := range []*float32{&st.rate, &st.exec, &st.start, &st.loss, &st.usual, &st.gaps.period, &st.gaps.spread} {
		*f = r.float()
	}
	st.gaps.beyond, st.gaps.near, st.gaps.odds = r.byte(), r.byte(), r.byte()
	r.sparse(st.gaps.bins[:])
	total := int(st.gaps.beyond) + int(st.gaps.near)
	for _, n := range st.gaps.bins {
		total += int(n)
	}
	r.bad = r.bad || total > gapsMax || st.usual > math.MaxUint16
	st.gaps.total = uint8(min(total, gapsMax))
	for g := range st.levels.hits {
		r.sparse(st.levels.hits[g][:])
	}
	r.sparse(st.levels.peaks[:])
	l := &st.levels
	if l.n = r.byte(); l.n > steps {
		return State{}, nil, errState()
	}
	for k := range l.n {
		l.at[k], l.top[k] = uint32(r.number(ticksMax)), uint16(r.number(math.MaxUint16))
		r.bad = r.bad || l.top[k] == 0 || k > 0 && l.top[k] >= l.top[k-1]
	}
	if r.bad || flags > 7 || st.never && st.arrived != 0 {
		return State{}, nil, errState()
	}
	return st, r.b, nil
}

func errState() error {
	return starling.Errorf(starling.Invalid, "decode governor", "it is cut off, or of a later release, or was damaged")
}

// A stateReader reads from b until something is bad.
type stateReader struct {
	b   []byte
	bad bool
}

func (r *stateReader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *stateReader) number(most uint64) uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > most {
		r.bad = true
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *stateReader) ago() time.Duration {
	return time.Duration(r.number(uint64(agoMax/time.Microsecond))) * time.Microsecond
}

func (r *stateReader) float() float32 {
	if len(r.b) < 4 {
		r.bad = true
		return 0
	}
	f := math.Float32frombits(binary.BigEndian.Uint32(r.b))
	r.b = r.b[4:]
	if !(f >= 0 && f <= rateMax) {
		r.bad = true
		return 0
	}
	return f
}

func (r *stateReader) sparse(bins []uint8) {
	last := -1
	for n := r.byte(); n > 0 && !r.bad; n-- {
		k, c := int(r.byte()), r.byte()
		if k >= len(bins) || k <= last || c == 0 {
			r.bad = true
			return
		}
		bins[k], last = c, k
	}
}
