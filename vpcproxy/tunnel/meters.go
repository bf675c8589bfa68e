package tunnel

import (
	"errors"
	"fmt"
	"os"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/vpcproxy/header"
	"starling/vpcproxy/splice"
)

// Why no gateway took a flow.
const (
	failedGrant      = "no grant"   // managers gave none
	failedGateway    = "no gateway" // none is alive
	failedTime       = "timeout"    // none answered in time
	failedConnection = "connection" // those that are alive could not be reached, or ended
)

// counters are a tunnel's numbers. Labels are answers of gateways and the words of this package and of splice.
type counters struct {
	flows, grants, moved, stayed *metrics.Counter
	refused                      map[header.Answer]*metrics.Counter
	failed                       map[string]*metrics.Counter
	ended                        map[splice.End]*metrics.Counter
	opening                      *metrics.Histogram
}

func newCounters(set *metrics.Set) counters {
	m := counters{flows: set.NewCounter("starling_tunnel_flows_total"), grants: set.NewCounter("starling_tunnel_grants_total"),
		moved: set.NewCounter("starling_tunnel_moved_total"), stayed: set.NewCounter("starling_tunnel_stayed_total"),
		refused: map[header.Answer]*metrics.Counter{}, failed: map[string]*metrics.Counter{}, ended: splice.Counters(set, "starling_tunnel_ended_total"),
		opening: set.NewHistogram("starling_tunnel_open_seconds")}
	for a := header.Denied; a <= header.Malformed+1; a++ { // the last for those of newer gateways
		m.refused[a] = set.NewCounter(fmt.Sprintf("starling_tunnel_refused_total{why=%q}", a.String()))
	}
	for _, why := range []string{failedGrant, failedGateway, failedTime, failedConnection} {
		m.failed[why] = set.NewCounter(fmt.Sprintf("starling_tunnel_failed_total{why=%q}", why))
	}
	return m
}

// refuse counts what a gateway refused.
func (m *counters) refuse(a header.Answer) { m.refused[min(a, header.Malformed+1)].Inc() }

// fail counts a flow that no gateway took.
func (m *counters) fail(err error) {
	switch {
	case starling.KindOf(err) == starling.Timeout, errors.Is(err, os.ErrDeadlineExceeded):
		m.failed[failedTime].Inc()
	case errors.Is(err, errNone):
		m.failed[failedGateway].Inc()
	default:
		m.failed[failedConnection].Inc()
	}
}
