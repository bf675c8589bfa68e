package sim

import (
	"flag"
	"testing"
	"time"
)

var fairSeeds = flag.Uint64("fair", 2, "worlds with a loud tenant to run")

// TestALoudTenantDoesNotMoveTheQuiet: beside one tenant with 50 times their load, on a machine that can do 36 % of what
// is asked, no quiet tenant is refused a call and none's p99 is more than twice what it is without the loud one, from the
// loud one's first call on; what the quiet leave is not kept from him.
func TestALoudTenantDoesNotMoveTheQuiet(t *testing.T) {
	for seed := uint64(1); seed <= *fairSeeds; seed++ {
		r, err := RunFair(Fair{}, seed)
		if err != nil {
			t.Fatal(err)
		}
		loud := r.Tenants[len(r.Tenants)-1].Beside
		t.Logf("seed %d: worst p99 %.2f times, %.2f with the first two seconds, %d quiet calls refused, Jain %.4f, of shares %.4f; the loud one: %d of %d calls served, refused %v",
			seed, r.Worst, r.Whole, r.Refusals, r.Jain, r.JainAll, loud.Answered, loud.Calls, loud.Reasons)
		for _, q := range r.Tenants[:len(r.Tenants)-1] {
			t.Logf("  %s p50 %v to %v, p99 %v to %v (%.2f times, %.2f)", q.Name, q.Alone.LatencyP50, q.Beside.LatencyP50, q.Alone.LatencyP99, q.Beside.LatencyP99, q.Ratio, q.Whole)
		}
		if r.Whole > 2 || r.Worst > 2 || r.Refusals > 0 || r.Jain < 0.999 || r.Offered < 2*r.Cores || loud.Answered < loud.Calls/8 {
			t.Errorf("seed %d: %+v", seed, r)
		}
	}
}

// TestALoudTenantOnSeveralMachines is the same where three machines are overloaded at once, and calls that came through
// one run on another.
func TestALoudTenantOnSeveralMachines(t *testing.T) {
	for seed := uint64(1); seed <= max(*fairSeeds/2, 1); seed++ {
		r, err := RunFair(Fair{Machines: 3, Rate: 300, Length: 20 * time.Second}, seed)
		if err != nil {
			t.Fatal(err)
		}
		loud := r.Tenants[len(r.Tenants)-1].Beside
		t.Logf("seed %d: worst p99 %.2f times, %.2f with the first two seconds, %d quiet calls refused, Jain %.4f; the loud one: %d of %d calls served",
			seed, r.Worst, r.Whole, r.Refusals, r.Jain, loud.Answered, loud.Calls)
		if r.Whole > 2 || r.Worst > 2 || r.Refusals > 0 || r.Jain < 0.999 || r.Offered < 2*r.Cores {
			t.Errorf("seed %d: %+v", seed, r)
		}
	}
}

// TestALoudTenantBesideQuietOnesAtOtherDoors is the same where each tenant calls through one frontend: that of a quiet one
// sees him whole and of the loud one what reaches its machine, and must not take the quiet one for the loud.
func TestALoudTenantBesideQuietOnesAtOtherDoors(t *testing.T) {
	for seed := uint64(1); seed <= max(*fairSeeds/2, 1); seed++ {
		r, err := RunFair(Fair{Machines: 3, Rate: 300, Length: 20 * time.Second, OneDoor: true}, seed)
		if err != nil {
			t.Fatal(err)
		}
		loud := r.Tenants[len(r.Tenants)-1].Beside
		t.Logf("seed %d: worst p99 %.2f times, %.2f with the first two seconds, %d quiet calls refused, Jain %.4f; the loud one: %d of %d calls served",
			seed, r.Worst, r.Whole, r.Refusals, r.Jain, loud.Answered, loud.Calls)
		if r.Whole > 2 || r.Worst > 2 || r.Refusals > 0 || r.Jain < 0.999 || r.Offered < 2*r.Cores {
			t.Errorf("seed %d: %+v", seed, r)
		}
	}
}

// TestWithoutTheShedderTheQuietSuffer shows that the scenario can fail.
func TestWithoutTheShedderTheQuietSuffer(t *testing.T) {
	r, err := RunFair(Fair{Open: true}, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("worst p99 %.2f times, %d quiet calls refused", r.Worst, r.Refusals)
	if r.Worst < 4 {
		t.Errorf("nobody is refused and the worst p99 is only %.2f times what it was", r.Worst)
	}
}

// TestFairSaysWhatCannotBe: numbers from outside are checked before a world is made of them.
func TestFairSaysWhatCannotBe(t *testing.T) {
	for _, f := range []Fair{{Machines: 65}, {Quiet: 64}, {Cores: -1}, {Rate: 1e6}, {Times: -50}, {Work: -1}, {Settle: 120e9}, {Length: 25 * 3600e9}} {
		if _, err := RunFair(f, 1); err == nil {
			t.Errorf("%+v was taken", f)
		}
	}
}
