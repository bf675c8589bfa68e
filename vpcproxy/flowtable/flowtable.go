// Package flowtable counts the flows of accounts, networks and functions at one gateway and says when one has enough. It is
// pure: whoever calls it holds a lock.
package flowtable

import (
	"time"

	"starling"
)

// A Refusal is which limit was reached; the empty one admits.
type Refusal string

// The refusals, as the audit log and the metrics have them.
const (
	Admitted     Refusal = ""
	AccountConns Refusal = "flows of the account"
	NetworkConns Refusal = "flows of the network"
	FuncConns    Refusal = "flows of the function"
	AccountRate  Refusal = "rate of the account"
	NetworkRate  Refusal = "rate of the network"
	FuncRate     Refusal = "rate of the function"
)

// Limits bounds one account, network or function.
type Limits struct {
	Conns int // at once, ≥ 1
	Rate  int // begun in a second, ≥ 1; as many may begin at one instant after a quiet second
}

// A Key says whose a flow is.
type Key struct {
	Function starling.FunctionRef
	Network  starling.NetworkName
}

// A Table is the flows of one gateway. Create it with New.
type Table struct {
	account  Limits // of each account, over all its networks
	function Limits // of each function
	accounts map[starling.AccountID]*bucket
	networks map[starling.NetworkRef]*bucket
	funcs    map[starling.FunctionRef]*bucket
	begun    int // since the last sweep
}

// sweepEvery is after how many flows what is idle is forgotten.
const sweepEvery = 4096

// New returns an empty table with the limits of each account and of each function.
func New(account, function Limits) *Table {
	return &Table{account: account, function: function, accounts: map[starling.AccountID]*bucket{}, networks: map[starling.NetworkRef]*bucket{},
		funcs: map[starling.FunctionRef]*bucket{}}
}

// A bucket counts what one of them has. Tokens are flows that it may still begin at the instant seen.
type bucket struct {
	conns  int
	tokens float64
	seen   time.Time
}

// fill gives the tokens of the time that passed.
func (b *bucket) fill(now time.Time, rate int) {
	if now.After(b.seen) {
		b.tokens = min(float64(rate), b.tokens+now.Sub(b.seen).Seconds()*float64(rate))
		b.seen = now
	}
}

func bucketOf[K comparable](m map[K]*bucket, k K, now time.Time, rate int) *bucket {
	b := m[k]
	if b == nil {
		b = &bucket{tokens: float64(rate), seen: now}
		m[k] = b
	}
	b.fill(now, rate)
	return b
}

// Begin admits a flow, which End then ends, or says which limit it meets. network bounds the flow's network. A refused flow
// counts for nothing.
func (t *Table) Begin(now time.Time, k Key, network Limits) Refusal {
	if t.begun++; t.begun >= sweepEvery {
		t.begun = 0
		t.sweep(now)
	}
	a := bucketOf(t.accounts, k.Function.Account, now, t.account.Rate)
	n := bucketOf(t.networks, starling.NetworkRef{Account: k.Function.Account, Name: k.Network}, now, network.Rate)
	f := bucketOf(t.funcs, k.Function, now, t.function.Rate)
	switch {
	case a.conns >= t.account.Conns:
		return AccountConns
	case n.conns >= network.Conns:
		return NetworkConns
	case f.conns >= t.function.Conns:
		return FuncConns
	case a.tokens < 1:
		return AccountRate
	case n.tokens < 1:
		return NetworkRate
	case f.tokens < 1:
		return FuncRate
	}
	for _, b := range []*bucket{a, n, f} {
		b.conns++
		b.tokens--
	}
	return Admitted
}

// Adopt takes a flow that began at another gateway: no limit is asked, but it counts as one that is at work.
func (t *Table) Adopt(now time.Time, k Key, network Limits) {
	bucketOf(t.accounts, k.Function.Account, now, t.account.Rate).conns++
	bucketOf(t.networks, starling.NetworkRef{Account: k.Function.Account, Name: k.Network}, now, network.Rate).conns++
	bucketOf(t.funcs, k.Function, now, t.function.Rate).conns++
}

// End ends a flow that Begin admitted or Adopt took.
func (t *Table) End(k Key) {
	for _, b := range []*bucket{t.accounts[k.Function.Account], t.networks[starling.NetworkRef{Account: k.Function.Account, Name: k.Network}], t.funcs[k.Function]} {
		if b != nil {
			b.conns--
		}
	}
}

// Conns returns the flows at work now.
func (t *Table) Conns() (n int) {
	for _, b := range t.accounts {
		n += b.conns
	}
	return n
}

// sweep forgets who has no flow and whose tokens have all come back: it would be made the same.
func (t *Table) sweep(now time.Time) {
	sweepOf(t.accounts, now)
	sweepOf(t.networks, now)
	sweepOf(t.funcs, now)
}

func sweepOf[K comparable](m map[K]*bucket, now time.Time) {
	for k, b := range m {
		if b.conns == 0 && now.Sub(b.seen) >= time.Second {
			delete(m, k)
		}
	}
}
