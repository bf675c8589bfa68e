package compare

import (
	"starling/sched/scale"
	"starling/sim/rival"
)

// Policies replays t under every rival and the default policy, each with its defaults.
func Policies(t *Trace, cfg Config) (results []*Result) {
	for _, p := range append(rival.All(), rival.Named{Name: "starling", Policy: scale.Default()}) {
		results = append(results, Run(t, p.Name, p.Policy, cfg, nil))
	}
	return results
}
