// Package place says which gateways serve a network, in which order. Every node that knows the same gateways says the same,
// and the end of one gateway moves its own networks only. It is pure.
package place

import (
	"cmp"
	"slices"

	"starling"
)

// Rank returns the gateways in the order in which a host tries them for a network: by rendezvous hashing, the highest first.
func Rank(network starling.NetworkRef, gateways []starling.NodeID) []starling.NodeID {
	out := slices.Clone(gateways)
	slices.SortFunc(out, func(a, b starling.NodeID) int {
		return cmp.Or(cmp.Compare(weight(network, b), weight(network, a)), cmp.Compare(a, b))
	})
	return out
}

// weight is FNV-1a of network and node with the finaliser of MurmurHash3, fixed for ever: nodes of two releases must agree.
func weight(n starling.NetworkRef, node starling.NodeID) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, text := range []string{string(n.Account), "\x00", string(n.Name), "\x00"} {
		for i := 0; i < len(text); i++ {
			h = (h ^ uint64(text[i])) * prime
		}
	}
	for i := 0; i < 64; i += 8 {
		h = (h ^ uint64(node)>>i&0xff) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
