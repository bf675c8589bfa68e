package flowtable

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"starling"
)

func key(account, fn, network string) Key {
	return Key{starling.FunctionRef{Account: starling.AccountID(account), Name: starling.FunctionName(fn)}, starling.NetworkName(network)}
}

func TestEachLimitRefusesByItsName(t *testing.T) {
	wide := Limits{1000, 1000}
	for _, c := range []struct {
		name                       string
		account, network, function Limits
		want                       Refusal
	}{
		{"account conns", Limits{2, 1000}, wide, wide, AccountConns},
		{"network conns", wide, Limits{2, 1000}, wide, NetworkConns},
		{"function conns", wide, wide, Limits{2, 1000}, FuncConns},
		{"account rate", Limits{1000, 2}, wide, wide, AccountRate},
		{"network rate", wide, Limits{1000, 2}, wide, NetworkRate},
		{"function rate", wide, wide, Limits{1000, 2}, FuncRate},
	} {
		tab, now, k := New(c.account, c.function), time.Unix(100, 0), key("a", "f", "n")
		for i := range 2 {
			if got := tab.Begin(now, k, c.network); got != Admitted {
				t.Errorf("%s: flow %d refused: %s", c.name, i, got)
			}
		}
		if got := tab.Begin(now, k, c.network); got != c.want {
			t.Errorf("%s: third flow: %q, want %q", c.name, got, c.want)
		}
		if got := tab.Begin(now, key("b", "f", "n"), c.network); got != Admitted {
			t.Errorf("%s: another account is refused: %s", c.name, got)
		}
	}
}

func TestEndGivesBackAndTimeFills(t *testing.T) {
	tab, now, k, n := New(Limits{1, 2}, Limits{10, 10}), time.Unix(100, 0), key("a", "f", "n"), Limits{10, 10}
	tab.Begin(now, k, n)
	if got := tab.Begin(now, k, n); got != AccountConns {
		t.Fatalf("second at once: %q", got)
	}
	tab.End(k)
	if got := tab.Begin(now, k, n); got != Admitted {
		t.Fatalf("after an end: %q", got)
	}
	tab.End(k)
	if got := tab.Begin(now, k, n); got != AccountRate {
		t.Fatalf("third within the second: %q", got)
	}
	if got := tab.Begin(now.Add(500*time.Millisecond), k, n); got != Admitted {
		t.Fatalf("half a second later: %q", got)
	}
}

// Whatever happens, no one ever has more than its limits, a flow that ended is counted nowhere, and who has none is forgotten.
func TestLimitsHoldForEverySeed(t *testing.T) {
	for seed := uint64(1); seed <= 50; seed++ {
		rng := rand.New(rand.NewPCG(seed, 1))
		tab, now := New(Limits{7, 20}, Limits{4, 9}), time.Unix(1000, 0)
		network := Limits{5, 15}
		live := map[Key]int{}
		var flows []Key
		inSecond := map[string][]time.Time{}
		for range 3000 {
			now = now.Add(time.Duration(rng.IntN(40)) * time.Millisecond)
			if len(flows) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(flows))
				tab.End(flows[i])
				live[flows[i]]--
				flows = append(flows[:i], flows[i+1:]...)
				continue
			}
			k := key(fmt.Sprint("a", rng.IntN(2)), fmt.Sprint("f", rng.IntN(3)), fmt.Sprint("n", rng.IntN(2)))
			if tab.Begin(now, k, network) != Admitted {
				continue
			}
			live[k]++
			flows = append(flows, k)
			account := string(k.Function.Account)
			inSecond[account] = append(inSecond[account], now)
			perAccount, perNetwork, perFunc := 0, 0, 0
			for other, n := range live {
				if other.Function.Account == k.Function.Account {
					perAccount += n
					if other.Network == k.Network {
						perNetwork += n
					}
				}
				if other.Function == k.Function {
					perFunc += n
				}
			}
			if perAccount > 7 || perNetwork > 5 || perFunc > 4 {
				t.Fatalf("seed %d: %d flows of account, %d of network, %d of function", seed, perAccount, perNetwork, perFunc)
			}
			recent := 0
			for _, at := range inSecond[account] {
				if now.Sub(at) < time.Second {
					recent++
				}
			}
			if recent > 40 { // a full bucket and a second's filling
				t.Fatalf("seed %d: %d flows begun in a second", seed, recent)
			}
			if tab.Conns() != len(flows) {
				t.Fatalf("seed %d: counts %d flows, %d live", seed, tab.Conns(), len(flows))
			}
		}
		for _, k := range flows {
			tab.End(k)
		}
		tab.sweep(now.Add(time.Minute))
		if n := len(tab.accounts) + len(tab.networks) + len(tab.funcs); n != 0 {
			t.Fatalf("seed %d: %d idle ones are remembered", seed, n)
		}
	}
}
