package scale

import "testing"

func TestStarts(t *testing.T) {
	for _, c := range []struct {
		name string
		load Load
		want int
	}{
		{"one for each waiting call", Load{Waiting: 3, Slots: 1, Left: 10, StartsLeft: 10}, 3},
		{"those on their way count", Load{Waiting: 3, Starting: 2, Slots: 1, Left: 10, StartsLeft: 10}, 1},
		{"slots are filled", Load{Waiting: 11, Slots: 10, Left: 10, StartsLeft: 10}, 2},
		{"never below zero", Load{Waiting: 1, Starting: 5, Slots: 1, Left: 10, StartsLeft: 10}, 0},
		{"the limit holds", Load{Waiting: 9, Slots: 1, Left: 2, StartsLeft: 10}, 2},
		{"storms are bounded", Load{Waiting: 9, Slots: 1, Left: 9, StartsLeft: 4}, 4},
		{"over the limit already", Load{Waiting: 9, Slots: 1, Left: -1, StartsLeft: 4}, 0},
		{"a queue is no proof of need", Load{Waiting: 200, Slots: 1, Ramp: 4, Left: 900, StartsLeft: 128}, 4},
		{"as many again as serve", Load{Waiting: 200, Slots: 1, Ready: 16, Ramp: 4, Left: 900, StartsLeft: 128}, 16},
		{"those on their way are of the ramp", Load{Waiting: 200, Starting: 4, Slots: 1, Ramp: 4, Left: 900, StartsLeft: 128}, 0},
		{"one at a time after a failure", Load{Waiting: 9, Slots: 1, Left: 9, StartsLeft: 9, OnProbation: true}, 1},
		{"and not a second one", Load{Waiting: 9, Starting: 1, Slots: 1, Left: 9, StartsLeft: 9, OnProbation: true}, 0},
	} {
		if got := Starts(c.load); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
