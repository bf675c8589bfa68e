package manager

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"starling/cluster/partmap"
)

// managerMetrics are the numbers of one Manager.
type managerMetrics struct {
	set        *metrics.Set
	reigns     *metrics.Counter
	heartbeats *metrics.Counter
	deaths     *metrics.Counter
	assigned   *metrics.Counter
	unowned    *metrics.Gauge
	voters     *metrics.Gauge // as last seen while this manager led
	proposals  *metrics.PrometheusHistogram
	imbalance  *metrics.Gauge // as of the last look while this manager led
	flying     *metrics.Gauge // orders
}

// ordered counts one order that ended.
func (s *managerMetrics) ordered(kind partmap.ChangeKind, outcome string) {
	s.set.GetOrCreateCounter(fmt.Sprintf(`starling_manager_orders_total{change=%q,outcome=%q}`, kind, outcome)).Inc()
}

func (s *managerMetrics) init(m *Manager) {
	s.set = metrics.NewSet()
	s.reigns = s.set.NewCounter("starling_manager_reigns_total")
	s.heartbeats = s.set.NewCounter("starling_manager_heartbeats_total")
	s.deaths = s.set.NewCounter("starling_manager_node_deaths_total")
	s.assigned = s.set.NewCounter("starling_manager_partition_changes_total")
	s.unowned = s.set.NewGauge("starling_manager_partitions_unowned", nil)
	s.voters = s.set.NewGauge("starling_manager_voters", nil)
	s.imbalance = s.set.NewGauge("starling_manager_imbalance_ratio", nil)
	s.flying = s.set.NewGauge("starling_manager_orders_in_flight", nil)
	s.proposals = s.set.NewPrometheusHistogram("starling_manager_propose_seconds")
	s.set.NewGauge("starling_manager_leads", func() float64 {
		if m.Leads() {
			return 1
		}
		return 0
	})
}
