package manager

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"starling/cluster"
	"starling/cluster/partmap"
)

// managerMetrics are the numbers of one Manager.
type managerMetrics struct {
	set        *metrics.Set
	reigns     *metrics.Counter
	heartbeats *metrics.Counter
	heard      *metrics.Counter                         // bytes of heartbeats
	messages   map[cluster.MessageKind]*metrics.Counter // to nodes, in sessions
	bytes      map[cluster.MessageKind]*metrics.Counter
	deaths     *metrics.Counter
	assigned   *metrics.Counter
	unowned    *metrics.Gauge
	voters     *metrics.Gauge // as last seen while this manager led
	proposals  *metrics.PrometheusHistogram
	looks      *metrics.PrometheusHistogram // of the planner at the loads
	imbalance  *metrics.Gauge               // as of the last look while this manager led
	flying     *metrics.Gauge               // orders
}

// ordered counts one order that ended.
func (s *managerMetrics) ordered(kind partmap.ChangeKind, outcome string) {
	s.set.GetOrCreateCounter(fmt.Sprintf(`starling_manager_orders_total{change=%q,outcome=%q}`, kind, outcome)).Inc()
}

// sent counts one message to a node, by what it is.
func (s *managerMetrics) sent(kind cluster.MessageKind, size int) {
	s.messages[kind].Inc()
	s.bytes[kind].Add(size)
}

func (s *managerMetrics) init(m *Manager) {
	s.set = metrics.NewSet()
	s.reigns = s.set.NewCounter("starling_manager_reigns_total")
	s.heartbeats = s.set.NewCounter("starling_manager_heartbeats_total")
	s.heard = s.set.NewCounter("starling_manager_heartbeat_bytes_total")
	s.messages, s.bytes = map[cluster.MessageKind]*metrics.Counter{}, map[cluster.MessageKind]*metrics.Counter{}
	for _, kind := range []cluster.MessageKind{cluster.MessageTopology, cluster.MessageDelta, cluster.MessageFeed, cluster.MessageRenewal, cluster.MessageOrder} {
		s.messages[kind] = s.set.NewCounter(fmt.Sprintf(`starling_manager_sent_messages_total{message=%q}`, kind))
		s.bytes[kind] = s.set.NewCounter(fmt.Sprintf(`starling_manager_sent_bytes_total{message=%q}`, kind))
	}
	s.deaths = s.set.NewCounter("starling_manager_node_deaths_total")
	s.assigned = s.set.NewCounter("starling_manager_partition_changes_total")
	s.unowned = s.set.NewGauge("starling_manager_partitions_unowned", nil)
	s.voters = s.set.NewGauge("starling_manager_voters", nil)
	s.imbalance = s.set.NewGauge("starling_manager_imbalance_ratio", nil)
	s.flying = s.set.NewGauge("starling_manager_orders_in_flight", nil)
	s.proposals = s.set.NewPrometheusHistogram("starling_manager_propose_seconds")
	s.looks = s.set.NewPrometheusHistogramExt("starling_manager_plan_seconds", []float64{1e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 1})
	s.set.NewGauge("starling_manager_leads", func() float64 {
		if m.Leads() {
			return 1
		}
		return 0
	})
}
