package gateway

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/VictoriaMetrics/metrics"

	"starling"
	"starling/vpcproxy/header"
	"starling/vpcproxy/splice"
)

// meters are a gateway's numbers. Labels are kinds, answers and the networks that the operator plugged in.
type meters struct {
	set     *metrics.Set
	kinds   map[header.Kind]*metrics.Counter
	answers map[header.Answer]*metrics.Counter
	ends    map[splice.End]*metrics.Counter
	dialled *metrics.Histogram

	handed, resumed, lost *metrics.Counter // flows that went to another gateway, came from one, were reset on the way
}

// flowCounters are the bytes of one network.
type flowCounters struct{ up, down *metrics.Counter }

func newMeters(g *Gateway) *meters {
	m := &meters{set: metrics.NewSet(), kinds: map[header.Kind]*metrics.Counter{}, answers: map[header.Answer]*metrics.Counter{}}
	m.ends = splice.Counters(m.set, "starling_gateway_ended_total")
	for k := header.TCP; k <= header.Test; k++ {
		m.kinds[k] = m.set.NewCounter(fmt.Sprintf("starling_gateway_flows_total{kind=%q}", k.String()))
	}
	for a := header.Denied; a <= header.Malformed; a++ {
		m.answers[a] = m.set.NewCounter(fmt.Sprintf("starling_gateway_refused_total{why=%q}", a.String()))
	}
	m.dialled = m.set.NewHistogram("starling_gateway_dial_seconds")
	m.handed, m.resumed, m.lost = m.set.NewCounter("starling_gateway_handed_total"), m.set.NewCounter("starling_gateway_resumed_total"), m.set.NewCounter("starling_gateway_lost_total")
	m.set.NewGauge("starling_gateway_flows", func() float64 { return float64(g.Flows()) })
	m.set.NewGauge("starling_gateway_networks", func() float64 { return float64(len(*g.plugs.Load())) })
	m.set.NewGauge("starling_gateway_unplugged", func() float64 { return float64(g.failed()) })
	return m
}

// network returns the counters of one network, which stay when it is plugged in anew.
func (m *meters) network(ref starling.NetworkRef) *flowCounters {
	return &flowCounters{m.set.GetOrCreateCounter(bytesOf(ref, "out")), m.set.GetOrCreateCounter(bytesOf(ref, "in"))}
}

// forget ends the counters of a network that is no more.
func (m *meters) forget(ref starling.NetworkRef) {
	m.set.UnregisterMetric(bytesOf(ref, "out"))
	m.set.UnregisterMetric(bytesOf(ref, "in"))
}

func bytesOf(ref starling.NetworkRef, direction string) string {
	return fmt.Sprintf("starling_gateway_bytes_total{network=%q,direction=%q}", ref.String(), direction)
}

func (m *meters) begun(k header.Kind) { m.kinds[k].Inc() }

func (m *meters) refused(a header.Answer) { m.answers[a].Inc() }

// Flows returns how many flows the gateway carries now.
func (g *Gateway) Flows() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.Conns()
}

// Metrics returns the gateway's numbers.
func (g *Gateway) Metrics() *metrics.Set { return g.m.set }

// transient reports whether a datagram could not be sent for a reason that the next may not meet.
func transient(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.EMSGSIZE)
}
