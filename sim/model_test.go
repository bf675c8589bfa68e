package sim

import (
	"flag"
	"math"
	"testing"
	"time"

	"starling/sched/scale"
	"starling/sim/compare"
	"starling/sim/load"
	"starling/sim/rival"
)

var (
	modelFunctions = flag.Int("model", 40, "functions of the load on which the comparison's model and the whole cluster are held against each other")
	modelTime      = flag.Duration("model-time", 3*time.Hour, "length of that load")
	modelSeed      = flag.Uint64("model-seed", 1, "seed of that load")
	modelManaged   = flag.Bool("model-managed", false, "with managers, heartbeats and node leases, too")
)

// TestModelAgreesWithTheCluster holds sim/compare, which replays one function at a time, against the whole cluster on the same calls: production
// schedulers, leases at frontends, hosts with memory. The figures differ by what the model leaves out; the bounds are what the decisions
// taken from it can bear.
func TestModelAgreesWithTheCluster(t *testing.T) {
	cfg := load.DefaultAzure()
	cfg.Functions, cfg.Accounts, cfg.Length, cfg.RateMax = *modelFunctions, max(*modelFunctions/4, 1), *modelTime, 5000
	trace, err := compare.Gather(load.Azure(cfg, *modelSeed), compare.CallsMax)
	if err != nil {
		t.Fatal(err)
	}
	trace.End += time.Minute // in the cluster an answer takes its way
	t.Logf("%d functions, %v, seed %d, %d calls", cfg.Functions, cfg.Length, *modelSeed, trace.Count)
	for _, p := range []struct {
		name   string
		policy scale.Policy
	}{{"fixed 10 min", rival.KeepAlive{Idle: 10 * time.Minute}}, {"starling", scale.Default()}} {
		model := compare.Run(trace, p.name, p.policy, compare.DefaultConfig(), nil)
		c := still(load.Azure(cfg, *modelSeed), 8, 64<<10, 8)
		c.Sched.Policy, c.Static = p.policy, !*modelManaged
		if *modelManaged {
			c.Managers = 3
		}
		w := New(c, 1)
		whole, err := w.Run(trace.End)
		if err != nil {
			t.Fatal(err)
		}
		cold, seconds := whole.ColdRatio/model.ColdRatio()-1, whole.Instances/model.InstanceSeconds-1
		t.Logf("%-13s cold %.3f %% in the model, %.3f %% in the cluster (%+.1f %%); instance-seconds %.0f and %.0f (%+.1f %%); starts %d and %d; wait p50 %v and %v, p99 %v and %v; refused %d and %v",
			p.name, 100*model.ColdRatio(), 100*whole.ColdRatio, 100*cold, model.InstanceSeconds, whole.Instances, 100*seconds, model.Starts, whole.Starts,
			model.WaitP50, whole.WaitP50, model.WaitP99, whole.WaitP99, model.Refused, whole.Refused)
		if whole.Calls != uint64(trace.Count) {
			t.Errorf("%s: the cluster saw %d calls of %d", p.name, whole.Calls, trace.Count)
		}
		if math.Abs(cold) > 0.1 || math.Abs(seconds) > 0.1 {
			t.Errorf("%s: the model is more than a tenth away from the cluster", p.name)
		}
	}
}
