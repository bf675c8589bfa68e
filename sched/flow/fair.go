package flow

// Fair divides limit among wants by max-min fairness: nobody gets more than he wants, and nobody gets less than
// somebody else unless he wants less. What does not divide evenly goes to the first in order. Negative wants count as
// 0. The result is written to out, which must be as long as wants, and sums to min(limit, sum of wants).
//
// This is progressive filling (Bertsekas and Gallager, Data Networks, 6.5.2).
func Fair(limit int, wants, out []int) {
	for i := range out {
		out[i] = 0
	}
	for left := max(limit, 0); left > 0; {
		open := 0
		for i, w := range wants {
			if w > out[i] {
				open++
			}
		}
		if open == 0 {
			return
		}
		each := max(left/open, 1)
		for i, w := range wants {
			if w > out[i] && left > 0 {
				n := min(each, w-out[i], left)
				out[i] += n
				left -= n
			}
		}
	}
}
