package balance

import (
	"math"

	"starling"
	"starling/cluster/partmap"
)

const span = 1 << 32 // keys of one function

// A point is a key at which a partition may be cut.
type point struct {
	at      starling.Key64
	larger  float64 // share of the load in the larger part
	inside  string  // the function whose keys are cut; "" for a cut between functions
	percent int     // of the partition's load that it has
}

// bestCut returns where a partition's load is parted best. A cut between functions is preferred, as a function in one
// piece keeps its limit in one piece: it is taken when the larger part has at most three quarters of the load, or at most
// enough, a node's fair share, if the smaller one has a twentieth at least. Otherwise the busiest function is cut so that each
// part is made of equal shares, as many as nodes are needed for it: three nodes get a third each, after one cut at a third and another one.
// Load that no function of hot accounts for is taken to be even over the keys. ok is false when there is nothing to cut.
func bestCut(r starling.Range, hot []partmap.Hot, enough float64) (best point, ok bool) {
	var keys []starling.Key64
	for k := uint64(1); k < 16; k++ {
		keys = append(keys, (r.Lo+starling.Key64(size(r)/16*k))&^(span-1))
	}
	for _, h := range hot {
		s := partmap.Span(h.Function)
		keys = append(keys, s.Lo, s.Hi)
	}
	for _, at := range keys {
		if at <= r.Lo || !r.Contains(at) {
			continue
		}
		below := loadBelow(r, hot, at)
		if p := (point{at: at, larger: max(below, 1-below)}); !ok || p.larger < best.larger {
			best, ok = p, true
		}
	}
	if ok && best.larger <= max(0.75, min(enough, 0.95)) || len(hot) == 0 {
		return best, ok
	}
	h := hot[0]
	for _, x := range hot {
		if x.Share > h.Share {
			h = x
		}
	}
	shares := uint64(2)
	if enough > 0 { // a little more than n times what is enough is taken to be n times: the load is never quite even
		shares = max(shares, uint64(math.Ceil(float64(h.Share)/1000/enough-0.2)))
	}
	at, cuttable := cutAt(r, partmap.Span(h.Function), shares/2, shares)
	if !cuttable {
		return best, ok
	}
	below := loadBelow(r, hot, at)
	inside := point{at: at, larger: max(below, 1-below), inside: h.Function.String(), percent: int(h.Share) / 10}
	if ok && best.larger <= inside.larger {
		return best, ok
	}
	return inside, true
}

// Cut returns the key at which a partition with this load is parted best; false when there is none.
func Cut(r starling.Range, l partmap.Load) (at starling.Key64, ok bool) {
	best, ok := bestCut(r, l.Hot, 0)
	return best.at, ok
}

// Middle returns the key that cuts in half what of s lies in r; false when that cannot be cut.
func Middle(r, s starling.Range) (at starling.Key64, ok bool) { return cutAt(r, s, 1, 2) }

// cutAt returns the key below which lie n of so many equal parts of what of s lies in r; false when it cannot be cut there.
func cutAt(r, s starling.Range, n, of uint64) (at starling.Key64, ok bool) {
	if uint64(r.Hi)-1 < uint64(s.Lo) || uint64(s.Hi)-1 < uint64(r.Lo) {
		return 0, false
	}
	part := overlap(r, s)
	at = part.Lo + starling.Key64((size(part)+1)/of*n+(size(part)+1)%of*n/of)
	return at, size(part) > 0 && at > r.Lo && r.Contains(at)
}

// loadBelow returns the share of a partition's load at keys below at.
func loadBelow(r starling.Range, hot []partmap.Hot, at starling.Key64) float64 {
	rest, below := 1.0, 0.0
	for _, h := range hot {
		s := partmap.Span(h.Function)
		if _, inside := Middle(r, s); !inside {
			continue // of a time when the partition had other keys
		}
		s = overlap(r, s)
		share := float64(h.Share) / 1000
		rest -= share
		switch {
		case !s.Contains(at) && at > s.Lo:
			below += share
		case at > s.Lo:
			below += share * float64(at-s.Lo) / (float64(size(s)) + 1)
		}
	}
	return min(below+max(rest, 0)*float64(at-r.Lo)/(float64(size(r))+1), 1)
}

// overlap returns the keys of s that lie in r; the two must have some in common.
func overlap(r, s starling.Range) starling.Range {
	last := min(uint64(r.Hi)-1, uint64(s.Hi)-1) // a Hi of 0 is 2^64
	return starling.Range{Lo: max(r.Lo, s.Lo), Hi: starling.Key64(last + 1)}
}
