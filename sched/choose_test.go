package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"starling"
	"starling/actors/wire"
	"starling/sched/place"
)

// crowd returns a scheduler of many hosts of every kind and a version that was started on some of them. Of the hosts
// about the share full has no room.
func crowd(tb testing.TB, hosts int, full float64, seed uint64) (*Scheduler, *version) {
	tb.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	s := New(DefaultConfig(), rand.New(rand.NewPCG(seed, 2)))
	now := time.Unix(1_700_000_000, 0)
	ids := make([]starling.NodeID, hosts)
	for h := range ids {
		ids[h] = starling.NodeID(h + 1)
	}
	s.Step(now, Activate{Partition: 1, Epoch: 1, Hosts: ids})
	s.Step(now, LeaseUntil{now.Add(time.Hour)})
	v := s.addVersion(1)
	for h, id := range ids {
		s.Step(now, Message{id, &wire.Fenced{Partition: 1, Epoch: 1, Host: id}})
		r := &wire.HostReport{Host: id, Zone: starling.Zone(fmt.Sprintf("z%d", h%3)), TotalMiB: 65536, CPU: uint16(rng.IntN(1000))}
		if rng.Float64() >= full {
			r.FreeMiB = uint32(128 + rng.IntN(65000))
		}
		if rng.IntN(4) == 0 {
			r.Pools = []wire.PoolReport{{Runtime: starling.Python311, Ready: 1}}
		}
		if rng.IntN(hosts/4) == 0 && r.FreeMiB > 0 {
			r.Versions = []starling.VersionID{2, 1}
			v.homes.note(id)
		}
		s.Step(now, Message{id, r})
	}
	s.Step(now, VersionKnown{&starling.Version{ID: 1, Config: starling.Config{Runtime: starling.Python311}.WithDefaults()}, 1000})
	return s, v
}

// best returns the score of the best of all hosts and of the one named, by the weights of place.
func best(s *Scheduler, v *version, chosen *host) (int, int) {
	want := place.Want{MemoryMiB: v.config.Config.MemoryMiB, StartingMax: s.cfg.HostMax}
	s.cands = s.cands[:0]
	s.scan(v, want)
	most, got := -1<<31, 0
	for k := range s.cands {
		if c := &s.cands[k]; s.hosts[c.Node].room(want) {
			n := place.Score(c, want, s.cfg.Weights)
			most = max(most, n)
			if c.Node == chosen.node {
				got = n
			}
		}
	}
	return most, got
}

// TestAFewHostsAreEnough: of many hosts the one chosen from a few has room whenever any has, is warm when a warm one is
// best, and is on average not much worse than the best of all.
func TestAFewHostsAreEnough(t *testing.T) {
	for _, full := range []float64{0, 0.5, 0.95, 0.998} {
		lost, worlds := 0, 40
		for seed := range uint64(worlds) {
			s, v := crowd(t, 500, full, seed)
			h := s.choose(v)
			fits := slices.ContainsFunc(s.order, func(h *host) bool { return h.free >= 128 })
			if (h != nil) != fits {
				t.Fatalf("full %v, seed %d: chosen %v, somebody has room: %t", full, seed, h, fits)
			}
			if h == nil {
				continue
			}
			if h.free < 128 {
				t.Fatalf("full %v, seed %d: %v has no room", full, seed, h.node)
			}
			most, got := best(s, v, h)
			lost += most - got
		}
		if lost/worlds > 100 { // a third of what code on the spot is worth
			t.Errorf("full %v: the hosts chosen are %d worse than the best on average", full, lost/worlds)
		}
	}
}

// TestHomesAreTheLastHosts: a version comes back to where it was, also after it was forgotten.
func TestHomesAreTheLastHosts(t *testing.T) {
	var h homes
	for _, n := range []starling.NodeID{1, 2, 3, 2, 4, 5} {
		h.note(n)
	}
	if h != (homes{5, 4, 2, 3}) {
		t.Errorf("homes are %v", h)
	}
	s, v := crowd(t, 500, 0, 1)
	was := v.homes
	s.dropVersion(v)
	s.addVersion(1)
	s.versionKnown(v.config, 1000)
	if again := s.versions.find(1); again == v || again.homes != was || was[0] == 0 {
		t.Errorf("homes are %v, were %v", again.homes, was)
	}
}

// BenchmarkChoose is one placement.
func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{scanHosts, 1000} {
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			s, v := crowd(b, n, 0.5, 1)
			b.ReportAllocs()
			for b.Loop() {
				s.choose(v)
			}
		})
	}
}
