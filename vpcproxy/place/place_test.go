package place

import (
	"fmt"
	"slices"
	"testing"

	"starling"
)

func network(i int) starling.NetworkRef {
	return starling.NetworkRef{Account: starling.AccountID(fmt.Sprint("a", i%50)), Name: starling.NetworkName(fmt.Sprint("n", i))}
}

func TestOrderOfGatewaysDoesNotMatter(t *testing.T) {
	for i := range 100 {
		a, b := Rank(network(i), []starling.NodeID{1, 2, 3, 4}), Rank(network(i), []starling.NodeID{4, 2, 1, 3})
		if !slices.Equal(a, b) {
			t.Fatalf("%s: %v and %v", network(i), a, b)
		}
	}
	if got := Rank(network(1), nil); len(got) != 0 {
		t.Fatalf("without a gateway: %v", got)
	}
}

// The end of a gateway moves its own networks and no others; their next is the one that was second.
func TestEndOfAGatewayMovesItsOwnNetworksOnly(t *testing.T) {
	moved, load := 0, map[starling.NodeID]int{}
	for i := range 3000 {
		before := Rank(network(i), []starling.NodeID{1, 2, 3})
		after := Rank(network(i), []starling.NodeID{1, 3})
		load[before[0]]++
		if before[0] == 2 {
			moved++
			if after[0] != before[1] {
				t.Fatalf("%s goes to %v, was %v", network(i), after, before)
			}
		} else if after[0] != before[0] {
			t.Fatalf("%s moved from %v to %v", network(i), before, after)
		}
	}
	for id, n := range load {
		if n < 850 || n > 1150 {
			t.Errorf("gateway %v has %d of 3000 networks", id, n)
		}
	}
}
